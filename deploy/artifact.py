"""Publish directories that are either complete or absent. Every stage publishes its outputs with this module.

An artifact is a directory with a ``MANIFEST.sha256`` in the format of ``sha256sum``, so that ``sha256sum -c`` checks it
anywhere. It is written next to its target, flushed to the disk, and renamed into place: a reader sees the old artifact
or the new one, never a part. Hashes are checked before any file is parsed, because torch, onnxruntime and DVC all load
a flipped bit without an error.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import CorruptArtifactError, MissingArtifactError
from deploy.failpoint import failpoint

MANIFEST = "MANIFEST.sha256"


@contextmanager
def publish(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory next to ``target``; when the block ends without an error, it becomes ``target``.

    If the block raises, no file is left behind. An existing target is kept and ``FileExistsError`` raised, unless
    ``replace`` is set: then the target stays in place until the new directory is complete on the disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    work = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    work.chmod(0o755)  # mkdtemp's 0700 would follow the directory into place
    try:
        yield work
        _write_manifest(work)
        failpoint("artifact.flush")
        for path in sorted(work.rglob("*")):
            _flush(path)
        _flush(work)
        failpoint("artifact.rename")
        retired = _retire(target) if replace and target.exists() else None
        failpoint("artifact.retired")
        work.rename(target)
        _flush(target.parent)
        failpoint("artifact.renamed")
        if retired:
            shutil.rmtree(retired)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def verify(directory: Path) -> str:
    """Compare every file with the manifest.

    Returns:
        The artifact's ``identity``.

    Raises:
        MissingArtifactError: the directory or its manifest does not exist.
        CorruptArtifactError: names the first file that is missing, unlisted or changed.
    """
    expected = _read_manifest(directory)
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()} - {MANIFEST}
    for name in sorted(expected.keys() | found):
        path = directory / name
        if name not in found:
            raise CorruptArtifactError(
                f"{path}: listed in {MANIFEST} but missing; restore the directory from its source"
            )
        if name not in expected:
            raise CorruptArtifactError(f"{path}: not listed in {MANIFEST}; remove it or restore the directory")
        if sha256(path) != expected[name]:
            raise CorruptArtifactError(
                f"{path}: its SHA-256 differs from {MANIFEST}; restore the directory from its source"
            )
    return sha256(directory / MANIFEST)


def identity(directory: Path) -> str:
    """Return the SHA-256 of the manifest, 64 hexadecimal digits that identify the whole content of the artifact."""
    _read_manifest(directory)
    return sha256(directory / MANIFEST)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace one file with ``data``, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
    work = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        work.chmod(0o644)
        failpoint("artifact.replace")
        work.replace(path)
    except BaseException:
        work.unlink()
        raise


def _write_manifest(directory: Path) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in files]
    (directory / MANIFEST).write_text("".join(lines), encoding="utf-8")


def _read_manifest(directory: Path) -> dict[str, str]:
    if not directory.is_dir():
        raise MissingArtifactError(f"{directory}: no such directory; give the directory that holds {MANIFEST}")
    try:
        text = (directory / MANIFEST).read_bytes().decode()
    except FileNotFoundError:
        raise MissingArtifactError(f"{directory}: has no {MANIFEST}, so it is incomplete; make it again") from None
    except UnicodeDecodeError:
        raise CorruptArtifactError(f"{directory / MANIFEST}: not text; restore the directory from its source") from None
    # Not splitlines(), which also splits at ten other characters; some of them are one flipped bit away.
    *lines, rest = text.split("\n")
    if rest:
        raise CorruptArtifactError(f"{directory / MANIFEST}: the last line is incomplete; restore the directory")
    entries = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        escapes = Path(name).is_absolute() or ".." in Path(name).parts
        if not separator or len(digest) != 64 or not name or name in entries or escapes:
            raise CorruptArtifactError(f"{directory / MANIFEST}: line {line!r} is not '<sha256>  <path>'; restore it")
        entries[name] = digest
    return entries


def _retire(target: Path) -> Path:
    retired = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    target.rename(retired / target.name)
    return retired


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process left next to the target. Callers hold the lock of the target."""
    for path in target.parent.glob(f"{_prefix(target)}*"):
        shutil.rmtree(path, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
