"""Publish directories that are either complete or absent. Every stage publishes its outputs with this module.

An artifact is a directory with a ``MANIFEST.sha256`` in the format of ``sha256sum``, so that ``sha256sum -c`` checks it
anywhere. It is written next to its target, flushed to the disk, and renamed into place: a reader sees the old artifact
or the new one, never a part. Hashes are checked before any file is parsed, because torch, onnxruntime and DVC all load
a flipped bit without an error.
"""

import ctypes
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import CorruptArtifactError, MissingArtifactError
from deploy.failpoint import failpoint
from deploy.trust.signature import check_signature

MANIFEST = "MANIFEST.sha256"
MAX_MANIFEST_BYTES = 100_000_000
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2)


@contextmanager
def publish(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory next to ``target``; when the block ends without an error, it becomes ``target``.

    If the block raises, no file is left behind. An existing target is kept and ``FileExistsError`` raised, unless
    ``replace`` is set: then the two directories change places in one step. On a file system that cannot do that, the
    target is absent for a moment; if the process is killed right then, the next writer puts the old one back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target, restore=replace)
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
        if not (replace and target.exists()):
            work.rename(target)
        elif not _exchange(work, target):
            retired = _retire(target)
            failpoint("artifact.retired")
            work.rename(target)
            _remove(retired)
        _flush(target.parent)
        failpoint("artifact.renamed")
    finally:
        _remove(work)


def recover(target: Path) -> None:
    """Remove what a killed process left next to ``target``, and put ``target`` back if it is in there. Callers hold the
    lock of the target."""
    _remove_abandoned(target, restore=True)


def verify(directory: Path) -> str:
    """Compare every file with the manifest.

    Returns:
        The artifact's ``identity``.

    Raises:
        MissingArtifactError: the directory or its manifest does not exist.
        CorruptArtifactError: names the first file that is missing, unlisted or changed.
    """
    manifest = _read_manifest(directory)
    for path, expected in _listed_files(directory, manifest):
        if sha256(path) != expected:
            raise _changed(path)
    return hashlib.sha256(manifest).hexdigest()


def read_files(directory: Path, most: Callable[[str], int], trust: Path | None = None) -> tuple[str, dict[str, bytes]]:
    """Read every file of a small artifact once, and compare what was read with the manifest.

    What is returned is therefore what was hashed, and signed, even if another process replaces files meanwhile.

    Args:
        most: the largest size in bytes of the file of this name; a larger file is not read.
        trust: file of trusted keys; see ``deploy.trust.signature``.

    Returns:
        The artifact's ``identity``, and the content of each file by its name.

    Raises:
        MissingArtifactError, CorruptArtifactError: as in ``verify``, or a file is too large.
        UntrustedError: none of the trusted keys signed the manifest.
    """
    manifest = _read_manifest(directory)
    if trust is not None:
        check_signature(directory, manifest, trust)
    contents = {}
    for path, expected in _listed_files(directory, manifest):
        name = path.relative_to(directory).as_posix()
        contents[name] = _read(path, most(name))
        if hashlib.sha256(contents[name]).hexdigest() != expected:
            raise _changed(path)
    return hashlib.sha256(manifest).hexdigest(), contents


def check_trust(directory: Path, trust: Path) -> str:
    """Return who of the file of trusted keys signed the manifest; raise as ``read_files``. No other file is read."""
    return check_signature(directory, _read_manifest(directory), trust)


def identity(directory: Path) -> str:
    """Return the SHA-256 of the manifest, 64 hexadecimal digits that identify the whole content of the artifact."""
    manifest = _read_manifest(directory)
    _entries(directory, manifest)
    return hashlib.sha256(manifest).hexdigest()


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


def _read_manifest(directory: Path) -> bytes:
    if not directory.is_dir():
        raise MissingArtifactError(f"{directory}: no such directory; give the directory that holds {MANIFEST}")
    if not (directory / MANIFEST).exists():
        raise MissingArtifactError(f"{directory}: has no {MANIFEST}, so it is incomplete; make it again")
    return _read(directory / MANIFEST, MAX_MANIFEST_BYTES)


def _read(path: Path, most: int) -> bytes:
    if not path.is_file():  # opening a pipe waits forever, and a device never ends
        raise CorruptArtifactError(f"{path}: not a regular file; restore the directory from its source")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise CorruptArtifactError(f"{path}: {size:,} bytes; such a file has at most {most:,}; restore it")
        return file.read(size)


def _entries(directory: Path, manifest: bytes) -> dict[str, str]:
    """Parse a manifest: name → SHA-256."""
    try:
        text = manifest.decode()
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


def _listed_files(directory: Path, manifest: bytes) -> Iterator[tuple[Path, str]]:
    """Yield each file and its SHA-256 in the manifest; raise for one that is missing, unlisted, or not a file."""
    expected = _entries(directory, manifest)
    found = _found_files(directory)
    for name in sorted(expected.keys() | found):
        path = directory / name
        if name not in found:
            raise CorruptArtifactError(
                f"{path}: listed in {MANIFEST} but missing; restore the directory from its source"
            )
        if name not in expected:
            raise CorruptArtifactError(f"{path}: not listed in {MANIFEST}; remove it or restore the directory")
        if not path.is_file():
            raise CorruptArtifactError(f"{path}: not a regular file; restore the directory from its source")
        yield path, expected[name]


def _found_files(directory: Path) -> set[str]:
    """Return the names of everything but folders and the manifest. Not ``rglob``, which recurses into deep folders."""
    found, pending = set(), [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif not Path(entry.path).is_dir():  # not entry.is_dir(), which fails for a link to itself
                    found.add(Path(entry.path).relative_to(directory).as_posix())
    return found - {MANIFEST}


def _changed(path: Path) -> CorruptArtifactError:
    return CorruptArtifactError(f"{path}: its SHA-256 differs from {MANIFEST}; restore the directory from its source")


def _retire(target: Path) -> Path:
    retired = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    target.rename(retired / target.name)
    return retired


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; return False if the C library or the file system cannot."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    done: int = exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return done == 0


def _remove_abandoned(target: Path, restore: bool) -> None:
    """Remove what a killed process left next to the target. Callers hold the lock of the target."""
    for path in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        if restore and not target.exists() and (path / target.name / MANIFEST).exists():
            (path / target.name).rename(target)
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
