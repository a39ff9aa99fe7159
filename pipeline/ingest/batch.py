"""Write a raw batch: the bytes of what is new, in tar files, and where each content was seen.

Each file is read a second time here. One that is gone by then, or is another, is passed over: the others do not wait.
"""

import hashlib
import json
import re
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from deploy.artifact import publish
from deploy.failpoint import failpoint
from pipeline.errors import IngestError
from pipeline.ingest.news import Content
from pipeline.ingest.raw import OCCURRENCES, Occurrence
from simclr_core.data.shard_writing import portions, write_tar

CHANGED = "changed while it was read; the next ingest takes it"


class _EmptyBatchError(Exception):
    """Ends the writing of a batch of which nothing is left, so that none is published."""


def write_batch(batch: Path, new: dict[str, Content], known: Container[str], max_bytes: int) -> list[str]:
    """Write the batch, complete or not at all, or no batch if nothing of it can be read any more.

    Args:
        new: SHA-256 → what is new; loses what cannot be read any more.
        known: contents whose bytes earlier batches hold.

    Returns:
        What ``new`` has lost. The files are noted in ``passed_over`` of their source.
    """
    lost: list[str] = []

    def members() -> Iterator[tuple[str, bytes]]:
        for sha256, content in new.items():
            if sha256 in known:
                continue
            if member := _read(sha256, content):
                yield member
            else:
                lost.append(sha256)

    with suppress(_EmptyBatchError), publish(batch) as folder:
        for portion in portions(members(), max_bytes, size=lambda member: len(member[1])):
            write_tar(folder, portion)
            failpoint("ingest.tar")
        for sha256 in lost:
            del new[sha256]
        if not new:
            raise _EmptyBatchError
        lines = [
            json.dumps({"sha256": sha256, "occurrences": [_record(one) for one in content.occurrences]}) + "\n"
            for sha256, content in new.items()
        ]
        (folder / OCCURRENCES).write_text("".join(lines), encoding="utf-8")
    return lost


def _record(occurrence: Occurrence) -> dict[str, str | None]:
    """Without a group that there is not: the bytes are those of earlier versions then."""
    record = asdict(occurrence)
    return record if occurrence.group is not None else {name: record[name] for name in record if name != "group"}


def _read(sha256: str, content: Content) -> tuple[str, bytes] | None:
    """Name and bytes of the tar's member; None if the file is gone, or has other bytes now."""
    source, path = content.source, content.path
    try:
        data = source.read(path)
        fault = "" if hashlib.sha256(data).hexdigest() == sha256 else CHANGED
    except IngestError as error:
        fault = str(error).removeprefix(f"{path!r} ")
    if not fault:
        return f"{sha256}.{_extension(path)}", data
    source.passed_over[path] = fault
    source.unseen.add(path)
    return None


def _extension(path: str) -> str:
    """What the file calls itself, made safe for a tar member; nothing later trusts it."""
    extension = PurePosixPath(path).suffix[1:].lower()
    return extension if re.fullmatch("[a-z0-9]{1,8}", extension) else "bin"
