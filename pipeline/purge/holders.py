"""Which stored objects hold a content: by the names of a tar's members, the rows of a table, the lines of a record.

An object is looked at wherever it is, so that versions that no branch or tag names any more are found too.
"""

import re
import tarfile
from collections.abc import Collection
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deploy.artifact import MANIFEST, sha256
from pipeline.dvc.cache import Cache, Use
from pipeline.dvc.versions import WORKSPACE
from simclr_core.data.golden import GOLDEN_IMAGES, parity_positions

DATA = ("data/raw/", "data/prepared/", "data/manifest/", "data/explore/", "reports/predictions.parquet")
GOLDEN = "bundle/golden/"  # in the folder of a bundle, and of the champion that a run was compared with
RELEASED = re.compile(r"@(v\d+\.\d+\.\d+)(!?)(?=,|$)")  # of a tag; with the mark, the release was withdrawn
SHOWING = {"reports/": (".png", ".html"), "data/explore/": (".jpg", ".npy")}
"""Where files show images, or hold their embeddings, without saying which, and how their names end."""
TRAINED = "was trained on it"


def holds(file: IO[bytes], hashes: Collection[str]) -> bool:
    """Whether the bytes, the canonical image or the path of one of the contents is in this file.

    A tar or table that is damaged counts as one that does not: no one can read it either.
    """
    head = file.read(512)
    file.seek(0)
    try:
        if head[257:262] == b"ustar":
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return any(member.name.partition(".")[0] in hashes for member in tar)
        if head.startswith(b"PAR1"):
            columns = pl.read_parquet_schema(file)
            file.seek(0)
            return "sha256" in columns and pl.read_parquet(file, columns=["sha256"])["sha256"].is_in(list(hashes)).any()
    except (tarfile.TarError, pl.exceptions.PolarsError):
        return False
    if head.startswith(b'{"sha256"'):
        names = [one.encode() for one in hashes]
        return any(name in line and _says(line) for line in file for name in names)
    return False


def _says(line: bytes) -> bool:
    """Whether a record has more than the hash of a content: what was undone with its batch counts too."""
    return b'"occurrences": []' not in line or b'"undone": {' in line


def find_in_cache(cache: Cache, uses: dict[str, set[Use]], hashes: Collection[str]) -> set[str]:
    """Objects of the cache that hold them, and the pictures of the versions that they belong to."""
    found = set()
    for md5 in cache.objects():
        if not md5.endswith(".dir"):
            with cache.path(md5).open("rb") as file:
                found |= {md5} if holds(file, hashes) else set()
    return found | pictures(uses, versions(uses, found))


def find_in_remote(
    cache: Cache, name: str, uses: dict[str, set[Use]], hashes: Collection[str], known: Collection[str]
) -> set[str]:
    """The same for a remote. What the cache has is known already; what no version says the kind of is looked at.

    Raises:
        DvcError: the remote cannot be reached.
    """
    there = cache.remote_objects(name)
    found = there.intersection(known)
    for md5 in there - found:
        paths = [use.path for use in uses.get(md5, ())]
        other = paths and not any(path.startswith(DATA) for path in paths)
        if md5.endswith(".dir") or other or cache.path(md5).exists():
            continue
        with cache.asking(name), cache.open_remote(name, md5) as file:
            found |= {md5} if holds(file, hashes) else set()
    return found | (pictures(uses, versions(uses, found)) & there)


def versions(uses: dict[str, set[Use]], holders: Collection[str]) -> set[str]:
    return {use.version for md5 in holders for use in uses.get(md5, ())}


def pictures(uses: dict[str, set[Use]], of: Collection[str]) -> set[str]:
    """The objects that are pictures in reports of these versions, or thumbnails or embeddings of their explorers."""
    return {
        md5
        for md5, places in uses.items()
        for use in places
        for folder, endings in SHOWING.items()
        if use.version in of and use.path.startswith(folder) and use.path.endswith(endings)
    }


def golden_copies(
    cache: Cache, uses: dict[str, set[Use]], of: Collection[str], hashes: Collection[str]
) -> dict[str, list[str]]:
    """Version → objects that are small copies of the contents among the golden images of its bundle."""
    files = {(use.version, use.path): md5 for md5, places in uses.items() for use in places if use.version in of}
    found: dict[str, list[str]] = {}
    for version in of:
        names = {f"{number:02d}" for number in _golden_numbers(cache, files, version, hashes)}
        copies = [
            md5
            for (owner, path), md5 in files.items()
            if owner == version
            and path.startswith(f"models/{GOLDEN}")
            and path.rpartition("/")[2].partition(".")[0] in names
        ]
        found |= {version: sorted(copies)} if copies else {}
    return found


def _golden_numbers(
    cache: Cache, files: dict[tuple[str, str], str], version: str, hashes: Collection[str]
) -> list[int]:
    """The numbers of the golden images that were made from the contents."""
    keys = {split: _keys(cache, files.get((version, f"data/prepared/{split}/keys.npy"))) for split in ("test", "train")}
    counts = {split: 0 if one is None else len(one) for split, one in keys.items()}
    wanted = {bytes.fromhex(one) for one in hashes}
    numbers = []
    for number, (split, position) in enumerate(parity_positions(**counts)[:GOLDEN_IMAGES]):
        one = keys[split]
        numbers += [number] if one is not None and one[position].tobytes() in wanted else []
    return numbers


def _keys(cache: Cache, md5: str | None) -> NDArray[np.uint8] | None:
    if not md5 or not cache.path(md5).exists():
        return None
    keys: NDArray[np.uint8] = np.load(cache.path(md5), mmap_mode="r", allow_pickle=False)
    return keys


def released(version: str) -> str | None:
    """The name of the release that a version has; None for other commits, and for a release that was withdrawn.

    >>> released("simclr-encoder@v0.0.3,runs/3f2a90c1"), released("simclr-encoder@v0.0.3,simclr-encoder@v0.0.3!")
    ('v0.0.3', None)
    """
    found = dict(sorted(RELEASED.findall(version)))  # the mark last
    return next((name for name, withdrawn in found.items() if not withdrawn), None)


def needed(uses: dict[str, set[Use]], copies: dict[str, list[str]]) -> dict[str, list[str]]:
    """What can still be served or compared with, by its name → those of the copies that it needs.

    These are releases, and ``WORKSPACE``, which has a bundle and the champion of its last run.
    """
    kept: dict[str, list[str]] = {}
    for md5 in sorted({md5 for md5s in copies.values() for md5 in md5s}):
        for use in uses.get(md5, ()):
            name = WORKSPACE if use.version == WORKSPACE else released(use.version)
            if name and GOLDEN in use.path and md5 not in kept.setdefault(name, []):
                kept[name].append(md5)
    return dict(sorted(kept.items()))


def models(
    cache: Cache, uses: dict[str, set[Use]], holders: Collection[str], hashes: Collection[str]
) -> dict[str, str]:
    """Each version whose data held them → what its models had of them, and the id of its candidate, if it has one."""
    concerned = versions(uses, holders)
    files = {(use.version, use.path): md5 for md5, places in uses.items() for use in places if use.version in concerned}
    shown = golden_copies(cache, uses, concerned, hashes)
    return {version: _role(cache, files, version, hashes, version in shown) for version in sorted(concerned)}


def _role(
    cache: Cache, files: dict[tuple[str, str], str], version: str, hashes: Collection[str], is_golden: bool
) -> str:
    seen = {}
    for split in ("train", "test"):
        md5 = files.get((version, f"data/prepared/{split}/keys.npy"))
        keys = cache.path(md5).read_bytes() if md5 and cache.path(md5).exists() else None
        seen[split] = None if keys is None else any(bytes.fromhex(one) in keys for one in hashes)
    manifest = files.get((version, f"models/pretrained/{MANIFEST}"))
    candidate = sha256(cache.path(manifest)) if manifest and cache.path(manifest).exists() else None
    named = f" (candidate {candidate[:12]})" if candidate else ""
    if manifest is None and version != WORKSPACE:
        return "had it in its data; it has no model"
    golden = ", and its bundle shows a small copy among the golden images" if is_golden else ""
    if seen["train"]:
        return f"{TRAINED}{golden}{named}"
    if seen["test"]:
        return f"was tested with it{golden}{named}"
    return f"had it in its data, {'and did not use it' if seen['train'] is False else 'and may have used it'}{named}"
