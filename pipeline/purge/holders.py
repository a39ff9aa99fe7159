"""Which stored objects hold a content: by the names of a tar's members, the rows of a table, the lines of a record.

An object is looked at wherever it is, so that versions that no branch or tag names any more are found too.
"""

import tarfile
from collections.abc import Collection
from typing import IO

import polars as pl

from deploy.artifact import MANIFEST, sha256
from pipeline.dvc.cache import Cache, Use
from pipeline.dvc.versions import WORKSPACE

DATA = ("data/raw/", "data/prepared/", "data/manifest/", "reports/predictions.parquet")
PICTURES = (".png", ".html")  # of reports, which show images without saying which


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
    """The objects that are pictures in reports of these versions."""
    return {
        md5
        for md5, places in uses.items()
        for use in places
        if use.version in of and use.path.startswith("reports/") and use.path.endswith(PICTURES)
    }


def models(
    cache: Cache, uses: dict[str, set[Use]], holders: Collection[str], hashes: Collection[str]
) -> dict[str, str]:
    """Each version whose data held them → what its models had of them, and the id of its candidate, if it has one."""
    concerned = versions(uses, holders)
    files = {(use.version, use.path): md5 for md5, places in uses.items() for use in places if use.version in concerned}
    return {version: _role(cache, files, version, hashes) for version in sorted(concerned)}


def _role(cache: Cache, files: dict[tuple[str, str], str], version: str, hashes: Collection[str]) -> str:
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
    if seen["train"]:
        return f"was trained on it{named}"
    if seen["test"]:
        return f"was tested with it, and its bundle may show a small copy among the golden images{named}"
    return f"had it in its data, {'and did not use it' if seen['train'] is False else 'and may have used it'}{named}"
