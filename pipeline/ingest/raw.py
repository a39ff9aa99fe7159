"""Raw batches: every byte that was ever ingested, frozen.

    data/raw/0001/
        <digest>.tar            members ``<sha256>.<extension>``: the files' bytes, verbatim
        occurrences.jsonl       one line per content: its SHA-256 and where it was seen, as which split, label and group
        MANIFEST.sha256

Content that an earlier batch holds appears again in ``occurrences.jsonl``, without bytes, when its source says
something else of it: a file that was unlabeled at first and was labeled later. What a source says last of a content
replaces what it said earlier; with the split ``replaced``, that it does not have it any more. Earlier versions did not
record the source: what their batches say of a content adds up, until a source says something.

A record without occurrences stays of a content that was purged, or undone with its batch (``pipeline.ingest.undo``); of
the latter it tells what was said, also when the batch was taken again.
"""

import json
import os
import re
import tarfile
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

OCCURRENCES = "occurrences.jsonl"
UNDONE = "undone"  # key of a record: what was said of a content before it was undone, and with which batch
REDONE = "redone"  # key of what that says, if the content may come in again
BEGIN = b'{"sha256": "'  # of a line
NOTHING_SAID = b'"occurrences": []'  # in the line of a content that was purged or undone
REPLACED = "replaced"  # the split of a content whose file has other contents now: its source has it no longer


@dataclass(frozen=True)
class Occurrence:
    """A file as the user had it: ``path`` is relative to its source, with forward slashes."""

    path: str
    split: str
    label: str | None
    source: str | None = None  # its ``identity``; None in batches of earlier versions
    group: str | None = None


def batches(raw: Path) -> list[Path]:
    """The batch folders, oldest first."""
    if not raw.is_dir():
        return []
    folders = (folder for folder in raw.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return sorted(folders, key=lambda folder: age(folder.name))


def age(name: str) -> tuple[int, str]:
    """What sorts the names of batches, oldest first: 10000 is newer than 9999. Later tables use ``tables.age``."""
    digits = re.match("[0-9]+", name)
    return int(digits[0]) if digits else 0, name


def next_name(batches: Sequence[Path]) -> str:
    """A name newer than all of these, whichever have been removed."""
    return f"{max((age(batch.name)[0] for batch in batches), default=0) + 1:04d}"


def find_lost(batches: Sequence[Path], contents: Collection[str]) -> set[str]:
    """Those of the contents that these batches list and no longer hold, because an earlier batch was removed."""
    numbers = [age(batch.name)[0] for batch in batches]
    if numbers == list(range(1, len(numbers) + 1)):
        return set()  # none was
    held = {sha256 for batch in batches for path in tars(batch) for sha256 in list_tar(path)}
    return set(contents) - held


def count_contents(batch: Path) -> int:
    """Of how many contents a batch says something; counts without parsing, for this is done every minute."""
    with (batch / OCCURRENCES).open("rb") as lines:
        return sum(NOTHING_SAID not in line for line in lines)


def read_occurrences(batch: Path) -> dict[str, tuple[Occurrence, ...]]:
    """SHA-256 → where it was seen, in the order of the batch."""
    records = read_records(batch)
    return {record["sha256"]: tuple(Occurrence(**seen) for seen in record["occurrences"]) for record in records}


def read_some(batch: Path, wanted: Container[str], marked: str) -> dict[str, tuple[Occurrence, ...]] | None:
    """Like ``read_occurrences``, of these contents alone; None if a line has the key ``marked``.

    The other lines are neither parsed nor kept.
    """
    begin, key, found = len(BEGIN), f'"{marked}": '.encode(), {}
    with (batch / OCCURRENCES).open("rb") as lines:
        for line in lines:
            if key in line:
                return None
            if not line.startswith(BEGIN) or line[begin : begin + 64].decode() in wanted:
                record = json.loads(line)
                if record["sha256"] in wanted and record["occurrences"]:
                    found[record["sha256"]] = tuple(Occurrence(**seen) for seen in record["occurrences"])
    return found


def read_rows(batch: Path) -> Iterator[tuple[str, str, str, str | None, str | None, str | None]]:
    """Every file of a batch as (SHA-256, path, split, label, source, group), in its order; the source None if
    unrecorded."""
    for record in read_records(batch):
        for seen in record["occurrences"]:
            yield record["sha256"], seen["path"], seen["split"], seen["label"], seen.get("source"), seen.get("group")


def tars(batch: Path) -> list[Path]:
    """Where the bytes of a batch are, in the order in which they are read."""
    return sorted(batch.glob("*.tar"))


def list_tar(path: Path) -> Iterator[str]:
    """The SHA-256 of every member, in the order of the tar. Reads headers and seeks over bytes."""
    with path.open("rb") as file:
        for name, _, _ in _members(file):
            yield _sha256(name)


def read_tar(path: Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """The members as (SHA-256, bytes), in the order of the tar; seeks over those that are not ``wanted``."""
    for sha256, _, data in read_placed(path, wanted):
        yield sha256, data


def read_placed(path: Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, int, bytes]]:
    """As ``read_tar``, with the place of the bytes in the tar.

    Raises:
        tarfile.ReadError: the tar is damaged, or ends too early.
    """
    with path.open("rb") as file:
        for name, place, size in _members(file):
            if wanted is None or _sha256(name) in wanted:
                file.seek(place)
                data = file.read(size)
                if len(data) < size:
                    raise tarfile.ReadError(f"{path}: ends within {name}")
                yield _sha256(name), place, data


def _members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of each member, in the order of the tar.

    Plain headers, which are all that ``write_tar`` writes, take microseconds here; tarfile, which takes ten times as
    long, reads what follows another one, or damage.
    """
    place = 0
    while True:
        header = os.pread(file.fileno(), tarfile.BLOCKSIZE, place)
        if place and header == bytes(tarfile.BLOCKSIZE):
            return
        if (member := _plain(header)) is None:
            break
        name, size = member
        yield name, place + tarfile.BLOCKSIZE, size
        place += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for found in tar:
            if found.offset >= place:
                assert found.isreg(), f"{file.name}: {found.name} is not a file"
                yield found.name, found.offset_data, found.size


def _plain(header: bytes) -> tuple[str, int] | None:
    """Name and size, if this is a whole header of POSIX.1-1988 (ustar) for a file with a short name; else None."""
    if len(header) < tarfile.BLOCKSIZE or header[156:157] != tarfile.REGTYPE or header[257:262] != b"ustar":
        return None
    try:
        size, checksum = (int(header[start:end].rstrip(b"\0 "), 8) for start, end in ((124, 136), (148, 156)))
        name = header[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        return None
    is_whole = checksum == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return (name, size) if is_whole and size >= 0 and header[345:346] == b"\0" else None


def read_bytes(raw: Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Every content once, as (batch, SHA-256, bytes): batches oldest first, members in the order of their tars.

    Args:
        wanted: SHA-256 of the contents whose bytes are read; None: of all.
    """
    for batch in batches(raw):
        for path in tars(batch):
            for sha256, data in read_tar(path, wanted):
                yield batch.name, sha256, data


def read_records(batch: Path, key: str = "sha256") -> Iterator[dict[str, Any]]:
    """The lines of ``occurrences.jsonl`` that have this key."""
    with (batch / OCCURRENCES).open(encoding="utf-8") as lines:
        for line in lines:
            if f'"{key}": ' in line:
                yield json.loads(line)


def _sha256(name: str) -> str:
    return name.partition(".")[0]
