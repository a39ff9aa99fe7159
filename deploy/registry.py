"""The serving registry: a folder of released bundles, and one line that names the version to serve.

    registry/v0.0.2/     a bundle
    registry/CURRENT     v0.0.2

Every function and command that accepts a bundle also accepts a registry and then uses its current version. Only
``CURRENT`` changes, atomically, so a reader sees either the old version or the new one.
"""

import re
from pathlib import Path

from deploy.artifact import MANIFEST
from deploy.errors import RegistryError

CURRENT = "CURRENT"
VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", re.ASCII)


def resolve(path: Path) -> Path:
    """Return the bundle to serve: ``path`` itself, or the current version of the registry at ``path``.

    Raises:
        RegistryError: the registry has no released version, or its CURRENT does not name one of its versions.
    """
    current = version(path)
    return path if current is None else path / current


def version(path: Path) -> str | None:
    """Return the version that the registry at ``path`` serves; None if ``path`` is not a registry.

    Raises:
        RegistryError: as in ``resolve``.
    """
    pointer = path / CURRENT
    if (path / MANIFEST).exists():
        return None
    if not pointer.is_file():
        if path.is_dir() and any(VERSION.fullmatch(inner.name) for inner in path.iterdir()):
            raise RegistryError(f"{path}: a registry without {CURRENT}; choose with `simclr release promote VERSION`")
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
