"""The DVC remote, from where others get what was released: send it there, make sure that it is, and get it back.

DVC itself believes that a folder's contents are in the remote when its listing is, so a lost file goes unnoticed and is
never sent again. Here the remote is asked for every object.
"""

import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.failure import one_line
from deploy.plural import counted
from pipeline.dvc.client import execute
from pipeline.dvc.explained import explain
from pipeline.dvc.purged import RECORD
from pipeline.dvc.repository import open_repository
from pipeline.errors import DvcError
from pipeline.git import Git
from pipeline.redact import redactor

SECRET = re.compile(r"^(?!ask_).*(password|passphrase|secret|secret_access_key|token|account_key|connection_string)$")


def find_remote(root: Path) -> str | None:
    """The name of the default remote; None when there is none, and the cache of this machine is all there is."""
    from dvc.config import Config, ConfigError

    try:
        name: str | None = Config(str(root / ".dvc")).get("core", {}).get("remote")
    except ConfigError as error:
        raise DvcError(redactor(root)(f"{root / '.dvc' / 'config'}: {error}")) from None
    return name


def list_committed(root: Path) -> tuple[str, ...]:
    """The files that belong into Git so that a clone and ``dvc pull`` give this workspace again; nothing else.

    They are what DVC reads (dvc.yaml, dvc.lock, params.yaml, ``*.dvc``, its configuration), the inputs and results that
    it leaves to Git, and the .gitignore files that keep out the others. Some may not exist.
    """
    with _repo(root) as repo:
        base = Path(repo.root_dir)
        outs = {Path(out.fs_path) for out in repo.index.outs}
        kept = {Path(out.fs_path) for out in repo.index.outs if not out.use_cache}
        read = {Path(dep.fs_path) for dep in repo.index.deps if dep.fs_path}
        files = {Path(stage.path) for stage in repo.index.stages} | kept
        files |= {dep for dep in read if not any(dep.is_relative_to(out) or out.is_relative_to(dep) for out in outs)}
        files |= {folder / ".gitignore" for out in outs for folder in out.parents if folder.is_relative_to(base)}
        files |= {base / RECORD}
        files |= {base / name for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".gitignore", ".dvcignore")}
        files |= {base / ".dvc" / name for name in ("config", ".gitignore")}
        for folder in [path for path in files if path.is_dir()]:
            files |= {file for file in folder.rglob("*") if file.is_file() and not repo.scm.is_ignored(str(file))}
            files.remove(folder)
    return tuple(sorted(file.relative_to(base).as_posix() for file in files if file.is_relative_to(base)))


def committed_secrets(root: Path) -> list[str]:
    """Options in .dvc/config that hold a secret: Git would carry it to every clone."""
    from dvc.config import Config

    remotes = Config(str(root / ".dvc"), validate=False).load_one("repo")["remote"]
    return [
        f"{option} of remote {name}"
        for name, options in remotes.items()
        for option, value in options.items()
        if SECRET.search(option) or re.search(r"://[^/@]*:[^/@]+@", str(value))
    ]


def push(root: Path) -> None:
    """Send everything of the workspace's present state to its default remote; the caller holds the workspace.

    Raises:
        DvcError: something is not there in the end; with DVC's own words, or the names of the objects.
    """
    execute(root, "push")
    with _repo(root) as repo:
        _send(repo, _needed(repo))


def send(root: Path, branches: Sequence[str] = (), lost: Collection[str] = ()) -> None:
    """Send what the default remote lacks of the workspace's present state and of these branches.

    Args:
        lost: objects that no one can send any more, and that are not missed.

    Raises:
        DvcError: the remote cannot be reached, or something is not there in the end.
    """
    with _repo(root) as repo:
        needed = set(_needed(repo))
        for _ in repo.brancher(revs=list(branches), workspace=False) if branches else ():
            needed |= set(_needed(repo))
        try:
            _send(repo, sorted(needed.difference(lost)))
        except DvcError:
            raise
        except Exception as error:  # noqa: BLE001 - each storage has its own errors, with no other common root
            said = one_line(error)
            raise DvcError(explain(root, f"remote {find_remote(root)} cannot be used: {said}")) from None


@contextmanager
def clone(git: Git, commit: str, folder: Path, paths: Sequence[str], fresh: bool = False) -> Iterator[Path]:
    """A clone of the workspace at a commit, with these outputs, for as long as the block lasts.

    Args:
        folder: where it is made; whatever is there is removed, before and after. The caller holds a lock on it.
        fresh: with a separate cache, empty at first, so that all has to come from the remote, if there is one, and
            every byte is hashed on its way; otherwise the cache of this workspace helps.

    Raises:
        DvcError: an output cannot be got, or is damaged.
        ReleaseError: Git cannot make the clone.
    """
    remote = find_remote(git.root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)  # credentials of the remote are copied into it
    try:
        tree = folder / "clone"
        git.clone(commit, tree)
        _configure(git.root, tree, folder, own_cache=fresh and remote is not None)
        _check_out(tree, paths, remote, fresh)
        yield tree
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_out(tree: Path, paths: Sequence[str], remote: str | None, fresh: bool) -> None:
    if remote is None or not fresh:
        try:
            execute(tree, "checkout", *paths)
            return
        except DvcError as error:
            if remote is None:
                what = ", ".join(paths)
                raise DvcError(f"{what}: no longer in the cache, and there is no remote ({error})") from None
    try:
        execute(tree, "pull", *paths)
    except DvcError as error:
        raise DvcError(
            f"remote {remote}: does not return {', '.join(paths)} as pushed: a file is missing, damaged or not "
            f"reachable ({error}); run `simclr fsck --remote`, remove the damaged object there, and try again"
        ) from None


def _configure(root: Path, tree: Path, folder: Path, own_cache: bool) -> None:
    """Give a clone the workspace's remotes, with the credentials that Git does not carry."""
    from configobj import ConfigObj
    from dvc.config import Config, merge

    source = Config(str(root / ".dvc"), validate=False)
    ours: dict[str, Any] = {}
    for level in ("repo", "local"):
        merge(ours, source.load_one(level))
    remotes = {name: {**settings, "verify": True} for name, settings in ours.pop("remote").items()}
    ours["core"]["site_cache_dir"] = str(folder / "site")  # what DVC remembers of the remote may be out of date
    ours["cache"]["dir"] = str(folder / "cache") if own_cache else _cache(root)
    # Not by DVC, which reads UTF-8 but can write only ASCII, and a folder may be called anything.
    local = ConfigObj(encoding="utf-8")
    local.update({"core": ours["core"], "cache": ours["cache"]})
    local.update({f'remote "{name}"': settings for name, settings in remotes.items()})
    with (tree / ".dvc" / "config.local").open("wb") as file:
        local.write(file)


def _cache(root: Path) -> str:
    with _repo(root) as repo:
        return str(Path(repo.cache.local.path).parents[1])


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException

    try:
        with open_repository(root) as repo:
            yield repo
    except (DvcException, OSError) as error:
        raise DvcError(explain(root, f"{root}: {one_line(error)}")) from None


def _send(repo: Any, needed: Sequence[str]) -> None:
    remote, cache = repo.cloud.get_remote_odb(), repo.cache.local
    lost = _absent(remote, needed)
    for listings in (False, True):  # DVC takes a listing that is there as a promise of its files
        here = [oid for oid in lost if oid.endswith(".dir") == listings and cache.exists(oid)]
        remote.add([cache.oid_to_path(oid) for oid in here], cache.fs, here, on_error=_ignore)
    lost = _absent(remote, lost)
    if lost:
        some = ", ".join(f"{oid[:2]}/{oid[2:]}" for oid in lost[:3])
        raise DvcError(
            f"`dvc push` did not send {counted(len(lost), 'object')}, such as {some}; "
            "see `dvc status` whether the cache has them"
        )


def _needed(repo: Any) -> list[str]:
    """Hashes of all objects that belong into the default remote, those within folders too."""
    outs = [out for out in repo.index.outs if out.use_cache and out.can_push and not out.remote and out.hash_info]
    known = {out.hash_info for out in outs} | repo.used_objs(push=True, force=True).get(None, set())
    return sorted({found.value for found in known if found.name == "md5"})


def _absent(store: Any, needed: Sequence[str]) -> list[str]:
    there = set(store.list_oids_exists(needed))
    return [oid for oid in needed if oid not in there]


def _ignore(oid: str, error: BaseException) -> None:
    """The remote is asked again afterwards, and what is still absent is reported."""
