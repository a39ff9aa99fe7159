"""Images at addresses such as ``s3://bucket/photos``, and embeddings to such a place, by fsspec.

An address stands for one object, or for all below it. Credentials come from the environment or from ~/.config/fsspec.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.artifact import MANIFEST
from deploy.errors import ArgumentError, ImageError, MissingExtraError
from deploy.failure import install_command
from deploy.folders.files import ARRAY, NO_IMAGE, passed_over
from deploy.images.signatures import HEAD_BYTES, is_array, is_image, named_as_image

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_address(text: object) -> bool:
    """Whether it is an address, not a path."""
    return isinstance(text, str) and ADDRESS.match(text) is not None


def list_images(address: str, passed: dict[str, str], arrays: bool) -> list[str]:
    """The object at an address, or the images below it, by the rule for folders; adds to ``passed`` what is left."""
    filesystem, path = _open(address)
    with _refusing(address):
        filesystem.invalidate_cache()
        if filesystem.isfile(path):
            return [address]
        objects = filesystem.find(path, detail=True)
    if not objects:
        raise ArgumentError(f"{address}: no such object or folder")
    found = []
    for name in sorted(objects, key=lambda one: one.replace("/", "\0")):
        relative = name.removeprefix(path.rstrip("/") + "/")
        if reason := _why_passed_over(filesystem, name, relative, arrays):
            passed[str(filesystem.unstrip_protocol(name))] = reason
        else:
            found.append(str(filesystem.unstrip_protocol(name)))
    return found


def _why_passed_over(filesystem: Any, name: str, relative: str, arrays: bool) -> str | None:
    left = passed_over(relative)
    if left:
        return left[1]
    if named_as_image(relative, arrays):
        return None
    with _refusing(name):
        head = filesystem.cat_file(name, start=0, end=HEAD_BYTES)
    return None if is_image(relative, head, arrays) else ARRAY if is_array(relative) else NO_IMAGE


class Remote:
    """An image at an address, read when it is needed; ``name`` is the address."""

    def __init__(self, address: str) -> None:
        self.name = address

    def read(self) -> bytes:
        try:
            filesystem, path = _open(self.name)
            data: bytes = filesystem.cat_file(path)
        except Exception as error:  # each client has errors with a class of its store
            raise ImageError("io_error", f"cannot be read: {_said(error)}; check the address and its access") from error
        if not data:
            raise ImageError("empty_file", "the file has no bytes; copy it again from its source")
        return data


def picture(file: str) -> Any:
    """What an encoder reads a file by: a path, or an object at an address."""
    return Remote(file) if is_address(file) else file


def state(file: str) -> str:
    """What changes when the file or object does."""
    if not is_address(file):
        status = Path(file).stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    filesystem, path = _open(file)
    with _refusing(file):
        details = filesystem.info(path)
    changed = details.get("ETag") or details.get("etag") or details.get("mtime") or details.get("LastModified")
    return f"{details.get('size')} {changed or details.get('created')}"


def write_to(out: str | Path, request: str, embed: Callable[[Path], int]) -> int:
    """Have ``embed`` write into a folder, or for an address into a hidden one here that is then uploaded.

    The hidden folder is kept if the process is killed: the same call then continues. The manifest is uploaded last.

    Args:
        request: a digest of what is to be embedded.
        embed: given the folder to make.

    Raises:
        ArgumentError: there are embeddings at the address already, or it cannot be written.
    """
    if not is_address(out):
        return embed(Path(out))
    address = str(out).rstrip("/")
    filesystem, path = _open(address)
    with _refusing(address):
        if filesystem.exists(f"{path}/{MANIFEST}"):
            raise ArgumentError(f"{address}: already exists; choose another address, or remove it")
    name = hashlib.sha256(f"{address}\0{request}".encode()).hexdigest()[:12]
    local = Path(f".{path.rpartition('/')[2]}.upload-{name}")
    failed = _count_failures(local) if local.exists() else embed(local)
    with _refusing(address):
        for file in sorted(local.iterdir(), key=lambda one: one.name == MANIFEST):
            filesystem.put_file(os.fspath(file), f"{path}/{file.name}")
    shutil.rmtree(local)
    return failed


def _count_failures(folder: Path) -> int:
    import json

    failures: int = json.loads((folder / "embedding.json").read_bytes())["failures"]
    return failures


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path there."""
    if re.search(r"://[^/@]*:[^/@]*@", address):
        raise ArgumentError("an address has a password in it; give it in the environment or in ~/.config/fsspec")
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise MissingExtraError(f"{address}: an address needs fsspec; run {install_command('ray')}") from None
    try:
        filesystem, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ArgumentError(
            f"{address}: cannot be opened ({error}); for S3 run {install_command('s3')}, or give a path"
        ) from None
    return filesystem, str(path)


@contextmanager
def _refusing(address: str) -> Iterator[None]:
    """Raise ArgumentError in place of what the client of a store says."""
    try:
        yield
    except ArgumentError:
        raise
    except Exception as error:
        raise ArgumentError(f"{address}: cannot be used ({_said(error)}); check the address and its access") from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
