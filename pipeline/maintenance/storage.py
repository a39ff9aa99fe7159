"""The disk of a workspace: what can go, and that a run has enough.

    simclr gc --dry-run

Nothing goes that the workspace, a branch or a tag needs, and every released version is a tag.
"""

import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from pipeline import waiting
from pipeline.dvc import cache, client
from pipeline.errors import DvcError, ReleaseError, WorkspaceError
from pipeline.git import ORIGIN, Git
from pipeline.maintenance.disk import GIGABYTE, Collected, bytes_of, size, usage
from pipeline.maintenance.records import tidy
from pipeline.params import read
from pipeline.workspace import Workspace

BRANCHES, RETIRED = "refs/heads/runs/", "refs/simclr/retired/"


def collect(workspace: Workspace, cloud: bool = False, dry_run: bool = False) -> Collected:
    """Remove from the cache what neither the workspace nor any branch or tag needs, and scratch that is abandoned.

    Every run and every candidate has a branch ``runs/<id>``. All but the newest ``storage.keep_runs`` that were never
    released become ``refs/simclr/retired/<id>``, which Git keeps and DVC does not see. A candidate that waits for a
    person keeps its branch until it is decided on, or expires.

    Args:
        cloud: also from the DVC remote, for good; only if this clone knows every branch and tag of its origin.

    Raises:
        BusyError: another process holds the workspace.
        DvcError: a version cannot be read, or the listing of one of its folders is lost: then nothing is removed,
            because DVC would take the files of that folder for garbage.
        ReleaseError: ``cloud``, and other clones may need what this one would remove.
    """
    root = workspace.root
    params = read(workspace)
    git = Git(root, params.release.author, params.release.email)
    with client.exclusive(root, "gc"):
        asked = waiting.waiting(root / params.release.registry)
        retired = _outdated(git, params.storage.keep_runs, {one.commit for one in asked if not one.expired()})
        if not dry_run:
            _retire(git, retired)
            if (retired or cloud) and git.has_origin():
                with suppress(ReleaseError):  # an origin that is away does not keep this disk full; the next gc does it
                    _retire_on_origin(git)
        if cloud:
            _require_certainty(git)
        with cache.opened(root) as objects:
            if not objects.folder.is_relative_to(root):
                raise DvcError(
                    f"{objects.folder}: other workspaces may need what is in it; collect with `dvc gc --workspace "
                    "--all-branches --all-tags --projects DIR`, naming every one of them"
                )
            needed = _find_needed(objects)
            gone = [md5 for md5 in objects.objects() if md5 not in needed]
            runs = objects.useless_runs(frozenset(gone))
            files = len(gone) + len(runs)
            freed = sum(map(bytes_of, [*map(objects.path, gone), *runs]))
            remote = objects.remote_name if cloud else None
            gone_there = sorted(objects.remote_objects(remote) - needed) if remote else []
            if not dry_run:
                objects.remove(gone, runs)
                if remote:
                    objects.remove_from_remote(remote, gone_there)
        tidied = tidy(workspace, params.storage, dry_run)
        if not dry_run:
            with suppress(ReleaseError):  # each run leaves loose objects in Git, which packs them when there are many
                git.run("-c", "gc.auto=2000", "gc", "--auto", "--quiet")
    return replace(
        tidied,
        files=files + tidied.files,
        bytes=freed + tidied.bytes,
        remote_files=len(gone_there),
        retired=tuple(retired),
        dry_run=dry_run,
    )


def require_space(workspace: Workspace) -> Collected | None:
    """Before a run: remove old records, collect when the cache is over its budget, refuse when the disk is too full.

    Returns:
        What was collected, None when that was not needed.

    Raises:
        WorkspaceError: less than ``storage.min_free_gigabytes`` are free.
    """
    config = read(workspace).storage
    collected = None
    if config.max_cache_gigabytes is not None and usage(workspace)["cache"] > config.max_cache_gigabytes * GIGABYTE:
        collected = collect(workspace)
    else:
        with client.exclusive(workspace.root, "gc"):
            tidy(workspace, config)
    free = shutil.disk_usage(workspace.root).free
    if free < config.min_free_gigabytes * GIGABYTE:
        raise WorkspaceError(
            f"{workspace.root}: {size(free)} free, and a run needs {config.min_free_gigabytes:g} GB (params.yaml, "
            "storage.min_free_gigabytes); `simclr gc` frees what no version needs, `simclr gc --dry-run` says how much"
        )
    return collected


def _outdated(git: Git, keep: int, needed: Collection[str]) -> dict[str, str]:
    """Name → commit of run branches that were never released, without the newest, the one that is checked out, and
    those of the commits that are needed.

    The state of a run that was released is that of its tag, and needs no other branch.
    """
    layout = "%(objectname) %(tree)%0a%(*objectname) %(*tree)"
    tagged = set(git.run("for-each-ref", f"--format={layout}", "refs/tags").split())
    layout = "--format=%(HEAD) %(objectname) %(tree) %(refname)"
    found = git.run("for-each-ref", "--sort=-committerdate", layout, BRANCHES)
    branches = [line[2:].split(" ") for line in found.splitlines() if not line.startswith("*")]
    undecided = [(name.removeprefix(BRANCHES), commit, tree) for commit, tree, name in branches if commit not in tagged]
    released = {name: commit for name, commit, tree in undecided if tree in tagged}
    others = [(name, commit) for name, commit, tree in undecided if tree not in tagged and commit not in needed]
    return dict(others[keep:]) | released


def _retire(git: Git, branches: dict[str, str]) -> None:
    for name, commit in branches.items():
        git.set_reference(RETIRED + name, commit)
        git.run("update-ref", "-d", BRANCHES + name, commit)


def _retire_on_origin(git: Git) -> None:
    """Remove there what is retired here: it would be taken for a version that this clone does not know."""
    here = git.run("for-each-ref", "--format=%(objectname) %(refname)", RETIRED).splitlines()
    retired = {line.replace(RETIRED, BRANCHES) for line in here}
    heads = git.run("ls-remote", "--heads", ORIGIN, f"{BRANCHES}*", network=True).splitlines()
    gone = [f":{head.split()[1]}" for head in heads if " ".join(head.split()) in retired]
    if gone:
        git.run("push", "--quiet", ORIGIN, *gone, network=True)


def _require_certainty(git: Git) -> None:
    """A remote is shared: what is removed from it may be needed by a version that this clone has not seen."""
    doubts = []
    if git.run("rev-parse", "--is-shallow-repository") == "true":
        doubts.append("this clone is shallow (`git fetch --unshallow`)")
    if changed := git.run("status", "--porcelain", "--untracked-files=no"):
        doubts.append(f"{changed.splitlines()[0][3:]} is not committed")
    if git.has_origin():
        known = git.run("for-each-ref", "--format=%(objectname)%0a%(*objectname)", "refs/heads", "refs/tags").split()
        for line in git.run("ls-remote", "--heads", "--tags", "origin", network=True).splitlines():
            commit, name = line.split("\t")
            if commit not in known and not _behind(git, commit):
                doubts.append(f"{name.removesuffix('^{}')} of origin is missing here (`git fetch`, make a branch)")
    if doubts:
        raise ReleaseError(f"the DVC remote is left unchanged: {'; '.join(doubts)}; `simclr gc` cleans only this cache")


def _behind(git: Git, commit: str) -> bool:
    """Whether a branch of this clone has gone on from the commit."""
    try:
        return bool(git.run("for-each-ref", "--contains", commit, "refs/heads"))
    except ReleaseError:  # the commit is not here
        return False


def _find_needed(objects: cache.Cache) -> set[str]:
    """Every object that a version needs. Each listing is read once: hundreds of versions list thousands of files."""
    roots = objects.roots()
    needed, lost = set(roots), []
    for md5 in filter(lambda name: name.endswith(".dir"), roots):
        children = objects.children(md5)
        if children is None and objects.fetch(md5):
            children = objects.children(md5)
        if children is None:
            lost.append(f"{min(map(str, roots[md5]))} ({md5[:2]}/{md5[2:]})")
        else:
            needed.update(children.values())
    if lost:
        raise DvcError(
            f"nothing was removed: the listing of {'; '.join(sorted(lost)[:3])} is neither in the cache nor in a "
            "remote, so it is not known which files it needs; `simclr fsck` looks for a copy; to give up a lost "
            "version, delete its branch or tag first"
        )
    return needed
