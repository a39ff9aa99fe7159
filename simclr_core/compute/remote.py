"""A stage's inputs from the DVC remote, for workers that share no disk: by hash, once for each node, verified.

The driver sends what the remote lacks, under DVC's own names, ``files/md5/ab/cdef...``. A node keeps the objects in a
cache, so that a data set that has grown by a shard costs one shard. Credentials are those of each node.
"""

import configparser
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from fsspec.implementations.local import LocalFileSystem

from deploy.failure import one_line
from deploy.lock import in_turn
from simclr_core.compute.inputs import INPUTS, fingerprint
from simclr_core.errors import LaunchError

CACHE = "SIMCLR_CACHE"  # where a node keeps what it has fetched
PARALLEL = 16  # requests at the same time
KEPT = 8  # folders of a node's cache
CHUNK = 1 << 20
ADVICE = "give .dvc/config a remote that every node reaches, or set data: shared in .simclr/compute.yaml"


@dataclass(frozen=True)
class Store:
    """A DVC remote; ``options`` are those of its file system, without any secret."""

    url: str
    options: Mapping[str, Any]

    def open(self) -> tuple[Any, str]:
        """The file system, and the folder in it."""
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(self.url, **self.options)
        return found


@dataclass(frozen=True)
class Fetched:
    """An input of which each node gets its own copy; ``md5`` is DVC's hash of the folder."""

    name: str
    md5: str
    store: Store
    fingerprint: str

    def place(self, workspace: Path) -> None:
        """Link the node's copy into a worker's folder, made first if need be, and again if it was damaged since.

        Raises:
            LaunchError: the remote cannot be read, or does not have it.
        """
        for again in (False, True):
            tree = _reaching(self.store, partial(fetch, self.store, self.md5, node_cache(), again))
            if fingerprint(tree) == self.fingerprint:
                break
        else:
            raise LaunchError(f"{self.name} of dvc.lock is not what the driver's workspace has; run `dvc status` there")
        target = workspace / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(tree)


def fetched(workspace: Path, stage: str) -> Sequence[Fetched]:
    """The inputs of a stage, by the hashes of dvc.lock; what the remote lacks is sent there first.

    Raises:
        LaunchError: there is no dvc.lock or no remote, or it cannot be written.
    """
    store, hashes = read_store(workspace), _recorded(workspace)
    names = [name for name in INPUTS[stage] if (workspace / name).exists()]
    if missing := [name for name in names if name not in hashes]:
        raise LaunchError(
            f"dvc.lock has no hash of {missing[0]}, by which nodes could fetch it; start with `simclr run`"
        )
    for name in names:
        _reaching(store, partial(send, store, hashes[name], workspace, name))
    return [Fetched(name, hashes[name], store, fingerprint(workspace / name)) for name in names]


def read_store(workspace: Path) -> Store:
    """The default remote of .dvc/config and .dvc/config.local.

    Raises:
        LaunchError: there is none.
    """
    config = _read_config(workspace)
    name = config.get("core", "remote", fallback="").strip('"')
    section = f"'remote \"{name}\"'"
    if not name or not config.has_section(section):
        raise LaunchError(f"data is remote, and .dvc/config names no default remote; {ADVICE}")
    remote = {key: value.strip('"') for key, value in config.items(section)}
    url = remote["url"]
    if "://" not in url:  # as DVC reads it, from the folder of its configuration
        return Store(str((workspace / ".dvc" / url).resolve()), {})
    client = {"endpoint_url": remote.get("endpointurl"), "region_name": remote.get("region")}
    given = {key: value for key, value in client.items() if value}
    return Store(url, {"client_kwargs": given} if given else {})


def send(store: Store, md5: str, workspace: Path, name: str) -> None:
    """Put what the remote lacks of a folder there, its listing last."""
    listing = _listing_here(workspace, md5)
    system, base = store.open()
    files = {md5: workspace / name / relpath for md5, relpath in _entries(listing)}

    def put(one: tuple[str, Path]) -> None:
        target = f"{base}/{_key(one[0])}"
        if not system.exists(target):
            _put(system, target, one[1])

    _all_at_once(put, files.items())
    target = f"{base}/{_key(md5)}"
    if not system.exists(target):
        _put(system, target, listing)


def _put(system: Any, target: str, content: Path | bytes) -> None:
    """Whole or not at all, as DVC counts on: a bucket shows no half of an object, and a disk gets the name last."""
    folder = target.rpartition("/")[0]
    system.makedirs(folder, exist_ok=True)
    on_disk = isinstance(system, LocalFileSystem)
    written = f"{folder}/.{secrets.token_hex(8)}.tmp" if on_disk else target
    try:
        if isinstance(content, Path):
            system.put_file(str(content), written)
        else:
            system.pipe_file(written, content)
        if on_disk:
            Path(written).replace(target)
    finally:
        if on_disk:
            Path(written).unlink(missing_ok=True)


def fetch(store: Store, md5: str, cache: Path, again: bool = False) -> Path:
    """The folder of that hash in the node's cache; one process of the node fetches it, the others wait.

    Args:
        again: fetch it whatever the cache has, from which the system may have removed files.

    Raises:
        LaunchError: a file of the remote has another hash than its name says.
    """
    tree = cache / "folders" / md5
    for folder in (cache / "objects", tree.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with in_turn(cache):
        if again or not tree.exists():
            system, base = store.open()
            listing = system.cat_file(f"{base}/{_key(md5)}")
            _require_hash(hashlib.md5(listing, usedforsecurity=False).hexdigest(), md5.removesuffix(".dir"), store)
            entries = _entries(listing)
            wanted = sorted({one for one, _ in entries if again or not (cache / "objects" / one).exists()})
            _all_at_once(partial(_fetch_object, system, base, cache / "objects", store), wanted)
            work = Path(tempfile.mkdtemp(dir=tree.parent, prefix=".partial-"))
            for one, relpath in entries:
                (work / relpath).parent.mkdir(parents=True, exist_ok=True)
                os.link(cache / "objects" / one, work / relpath)
            work.chmod(0o755)
            damaged = tree.parent / f".partial-{secrets.token_hex(8)}"
            if tree.exists():
                tree.rename(damaged)
            work.rename(tree)
            shutil.rmtree(damaged, ignore_errors=True)
        os.utime(tree)
        _prune(cache)
    return tree


def node_cache() -> Path:
    """Where this node keeps what it has fetched."""
    return Path(os.environ.get(CACHE) or Path(tempfile.gettempdir()) / f"simclr-cache-{os.getuid()}")


def _fetch_object(system: Any, base: str, objects: Path, store: Store, md5: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=objects, prefix=".partial-")
    seen = hashlib.md5(usedforsecurity=False)
    try:
        with os.fdopen(descriptor, "wb") as target, system.open(f"{base}/{_key(md5)}", "rb") as source:
            while chunk := source.read(CHUNK):
                seen.update(chunk)
                target.write(chunk)
        _require_hash(seen.hexdigest(), md5, store)
        Path(name).chmod(0o644)
        Path(name).rename(objects / md5)
    finally:
        Path(name).unlink(missing_ok=True)


def _require_hash(found: str, md5: str, store: Store) -> None:
    if found != md5:
        raise LaunchError(f"{store.url}/{_key(md5)} has the hash {found}; restore it with `simclr fsck --remote`")


def _prune(cache: Path) -> None:
    """Keep the folders that were used last, and the objects that are in one of them."""
    folders = sorted((cache / "folders").iterdir(), key=lambda one: one.stat().st_mtime, reverse=True)
    for folder in folders[KEPT:]:
        shutil.rmtree(folder)
    for path in (cache / "objects").iterdir():
        if path.stat().st_nlink == 1:
            path.unlink()


def _recorded(workspace: Path) -> dict[str, str]:
    """Path of an output → its hash, for all stages of dvc.lock."""
    try:
        lock = yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    outs = (out for stage in lock["stages"].values() for out in stage.get("outs", []))
    return {out["path"]: out["md5"] for out in outs if "md5" in out}


def _listing_here(workspace: Path, md5: str) -> bytes:
    config = _read_config(workspace)
    cache = workspace / ".dvc" / config.get("cache", "dir", fallback="cache").strip('"')
    path = cache / _key(md5)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LaunchError(f"{path} is not there; `dvc checkout` restores the cache") from None


def _read_config(workspace: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read([workspace / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    return config


def _entries(listing: bytes) -> list[tuple[str, str]]:
    """Hash and path of each file of DVC's listing of a folder."""
    return [(one["md5"], one["relpath"]) for one in json.loads(listing)]


def _key(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _all_at_once(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in pool.map(work, items):
            pass


def _reaching(store: Store, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except LaunchError:
        raise
    except ImportError as error:
        raise LaunchError(f"{store.url} needs {error.name}, which is not installed; {ADVICE}") from None
    except Exception as error:  # noqa: BLE001 - each storage has its own errors, with no other common root
        raise LaunchError(f"{store.url} cannot be used ({type(error).__name__}: {one_line(error)}); {ADVICE}") from None
