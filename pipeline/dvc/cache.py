"""DVC's cache, object by object: what needs each, and where else its bytes are.

An object is named by the MD5 of its bytes. One whose name ends in ``.dir`` is the listing of a folder: JSON with the
path and the MD5 of every file in it.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from deploy.failure import one_line
from pipeline.dvc.explained import explain
from pipeline.dvc.repository import open_repository
from pipeline.dvc.versions import read_versions
from pipeline.errors import DvcError
from pipeline.redact import redactor

CHUNK = 1 << 20
OUT = re.compile(rb"^ +md5: ([0-9a-f]{32}(?:\.dir)?)$", re.MULTILINE)  # in the record of an executed stage


@dataclass(frozen=True, slots=True)
class Use:
    """Where an object belongs: ``version`` is WORKSPACE or the branches and tags of a commit, joined by commas."""

    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} of {self.version}"


class Cache:
    """The cache of a workspace and its default remote, if it has one; see ``opened``."""

    def __init__(self, repo: Any) -> None:
        self._repo = repo
        self.folder = Path(repo.cache.local.path)
        self.remote_name: str | None = repo.config["core"].get("remote")

    @cached_property
    def _remote(self) -> Any:
        """Opened when it is asked for: the folder of the cache is known without the package that its remote needs."""
        try:
            return self._repo.cloud.get_remote_odb() if self.remote_name else None
        except ImportError as error:
            raise DvcError(f"remote {self.remote_name}: {error}") from None

    def path(self, md5: str) -> Path:
        return self.folder / md5[:2] / md5[2:]

    def objects(self) -> Iterator[str]:
        """Names of all objects that are in the cache."""
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            names = (folder.name + path.name for path in sorted(folder.iterdir()))
            yield from (name for name in names if _is_name(name))

    def children(self, md5: str) -> dict[str, str] | None:
        """Path within the folder → object, of a listing; None when the cache has no sound one."""
        try:
            data = self.path(md5).read_bytes()
        except FileNotFoundError:
            return None
        if f"{digest([data])}.dir" != md5:
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(data)}

    def roots(self, beyond: str | None = None) -> dict[str, set[Use]]:
        """What the workspace, a branch or a tag needs: files, and listings of folders without the files in them.

        Args:
            beyond: also what references that begin with this need, such as ``refs/simclr/``.

        Raises:
            DvcError: a version cannot be read.
        """
        found: dict[str, set[Use]] = {}
        for version, outs in read_versions(self._repo, beyond):
            for path, md5 in outs.items():
                found.setdefault(md5, set()).add(Use(version, path))
        return found

    def uses(self, beyond: str | None = None) -> dict[str, set[Use]]:
        """As ``roots``, with every file in the folders, as far as their listings are here."""
        found = self.roots(beyond)
        for md5, places in [(md5, [*places]) for md5, places in found.items() if md5.endswith(".dir")]:
            for name, child in (self.children(md5) or {}).items():
                found.setdefault(child, set()).update(Use(one.version, f"{one.path}/{name}") for one in places)
        return found

    def useless_runs(self, gone: Collection[str]) -> list[Path]:
        """Records of executed stages of which an output is not in the cache, or is ``gone`` from it soon.

        DVC keeps one of each execution forever, and restores from none of these.
        """
        found = []
        for path in (self.folder.parents[1] / "runs").glob("*/*/*"):
            outs = OUT.findall(path.read_bytes().partition(b"\nouts:")[2])
            if any((md5 := out.decode()) in gone or not self.path(md5).exists() for out in outs):
                found.append(path)
        return found

    def remove(self, md5s: Collection[str], runs: Iterable[Path] = ()) -> None:
        """Remove objects from the cache, listings first: a listing promises its files; and these records of runs."""
        with self._repo.lock:  # a person's `dvc` would count on them
            for md5 in _listings_first(md5s):
                self.path(md5).unlink(missing_ok=True)
            for path in runs:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # other records of the same inputs
                    path.parent.rmdir()
                    path.parent.parent.rmdir()

    def remotes(self) -> list[str]:
        """The names of all remotes, also of those that are not the default."""
        return sorted(self._repo.config["remote"])

    def remote_objects(self, name: str) -> set[str]:
        """Names of all objects that are in a remote.

        Raises:
            DvcError: it cannot be reached.
        """
        with self.asking(name):
            store = self._repo.cloud.get_remote_odb(name)
            if not store.fs.isdir(store.path):  # a disk that is not mounted must not look like an empty remote
                raise DvcError(f"remote {name}: {store.path} does not exist; see `dvc remote list`")
            return set(store.all())

    def open_remote(self, name: str, md5: str) -> AbstractContextManager[IO[bytes]]:
        """An object of a remote, of which no more is read than is asked for."""
        store = self._repo.cloud.get_remote_odb(name)
        opened: AbstractContextManager[IO[bytes]] = store.fs.open(store.oid_to_path(md5), "rb")
        return opened

    def remove_from_remote(self, name: str, md5s: Collection[str]) -> None:
        """Remove objects from a remote, listings first.

        Raises:
            DvcError: it cannot be reached, or lets nothing be removed.
        """
        from dvc_data.hashfile.db import get_index

        with self.asking(name):
            store = self._repo.cloud.get_remote_odb(name)
            for md5 in _listings_first(md5s):
                if store.exists(md5):
                    store.fs.remove(store.oid_to_path(md5))
            get_index(store).clear()  # what DVC believes to be there

    @contextmanager
    def asking(self, name: str) -> Iterator[None]:
        """Translate what goes wrong with a remote in the block.

        Raises:
            DvcError: instead of it.
        """
        try:
            yield
        except DvcError:
            raise
        except Exception as error:  # noqa: BLE001 - each storage has its own errors, with no other common root
            raise DvcError(redactor(Path(self._repo.root_dir))(f"remote {name}: {one_line(error)}")) from None

    def put(self, md5: str, chunks: Iterable[bytes]) -> bool:
        """Make these bytes the object, whole or not at all; False when they are not what its name says."""
        target = self.path(md5)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".repaired-", dir=target.parent)
        work, computed = Path(name), hashlib.md5(usedforsecurity=False)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    computed.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if computed.hexdigest() != md5.removesuffix(".dir"):
                return False
            work.chmod(0o444)
            work.replace(target)
            return True
        finally:
            work.unlink(missing_ok=True)

    def fetch(self, md5: str) -> bool:
        """Get an object from the remote; False when there is no remote, or it has no sound one."""
        try:
            return self._remote is not None and self.put(md5, self.read_remote(md5))
        except DvcError:
            return False

    def read_remote(self, md5: str) -> Iterator[bytes]:
        """The bytes of an object in the remote.

        Raises:
            DvcError: it is not there, or the remote cannot be reached.
        """
        assert self._remote is not None
        with (
            self.asking(f"{self.remote_name}: {md5}"),
            self._remote.fs.open(self._remote.oid_to_path(md5), "rb") as file,
        ):
            while chunk := file.read(CHUNK):
                yield chunk

    def require_remote(self) -> None:
        """Make sure that the remote answers.

        Raises:
            DvcError: there is none, or it cannot be reached.
        """
        if self._remote is None:
            raise DvcError("the workspace has no DVC remote; add one with `dvc remote add --default NAME URL`")
        try:
            there = self._remote.fs.exists(self._remote.path)
        except Exception as error:  # noqa: BLE001 - each storage has its own errors
            there, reason = False, one_line(error)
        else:
            reason = f"{self._remote.path} does not exist"
        if not there:
            message = f"remote {self.remote_name} cannot be read ({reason}); see `dvc remote list` and its credentials"
            raise DvcError(redactor(Path(self._repo.root_dir))(message))

    def send(self, md5: str) -> None:
        """Put the object of the cache, which is sound, in place of what the remote has."""
        assert self._remote is not None
        target = self._remote.oid_to_path(md5)
        self._remote.fs.makedirs(self._remote.fs.parent(target), exist_ok=True)
        self._remote.fs.put_file(str(self.path(md5)), target)


@contextmanager
def opened(root: Path) -> Iterator[Cache]:
    """The cache of the workspace at ``root``.

    Raises:
        DvcError: the workspace or one of its versions cannot be read; DVC says why.
    """
    from dvc.exceptions import DvcException

    try:
        with open_repository(root) as repo:
            yield Cache(repo)
    except DvcException as error:
        raise DvcError(explain(root, f"{root}: {one_line(error)}")) from None


def remotes(root: Path) -> dict[str, Mapping[str, Any]]:
    """Name of each remote → its settings, those of .dvc/config.local included.

    Raises:
        DvcError: the configuration has a fault.
    """
    from dvc.config import Config, ConfigError

    try:
        found: dict[str, Mapping[str, Any]] = dict(Config(str(root / ".dvc"))["remote"])
    except ConfigError as error:
        raise DvcError(redactor(root)(f"{root / '.dvc' / 'config'}: {error}")) from None
    return found


def objects_folder(root: Path) -> Path:
    """The folder of the objects of the workspace at ``root``, without opening the workspace.

    Raises:
        DvcError: the configuration has a fault.
    """
    from dvc.config import Config, ConfigError

    try:
        given = Config(str(root / ".dvc"))["cache"].get("dir")
    except ConfigError as error:
        raise DvcError(redactor(root)(f"{root / '.dvc' / 'config'}: {error}")) from None
    return Path(given or root / ".dvc" / "cache") / "files" / "md5"


def level(root: Path, remote: str) -> tuple[str, ...]:
    """The option of ``dvc remote modify`` for the file that defines a remote."""
    from dvc.config import Config

    committed = Config(str(root / ".dvc"), validate=False).load_one("repo")
    return () if remote in committed.get("remote", {}) else ("--local",)


def digest(chunks: Iterable[bytes]) -> str:
    """MD5, in hexadecimal digits."""
    computed = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        computed.update(chunk)
    return computed.hexdigest()


def read(path: Path) -> Iterator[bytes]:
    """A file in portions."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy where that is not possible; never a part of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".repaired-", dir=target.parent) as folder:
        work = Path(folder) / target.name
        try:
            os.link(source, work)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, work)
        work.replace(target)


def _listings_first(md5s: Collection[str]) -> list[str]:
    return sorted(md5s, key=lambda md5: (not md5.endswith(".dir"), md5))


def _is_name(name: str) -> bool:
    digits = name.removesuffix(".dir")
    return len(digits) == 32 and set(digits) <= set("0123456789abcdef")
