"""What dvc.yaml and dvc.lock say: the stages, what each reads and writes, and the hashes of what was computed.

DVC's own index does the reading, so templates, ``${params}`` and ``matrix`` are understood exactly as ``dvc repro``
understands them.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import StringIO
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.dvc.explained import failure
from pipeline.dvc.repository import open_repository
from pipeline.errors import DvcError

GRAPH = "dvc.yaml"
RAW = "data/raw"  # a source in every workspace, also before the first ingest has tracked it
CHAMPION = "models/champion"  # so is the released encoder that the next one has to beat


@dataclass(frozen=True)
class Out:
    """One output of a stage; ``path`` is relative to the workspace, with forward slashes."""

    path: str
    kind: Literal["data", "metric", "plot"] = "data"
    description: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, a matrix being one stage for each combination (``finetune@0.01``)."""

    name: str
    command: str
    description: str | None
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[Out, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> tuple[Out, ...]:
        """The outputs that count as its results: its data; without any, its metrics; without those, its plots."""
        kinds = ([out for out in self.outs if out.kind == kind] for kind in ("data", "metric", "plot"))
        return tuple(next(filter(None, kinds), []))

    @property
    def digest(self) -> str:
        """Changes when the definition of the stage does, and not with the contents of its inputs."""
        outs = [(out.path, out.kind) for out in self.outs]
        definition = json.dumps([self.command, self.deps, self.params, outs])
        return hashlib.sha256(definition.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Project:
    """The stages in the order of dvc.yaml, and the paths that are tracked without a command."""

    root: Path
    stages: tuple[Stage, ...]
    sources: tuple[str, ...]

    def upstream(self, stage: Stage) -> tuple[str, ...]:
        """Paths of the sources and results that a stage reads; to read a metric is to depend on what it measures."""
        found = [source for source in self.sources if any(overlap(dep, source) for dep in stage.deps)]
        for other in self.stages:
            read = [out for out in other.outs if any(overlap(dep, out.path) for dep in stage.deps)]
            direct = [out.path for out in read if out in other.data]
            found += direct or ([out.path for out in other.data] if read else [])
        return tuple(found)

    def select(self, name: str) -> tuple[Stage, ...]:
        """The stage of this name, or every combination of the matrix of this name.

        Raises:
            DvcError: there is none.
        """
        found = tuple(stage for stage in self.stages if name in (stage.name, stage.name.partition("@")[0]))
        if not found:
            known = ", ".join(stage.name for stage in self.stages)
            raise DvcError(f"dvc.yaml has no stage {name!r}; choose from: {known}")
        return found


@dataclass(frozen=True)
class Recorded:
    """What dvc.lock says of one input or output: DVC's hash and, for a tree, its number of files."""

    md5: str
    size: int
    files: int


@dataclass(frozen=True)
class Locked:
    """What dvc.lock says of one stage, by path: what it read and what it wrote when it was last completed."""

    deps: dict[str, Recorded] = field(default_factory=dict)
    outs: dict[str, Recorded] = field(default_factory=dict)


def overlap(one: str, other: str) -> bool:
    """Whether two paths are the same or one is inside the other."""
    a, b = PurePosixPath(one), PurePosixPath(other)
    return a.is_relative_to(b) or b.is_relative_to(a)


def load(root: Path) -> Project:
    """Read the project at ``root``.

    Raises:
        DvcError: ``root`` is not a DVC project, or dvc.yaml has a fault; DVC names it.
    """
    try:
        with open_repository(root) as repo:
            base = Path(repo.root_dir)
            repo.index.check_graph()
            found = list(repo.index.stages)
    except _faults() as error:
        raise failure(root, str(root / "dvc.yaml"), _reason(error)) from None
    ours = [stage for stage in found if stage.cmd and Path(stage.path) == base / "dvc.yaml"]
    tracked = {_relative(base, out.fs_path) for stage in found if not stage.cmd for out in stage.outs}
    return Project(root, tuple(_stage(base, stage) for stage in ours), tuple(sorted(tracked | {RAW, CHAMPION})))


def find_unchanged(root: Path) -> frozenset[str]:
    """The names of the stages that `dvc repro` would leave as they are.

    No process is started, and nothing is written. What DVC cannot tell, such as while another one holds its lock, is
    left out: the command that does the work names the reason.
    """
    from dvc.repo import lock_repo

    try:
        with open_repository(root) as repo, lock_repo(repo):
            return frozenset(stage.name for stage in repo.index.stages if stage.cmd and not stage.status())
    except _faults():
        return frozenset()


def track(root: Path, path: str) -> None:
    """`dvc add PATH`, without the half second of a process. The bytes are on disk once, where links are possible.

    Raises:
        DvcError: with DVC's own words.
        BusyError: another ``dvc`` is at work on the same files.
    """
    try:
        # A person's `dvc push` may hold the lock for a moment. DVC shows its progress on standard error.
        with open_repository(root, _wait_for_lock=True) as repo, redirect_stderr(StringIO()):
            repo.scm_context.quiet = True
            # What is tracked is never changed in place. DVC copies it if it may try a reflink before a hard link.
            repo.cache.local.cache_types.sort(key=lambda link: link != "hardlink")
            repo.add(str(root / path))
    except _faults() as error:
        raise failure(root, f"`dvc add {path}` failed", _reason(error)) from None


def config_files(root: Path) -> list[Path]:
    """Where DVC reads its settings: of the workspace at ``root``, the user and the system. They need not exist."""
    from dvc.dirs import global_config_dir, system_config_dir

    folders = [Path(folder) for folder in (global_config_dir(), system_config_dir())]
    return [root / ".dvc" / "config", root / ".dvc" / "config.local", *(folder / "config" for folder in folders)]


def read_definitions(root: Path) -> dict[str, dict[str, Any]]:
    """The stages as dvc.yaml spells them, without what DVC makes of it; also where there is no project, as in the
    template of a workspace.

    Raises:
        DvcError: dvc.yaml has a fault; DVC names it.
    """
    path, document = root / GRAPH, None
    with suppress(YAMLError):
        document = (YAML(typ="safe").load(path) if path.exists() else None) or {}
    stages = _well_formed(document)
    if stages is None:
        load(root)
    return stages or {}


def _well_formed(document: Any) -> dict[str, dict[str, Any]] | None:
    """The stages, if they are a mapping, and each has lists of what it reads."""
    stages = (document.get("stages") or {}) if isinstance(document, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        return None
    lists = (stage.get(key, []) for stage in stages.values() for key in ("deps", "params"))
    return stages if all(isinstance(one, list) for one in lists) else None


def stage_names(root: Path) -> list[str]:
    """Those that ``load`` finds, by the spelling alone; for the template of a workspace, which DVC does not know."""
    found = []
    for name, definition in read_definitions(root).items():
        combinations = product(*definition.get("matrix", {}).values())
        found += ["@".join(filter(None, (name, "-".join(map(str, one))))) for one in combinations]
    return found


def read_lock(root: Path) -> dict[str, Locked]:
    """By the name of each stage that was ever completed.

    Raises:
        DvcError: dvc.lock is not YAML.
    """
    path = root / "dvc.lock"
    try:
        return dict(_parse_lock(path.read_bytes())) if path.exists() else {}
    except yaml.YAMLError:
        raise DvcError(f"{path}: is not valid YAML; restore it with `git checkout dvc.lock`") from None


@lru_cache(maxsize=1)
def _parse_lock(content: bytes) -> dict[str, Locked]:
    """Once for each content: a run reads it after each stage, a tick of the sensor every minute."""
    stages = (yaml.safe_load(content) or {}).get("stages", {})
    return {name: Locked(_entries(stage, "deps"), _entries(stage, "outs")) for name, stage in stages.items()}


def find_never_run(root: Path, stages: Iterable[str]) -> set[str]:
    """Those of the stages of dvc.yaml that were never completed; of a file that is tracked without one, DVC tells.

    Raises:
        DvcError: dvc.lock is not YAML, or dvc.yaml has a fault.
    """
    defined, completed = read_definitions(root), read_lock(root)
    return {name for name in stages if name.partition("@")[0] in defined and name not in completed}


def read_outs(root: Path, stage: Stage) -> dict[str, Recorded]:
    """Path of each output → what dvc.lock records of it.

    Raises:
        DvcError: the stage has never been completed, or dvc.lock is not YAML.
    """
    locked = read_lock(root).get(stage.name)
    if locked is None:
        path, name = root / "dvc.lock", stage.name
        raise DvcError(f"{path}: has no result of stage {name}; run it with `simclr run --select {name}`")
    return locked.outs


def read_tracked(root: Path, path: str) -> Recorded:
    """What ``<path>.dvc`` records of a file or folder that was added without a command.

    Raises:
        DvcError: it is not what `dvc add` writes.
    """
    file = root / f"{path}.dvc"
    try:
        return _recorded(yaml.safe_load(file.read_text(encoding="utf-8"))["outs"][0])
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError):
        raise DvcError(f"{file}: cannot be read as what `dvc add` writes; restore it with `git checkout`") from None


def _entries(stage: dict[str, Any], kind: Literal["deps", "outs"]) -> dict[str, Recorded]:
    """Without those that DVC knows by something else than its MD5, such as a URL by its ETag."""
    return {one["path"]: _recorded(one) for one in stage.get(kind, []) if "md5" in one}


def _recorded(out: dict[str, Any]) -> Recorded:
    return Recorded(md5=out["md5"], size=out.get("size", 0), files=out.get("nfiles", 1))


def _stage(base: Path, stage: Any) -> Stage:
    return Stage(
        name=stage.name,  # its `addressing` depends on the current folder
        command=stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd),
        description=stage.desc,
        deps=tuple(_relative(base, dep.fs_path) for dep in stage.deps if dep not in stage.params),
        params=tuple(sorted(f"{dep.def_path}:{key}" for dep in stage.params for key in dep.params)),
        outs=tuple(_out(base, out) for out in stage.outs),
        meta=stage.meta or {},
    )


def _out(base: Path, out: Any) -> Out:
    kind: Literal["data", "metric", "plot"] = "metric" if out.is_metric else "plot" if out.is_plot else "data"
    return Out(_relative(base, out.fs_path), kind, out.annot.desc)


def _relative(base: Path, path: str) -> str:
    absolute = Path(path)
    return absolute.relative_to(base).as_posix() if absolute.is_relative_to(base) else absolute.as_posix()


def _faults() -> tuple[type[Exception], ...]:
    """What DVC raises when it cannot do its work: also causes that it leaves to its command, such as a full disk."""
    from dvc.exceptions import DvcException

    return DvcException, OSError, sqlite3.Error, ValueError, LookupError, MemoryError


def _reason(error: BaseException) -> str:
    """What DVC's command line would print: the error and its causes, on one line."""
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(" ".join(str(cause).split()) or type(cause).__name__)
        cause = cause.__cause__
    return ": ".join(cause for cause in causes if cause)
