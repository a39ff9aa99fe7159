"""The serving registry: a folder of released bundles, and one line that names the version to serve.

    registry/v0.0.2/     a bundle
    registry/CURRENT     v0.0.2

Every function and command that accepts a bundle also accepts a registry and then uses its current version. Only
``CURRENT`` changes, atomically, so a reader sees either the old version or the new one.
"""

import os
import re
from pathlib import Path

from deploy.artifact import MANIFEST
from deploy.errors import RegistryError, as_path

CURRENT = "CURRENT"
RECORDS = {"releases", "rejected"}  # which a registry may have before any version
VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", re.ASCII)


def resolve(path: str | Path) -> Path:
    """Return the bundle to serve: ``path`` itself, or the current version of the registry at ``path``.

    Raises:
        RegistryError: the registry has no released version, or its CURRENT does not name one of its versions.
        ArgumentError: ``path`` is not a path.
    """
    current = version(path)
    return Path(path) if current is None else Path(path) / current


def versions(path: str | Path) -> list[str]:
    """Return the versions in the registry at ``path``, oldest first; none if it is a bundle or cannot be read."""
    path = as_path(path=path)
    if not os.access(path, os.R_OK | os.X_OK):
        return []
    found = [inner.name for inner in path.iterdir() if VERSION.fullmatch(inner.name) and inner.is_dir()]
    return sorted(found, key=lambda name: tuple(map(int, name[1:].split("."))))


def version(path: str | Path) -> str | None:
    """Return the version that the registry at ``path`` serves; None if ``path`` is not a registry.

    Raises:
        RegistryError, ArgumentError: as in ``resolve``.
    """
    path = as_path(path=path)
    pointer = path / CURRENT
    if (path / MANIFEST).exists():
        return None
    if not pointer.is_file():
        names = {inner.name for inner in path.iterdir()} if path.is_dir() else {"no folder"}
        if any(map(VERSION.fullmatch, names)):
            raise RegistryError(f"{path}: a registry without {CURRENT}; choose with `simclr release promote VERSION`")
        if all(name.startswith(".") or name in RECORDS for name in names):
            raise RegistryError(f"{path}: no version is released yet; `simclr run` releases the first")
        return None
    name = pointer.read_bytes()[:100].decode("utf-8", "replace").removesuffix("\n")
    if not VERSION.fullmatch(name):
        raise RegistryError(
            f"{pointer}: says {name!r}, not a version such as v0.0.1; choose one with `simclr release promote VERSION`"
        )
    if not (path / name).is_dir() or (path / name).is_symlink():
        raise RegistryError(
            f"{pointer}: says {name}, which is not a folder in {path}; restore it with `simclr release promote {name}`"
        )
    return name
