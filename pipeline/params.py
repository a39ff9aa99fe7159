"""``params.yaml``: the only knobs, one block per stage, read and changed as a whole.

An override from the command line or from the Dagster launchpad is written into the file before anything runs, so that
``dvc.lock`` tells what was really used.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deploy.artifact import write_atomically
from pipeline.config import (
    OCCUPIED,
    SEPARATE,
    EmbeddingDriftConfig,
    GatesConfig,
    IngestConfig,
    PrepareConfig,
    ReleaseConfig,
    RetrainingConfig,
    StorageConfig,
    ValidateConfig,
)
from pipeline.dvc.project import read_definitions
from pipeline.errors import ParamsError, WorkspaceError
from pipeline.recipes.recipe import round_trip
from pipeline.workspace import Workspace, expand_home
from simclr_core.config import (
    CompareConfig,
    DistillConfig,
    ExportConfig,
    FinetuneConfig,
    LinearEvalConfig,
    PretrainConfig,
    WatchConfig,
)
from simclr_core.errors import ConfigError
from simclr_core.params import Block, read_blocks


@dataclass(frozen=True)
class Params:
    """Every block of ``params.yaml``."""

    ingest: IngestConfig
    validate: ValidateConfig
    prepare: PrepareConfig
    embedding_drift: EmbeddingDriftConfig
    pretrain: PretrainConfig
    watch: WatchConfig
    linear_eval: LinearEvalConfig
    finetune: FinetuneConfig
    distill: DistillConfig
    export: ExportConfig
    compare: CompareConfig
    retraining: RetrainingConfig
    gates: GatesConfig
    release: ReleaseConfig
    storage: StorageConfig

    @property
    def prepared_side(self) -> int:
        """The shorter side to which ``prepare`` reduces larger images, in pixels."""
        return self.prepare.short_side or self.pretrain.resize or self.pretrain.image_size


BLOCKS: dict[str, type[Block]] = dict(Params.__annotations__)


def read(workspace: Workspace) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: with every fault of every block.
    """
    return _read(workspace.params, workspace.root)


def override(
    workspace: Workspace, values: Mapping[str, str], require: Callable[[Params], None] = lambda _: None
) -> None:
    """Write values such as ``{"pretrain.epochs": "100"}`` into ``params.yaml``, keeping its comments.

    The file changes only if all of them are valid, and ``require`` raises nothing for what it would then say.

    Raises:
        ParamsError: an unknown key, or a value out of range.
    """
    present = read(workspace)
    if not values:
        require(present)
        return
    yaml = round_trip()
    document = yaml.load(workspace.params.read_text(encoding="utf-8"))
    for key, text in values.items():
        _assign(document, key, text)
    content = StringIO()
    yaml.dump(document, content)
    with TemporaryDirectory() as folder:
        candidate = Path(folder) / "params.yaml"
        candidate.write_text(content.getvalue(), encoding="utf-8")
        require(_read(candidate, workspace.root))
    write_atomically(workspace.params, content.getvalue())


def complete(workspace: Workspace) -> list[str]:
    """Write down the defaults that dvc.yaml names: DVC looks for them in params.yaml, and fails without.

    So it is after an upgrade, or where a person has replaced params.yaml. Returns what was written, in sentences.
    """
    params, defaults = read(workspace), dict[str, str]()
    named = [name for stage in read_definitions(workspace.root).values() for name in stage.get("params", ())]
    for block, _, key in sorted({name.partition(".") for name in named if isinstance(name, str)}):
        config = getattr(params, block, None)
        if config and key in type(config).model_fields and key not in config.model_fields_set:
            value = config.model_dump(mode="json")[key]
            defaults[f"{block}.{key}"] = value if isinstance(value, str) else json.dumps(value)
    override(workspace, defaults)
    return [f"params.yaml: added {name}: {text}, the default, which dvc.yaml names" for name, text in defaults.items()]


def _assign(document: dict[str, Any], key: str, text: str) -> None:
    *parents, name = key.split(".")
    if not parents or parents[0] not in BLOCKS:
        raise ParamsError(f"{key!r}: unknown block; a key is BLOCK.KEY, and the blocks are: {', '.join(BLOCKS)}")
    for parent in parents:
        if document.get(parent) is None:
            document[parent] = {}
        document = document[parent]
        if not isinstance(document, dict):
            raise ParamsError(f"{key!r}: {parent!r} is a value, not a block")
    try:
        document[name] = YAML(typ="safe").load(text)
    except YAMLError:
        advice = f"text with such characters needs quotes: {key}=\"'...'\""
        raise ParamsError(f"{key}: {text!r} is not a YAML value; {advice}") from None


def _read(path: Path, root: Path) -> Params:
    try:
        blocks = read_blocks(path, BLOCKS)
    except ConfigError as error:
        raise ParamsError(f"{path.name}: " + "; ".join(error.faults)) from None
    params = Params(**blocks)  # type: ignore[arg-type]  # each block was read as the type that BLOCKS names for it
    if faults := [*_contradictions(params), *_misplaced(params, root)]:
        raise ParamsError(f"{path.name}: " + "; ".join(faults))
    return params


def _contradictions(params: Params) -> Iterator[str]:
    """Rules over several blocks: what one stage would make is of no use to another that comes hours later."""
    pretrain, kept = params.pretrain, params.prepare.short_side
    side, name = (pretrain.image_size, "image_size") if pretrain.resize is None else (pretrain.resize, "resize")
    if kept is not None and kept < side:
        yield (
            f"prepare.short_side: given {kept}, allowed: null, or at least pretrain.{name} ({side}); images would be "
            "reduced and then enlarged again for training and serving"
        )
    followed = [f"pretrain.{name}" for name in ("image_size", "resize") if name not in pretrain.model_fields_set]
    if kept is None and followed:
        yield (
            f"{' and '.join(followed)}: missing, but prepare.short_side is null and follows it; write it down, "
            "such as `image_size: 64` and `resize: null`"
        )
    layers, most = params.finetune.head_layers, pretrain.projection_head.layers
    if layers > most:
        yield f"finetune.head_layers: given {layers}, allowed: at most pretrain.projection_head.layers ({most})"


def _misplaced(params: Params, root: Path) -> Iterator[str]:
    """The registry is not in a folder that holds something else, nor is such a folder in it, wherever links lead."""
    place, home = _real(root / params.release.registry), _real(root)
    named = [re.sub(r"[^/]*[*?\[].*", "", name) for name in params.retraining.sources if "://" not in name]
    try:
        sources = [_real(root / expand_home(name)) for name in named]
    except WorkspaceError as error:
        yield f"retraining.sources: {error}"
        return
    used = [home / name for name in OCCUPIED] + [_real(root / name) for name in OCCUPIED]
    used += [source for source in sources if not home.is_relative_to(source)]
    if home.is_relative_to(place) or any(place.is_relative_to(one) or one.is_relative_to(place) for one in used):
        yield f"release.registry: given {params.release.registry!r}, allowed: {SEPARATE}"


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
