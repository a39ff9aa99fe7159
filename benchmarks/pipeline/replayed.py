"""Releases and runs as a workspace has them after years, written in seconds: nothing is trained for them.

Each is made like the one that the workspace has released last, on the data that it has now, with models that no other
has: small files in DVC's cache. A release gets its commit, its two tags and its record in the registry, a run the
commit on a branch ``runs/*`` by which it keeps its state. The encoder that serves stays the same.
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.dvc import cache, remote
from pipeline.dvc.project import read_lock
from pipeline.git import Git
from pipeline.release.facts import card, facts
from pipeline.release.releases import open_releases
from pipeline.release.versions import STAGE, History, read_history
from pipeline.workspace import Workspace

MODELS = "models/"
BETWEEN = timedelta(minutes=1)


@dataclass(frozen=True)
class State:
    """What a run of the workspace would commit now, and the models in it: MD5 → paths within, empty for a file."""

    files: dict[str, bytes]
    models: dict[str, list[str]]


def replay(workspace: Workspace, releases: int, runs: int) -> None:
    """Add this many releases, and then this many runs without one, to a workspace that has released something."""
    opened = open_releases(workspace)
    history, git, state = opened.history, opened.git, read_state(workspace)
    at = max(history.newest, _newest_commit(git)) + BETWEEN
    stream: list[bytes] = []
    with cache.opened(workspace.root) as objects:
        for number in range(1, releases + runs + 1):
            made = at + number * BETWEEN
            lock = _with_other_models(state, objects, f"{made} {number}")
            stream += _committed(state.files | {"dvc.lock": lock}, number, made, number <= releases)
            if number <= releases:
                stream += _tagged(history, number, made)
    command = ["git", "fast-import", "--quiet", "--done"]
    subprocess.run(command, cwd=workspace.root, input=b"".join([*stream, b"done\n"]), check=True)
    after = read_history(git, history.artifact)
    for about in facts(git, after, [version for version in after.versions if version.name not in history.taken]):
        opened.registry.record(about.version, about.to_json(), card(about, ""))
    after.assign(git, history.serving)


def read_state(workspace: Workspace) -> State:
    files = {path: workspace.root / path for path in remote.list_committed(workspace.root)}
    outs = {path: one.md5 for stage in read_lock(workspace.root).values() for path, one in stage.outs.items()}
    with cache.opened(workspace.root) as objects:
        models = {md5: [*(objects.children(md5) or ())] for path, md5 in outs.items() if path.startswith(MODELS)}
    return State({path: file.read_bytes() for path, file in files.items() if file.is_file()}, models)


def _with_other_models(state: State, objects: cache.Cache, name: str) -> bytes:
    """dvc.lock with models that are called so, and that are put into the cache."""
    lock = state.files["dvc.lock"]
    for md5, paths in state.models.items():
        listed = [{"md5": _put(objects, f"{name} {md5} {path}"), "relpath": path} for path in paths]
        new = _put(objects, json.dumps(listed), ".dir") if listed else _put(objects, f"{name} {md5}")
        lock = lock.replace(md5.encode(), new.encode())
    return lock


def _put(objects: cache.Cache, text: str, suffix: str = "") -> str:
    md5 = cache.digest([text.encode()]) + suffix
    path = objects.path(md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    path.chmod(0o444)
    return md5


def _committed(files: dict[str, bytes], number: int, made: datetime, released: bool) -> Iterator[bytes]:
    """A commit on HEAD, as `git fast-import` takes it."""
    bundle = hashlib.sha256(files["dvc.lock"]).hexdigest()
    branch = f"refs/heads/runs/{bundle[: 12 if released else 8]}"
    said = f"Results of run {bundle[:12]}\n\nGate representation: no loss\n\nBundle: {bundle}\n\n[skip ci]\n"
    yield f"reset {branch}\nfrom HEAD^0\n\ncommit {branch}\nmark :{number}\ncommitter {_who(made)}\n".encode()
    yield _data(said.encode())
    for path, content in files.items():
        yield f"M 100644 inline {path}\n".encode() + _data(content)
    yield b"\n"


def _tagged(history: History, number: int, made: datetime) -> Iterator[bytes]:
    """The commit as the next version, and as the one that serves."""
    version = f"v0.0.{int(history.next.rpartition('.')[2]) + number - 1}"
    for tag in (f"{history.artifact}@{version}", f"{history.artifact}#{STAGE}#{history.switches + number}"):
        yield f"tag {tag}\nfrom :{number}\ntagger {_who(made)}\n".encode() + _data(f"{tag}\n".encode())


def _who(made: datetime) -> str:
    return f"simclr <simclr@localhost> {int(made.timestamp())} +0000"


def _data(content: bytes) -> bytes:
    return f"data {len(content)}\n".encode() + content + b"\n"


def _newest_commit(git: Git) -> datetime:
    layout = "--format=%(committerdate:unix)"
    newest = git.run("for-each-ref", "--count=1", "--sort=-committerdate", layout, "refs/heads")
    return datetime.fromtimestamp(int(newest), UTC)
