"""What every versioned file must be, by two records: DVC's objects by their names, artifacts by MANIFEST.sha256.

The same bytes are often in several places: the cache, the workspace, the serving registry, the remote. What is damaged
in one is restored from another whose hash is right; the damaged file itself is kept in ``.simclr/damaged``.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.artifact import MANIFEST, sha256
from pipeline.dvc import cache, client, purged
from pipeline.dvc.cache import Cache, Use
from pipeline.dvc.versions import WORKSPACE
from pipeline.errors import BusyError, DvcError
from pipeline.params import read
from pipeline.workspace import Workspace

DAMAGED = "damaged"
REMOTE = "remote:"  # before the key of an object of the remote
ARTIFACTS = ("data", "models", "registry")
BUNDLE = "models/bundle"
RELEASED = re.compile(r"@(v\d[^#,]*)(?:,|$)")  # in the names of a commit: the tag simclr-encoder@v0.0.2
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
NAMED = 3


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was recorded; ``repaired`` says how it was restored, empty when it was not."""

    path: str
    problem: str
    needed_by: tuple[str, ...]
    repaired: str = ""

    def __str__(self) -> str:
        if self.repaired:
            return f"repaired  {self.path}: {self.problem}; {self.repaired}"
        others = len(self.needed_by) - NAMED
        needed = ", ".join(self.needed_by[:NAMED]) + (f" and {others} more" if others > 0 else "")
        return (
            f"LOST    {self.path}: {self.problem}; needed by: {needed or 'no version'}; no intact copy is left: "
            "restore one from a backup or another clone (`dvc push` there), or make it again with `simclr run`"
        )


@dataclass(frozen=True)
class Item:
    """One thing to read.

    Attributes:
        key: its name in the memory of what was read.
        path: None for an object of the remote.
        expected: an object's name (MD5), or the SHA-256 of an artifact's file.
        changed: nanoseconds.
    """

    key: str
    path: Path | None
    expected: str
    size: int = 0
    changed: int = 0


class Checker:
    """Finds and fixes the damages of one workspace; ``postponed`` counts what could not be looked at twice."""

    def __init__(self, workspace: Workspace, objects: Cache) -> None:
        self.damages: list[Damage] = []
        self.postponed = 0
        self._workspace, self._objects = workspace, objects
        self._root = workspace.root
        self._registry = self._root / read(workspace).release.registry
        self._learn()

    def check_listings(self) -> None:
        """Listings of folders: always and first, for they say which files there should be."""
        listings = {name for name in [*self._objects.objects(), *self._uses] if name.endswith(".dir")}
        for md5 in sorted(listings):
            if self._objects.children(md5) is None and (self._objects.path(md5).exists() or self._expected(md5)):
                self._repair_object(md5)
        self._learn()

    def check_presence(self) -> None:
        """Every object that is needed is here, though a version that was never fetched may be in the remote alone."""
        listings = [self._objects.children(md5) for md5 in self._uses if md5.endswith(".dir")]
        inside = {child for listing in listings for child in (listing or {}).values()}
        for md5 in sorted(self._uses):
            if not self._objects.path(md5).exists() and (md5 in inside or self._expected(md5)):
                self._repair_object(md5)

    def _expected(self, md5: str) -> bool:
        return self._objects.remote_name is None or any(place.exists() for place in self._places.get(md5, []))

    def items(self, remote: bool) -> list[Item]:
        """Everything that can be read."""
        found = [_item(self._objects.path(md5), md5) for md5 in self._objects.objects()]
        for folder in self._artifacts():
            found += self._files(folder)
        if remote:
            for md5, uses in sorted(self._uses.items()):
                if any(RELEASED.search(use.version) for use in uses):
                    found.append(Item(f"{REMOTE}{self._objects.remote_name}:{md5}", None, md5))
        return found

    def check(self, item: Item) -> bool:
        """Whether it is sound; if not, it is repaired where that can be."""
        if self._sound(item.path, item.expected):
            return True
        if item.path is None:
            self._repair_remote(item.expected)
        elif len(item.expected) == 64:
            self._repair_file(item.path, item.expected, f"differs from {MANIFEST}")
        else:
            self._repair_object(item.expected)
        return False

    def _learn(self) -> None:
        """Where else each object's bytes are, and which object is the file at a path."""
        gone = purged.objects(self._root)
        self._uses = {md5: uses for md5, uses in self._objects.uses().items() if md5 not in gone}
        self._places = {md5: sorted(set(self._copies(uses))) for md5, uses in self._uses.items()}
        self._recorded = {path: md5 for md5, paths in self._places.items() for path in paths}

    def _copies(self, uses: set[Use]) -> Iterator[Path]:
        for use in uses:
            released = RELEASED.search(use.version)
            if use.version == WORKSPACE:
                yield self._root / use.path
            elif released and f"{use.path}/".startswith(f"{BUNDLE}/"):
                yield self._registry / released[1] / use.path.removeprefix(BUNDLE).lstrip("/")

    def _artifacts(self) -> list[Path]:
        folders = {self._registry, *(self._root / name for name in ARTIFACTS)}
        found = {path.parent for folder in folders for path in folder.rglob(MANIFEST)}
        found |= {path.parent for path in self._recorded if path.name == MANIFEST and path.parent.is_dir()}
        return sorted(folder for folder in found if ".partial-" not in str(folder))

    def _files(self, folder: Path) -> list[Item]:
        """The files of an artifact by its manifest, which is made sure of first."""
        manifest = folder / MANIFEST
        recorded = self._recorded.get(manifest, "")
        listed = _read_manifest(manifest)
        if listed is None or (recorded and not self._sound(manifest, recorded)):
            self._repair_file(manifest, recorded, "cannot be relied on")
            listed = _read_manifest(manifest) or {}
        for path in sorted(folder.rglob("*")) if listed else []:
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in listed and path != manifest:
                self._found(path, f"not listed in {MANIFEST}; remove it if it is not needed", "", "")
        return [_item(folder / name, expected) for name, expected in listed.items()]

    def _sound(self, path: Path | None, expected: str) -> bool:
        try:
            if path is None:
                return cache.digest(self._objects.read_remote(expected)) == expected.removesuffix(".dir")
            if len(expected) == 64:
                return sha256(path) == expected
            return cache.digest(cache.read(path)) == expected.removesuffix(".dir")
        except (OSError, DvcError):
            return False

    def _repair_object(self, md5: str) -> None:
        with self._held() as held:
            if held:
                self._repair_held_object(md5)

    def _repair_held_object(self, md5: str) -> bool:
        """Whether the object is sound in the end."""
        path, places = self._objects.path(md5), self._places.get(md5, [])
        if self._sound(path, md5):
            return True
        if not path.exists() and md5 not in self._uses:  # collected meanwhile
            return False
        problem = "differs from its name" if path.exists() else "missing from the cache"
        linked = [place for place in places if path.exists() and place.is_file() and place.samefile(path)]
        self._set_aside(path)
        repaired = self._restore(md5, [place for place in places if place not in linked])
        for place in linked if repaired else []:
            cache.link(path, place)
        self._found(path, problem, md5, repaired)
        return bool(repaired)

    def _restore(self, md5: str, places: list[Path]) -> str:
        for place in places:
            if place.is_file() and self._objects.put(md5, cache.read(place)):
                return f"restored from {self._name(place)}"
            if place.is_dir() and md5.endswith(".dir") and self._objects.put(md5, [_listing(place)]):
                return f"rebuilt from {self._name(place)}"
        return f"restored from the remote {self._objects.remote_name}" if self._objects.fetch(md5) else ""

    def _repair_file(self, path: Path, expected: str, problem: str) -> None:
        with self._held() as held:
            if not held or (expected and self._sound(path, expected)):
                return
            md5, repaired = self._recorded.get(path, ""), ""
            problem = problem if path.exists() else f"listed in {MANIFEST} but missing"
            if md5 and self._repair_held_object(md5):
                if self._sound(path, md5):  # it was the same file, and was repaired with it
                    return
                self._set_aside(path)
                cache.link(self._objects.path(md5), path)
                repaired = "restored from the cache"
            self._found(path, problem, md5, repaired)

    def _repair_remote(self, md5: str) -> None:
        repaired = ""
        if self._sound(self._objects.path(md5), md5):
            self._objects.send(md5)
            repaired = "pushed again from the cache" if self._sound(None, md5) else ""
        self._found(Path(str(self._objects.remote_name), md5), "damaged or missing in the remote", md5, repaired)

    @contextmanager
    def _held(self) -> Iterator[bool]:
        try:
            with client.exclusive(self._root, "fsck"):
                yield True
        except BusyError:
            self.postponed += 1
            yield False

    def _set_aside(self, path: Path) -> None:
        if path.exists():
            folder = self._workspace.scratch / DAMAGED
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / f"{time.time_ns()}-{path.parent.name}-{path.name}")

    def _found(self, path: Path, problem: str, md5: str, repaired: str) -> None:
        needed_by = tuple(sorted(map(str, self._uses.get(md5, ()))))
        self.damages.append(Damage(self._name(path), problem, needed_by, repaired))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else str(path)


def _item(path: Path, expected: str) -> Item:
    try:
        found = path.stat()
    except FileNotFoundError:
        return Item(str(path), path, expected)
    return Item(str(path), path, expected, found.st_size, found.st_mtime_ns)


def _read_manifest(path: Path) -> dict[str, str] | None:
    """File → SHA-256; None where it is not a list of these."""
    try:
        lines = [LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    entries = {line[2]: line[1] for line in lines if line and ".." not in Path(line[2]).parts and line[2][0] != "/"}
    return entries if len(entries) == len(lines) and entries else None


def _listing(folder: Path) -> bytes:
    """A folder's listing, as DVC writes it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        {"md5": cache.digest(cache.read(file)), "relpath": file.relative_to(folder).as_posix()} for file in files
    ]
    return json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
