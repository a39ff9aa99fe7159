"""``params.yaml``: the only knobs, one block per stage, read and changed as a whole.

An override from the command line or from the Dagster launchpad is written into the file before anything runs, so that
``dvc.lock`` tells what was really used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamsError
from pipeline.recipe import round_trip
from pipeline.validation.config import ValidateConfig
from pipeline.workspace import Workspace
from simclr_core.config import (
    CompareConfig,
    ExportConfig,
    FinetuneConfig,
    LinearEvalConfig,
    PretrainConfig,
    WatchConfig,
)
from simclr_core.errors import ConfigError
from simclr_core.params import Block, read_block


class IngestConfig(Block):
    """How files become raw batches."""

    settle_seconds: Annotated[float, Field(ge=0)] = 2.0  # a file changed more recently is still being written
    shard_megabytes: Annotated[int, Field(ge=1, le=4096)] = 256
    # The only labels there may be, so that a mistyped one is an error; without it every label is a class.
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None


class PrepareConfig(Block):
    """How accepted images become canonical ones."""

    short_side: Annotated[int, Field(ge=8)] = 256  # pixels; larger images are reduced to it, smaller ones kept
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    shard_megabytes: Annotated[int, Field(ge=1, le=4096)] = 256


class EmbeddingDriftConfig(Block):
    """What the champion compares of the newest batch with earlier ones; see ``pipeline.embedding_drift``.

    3,000 images of 28 pixels cost a small encoder a second; of 224 pixels, a ResNet-50 on a processor some minutes.
    """

    enabled: bool = True
    reference_images: Annotated[int, Field(ge=20, le=5000)] = 2000  # earlier ones; memory grows with their square
    batch_images: Annotated[int, Field(ge=10, le=5000)] = 1000
    min_images: Annotated[int, Field(ge=10)] = 50  # of a batch, and twice as many earlier ones; fewer are not judged
    auroc: Annotated[float, Field(gt=0.5, lt=1)] = 0.6  # of a classifier that tells new embeddings from earlier ones
    novel_share: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of new images, unlike any earlier; by chance it is 0.01


class RetrainingConfig(Block):
    """When new images start a run by themselves; see ``pipeline.retraining.decide``."""

    sources: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("inbox",)  # folders, globs, fsspec URLs
    schedule: str = "0 3 * * 0"  # cron: every Sunday at three
    timezone: str = "UTC"
    min_new_images: Annotated[int, Field(ge=1)] = 1000  # the sensor waits for as many
    min_new_images_after_drift: Annotated[int, Field(ge=1)] = 200  # as many are enough when the last report saw drift
    quiet_minutes: Annotated[float, Field(ge=0)] = (
        10.0  # nothing may have arrived for as long: a copy is still going on
    )
    max_age_days: Annotated[float, Field(gt=0)] = 30.0  # an encoder released longer ago is shown as overdue


class GatesConfig(Block):
    """What a candidate has to show before it may replace the champion. Losses are percentage points of top-1."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95  # of the one-sided paired test
    release_if: Literal["not_worse", "better"] = "not_worse"
    max_loss: Annotated[float, Field(ge=0, le=100)] = 2.0  # kNN and probe: a greater loss has to be ruled out
    max_low_label_loss: Annotated[float, Field(ge=0, le=100)] = 3.0  # fine-tuned accuracy, beyond both intervals
    max_latency_milliseconds: Annotated[float, Field(gt=0)] | None = None  # of one image, median
    max_latency_ratio: Annotated[float, Field(gt=0)] = 1.5  # to the champion's, measured beside it
    max_megabytes: Annotated[float, Field(gt=0)] | None = None  # of the ONNX file
    max_size_ratio: Annotated[float, Field(gt=0)] = 1.5
    old_index: Literal["report", "require"] = "report"  # must the champion's index answer the candidate's queries?
    max_old_index_loss: Annotated[float, Field(ge=0, le=100)] = 5.0


class ReleaseConfig(Block):
    """Where released encoders go, and in whose name."""

    registry: str = "registry"  # a folder that servers read; relative to the workspace
    require_remote: bool = False  # true: refuse to release what only this machine's DVC cache holds
    author: str = "simclr-bot"
    email: str = "simclr-bot@localhost"


class StorageConfig(Block):
    """How much disk a workspace may take."""

    min_free_gigabytes: Annotated[float, Field(ge=0)] = 2.0  # a run does not start with less
    max_cache_gigabytes: Annotated[float, Field(gt=0)] | None = None  # above, what no release needs is collected
    keep_releases: Annotated[int, Field(ge=1)] = 5  # bundles kept in the registry, beside the one that serves


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
    export: ExportConfig
    compare: CompareConfig
    retraining: RetrainingConfig
    gates: GatesConfig
    release: ReleaseConfig
    storage: StorageConfig


BLOCKS: dict[str, type[Block]] = dict(Params.__annotations__)


def read(workspace: Workspace) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: with every fault of every block.
    """
    return _read(workspace.params)


def override(workspace: Workspace, values: Mapping[str, str]) -> None:
    """Write values such as ``{"pretrain.epochs": "100"}`` into ``params.yaml``, keeping its comments.

    The file changes only if all of them are valid.

    Raises:
        ParamsError: an unknown key, or a value out of range.
    """
    from deploy.artifact import write_atomically  # brings numpy, and a code location reads these models when it loads

    if not values:
        return
    read(workspace)
    yaml = round_trip()
    document = yaml.load(workspace.params.read_text(encoding="utf-8"))
    for key, text in values.items():
        _assign(document, key, text)
    content = StringIO()
    yaml.dump(document, content)
    with TemporaryDirectory() as folder:
        candidate = Path(folder) / "params.yaml"
        candidate.write_text(content.getvalue(), encoding="utf-8")
        _read(candidate)
    write_atomically(workspace.params, content.getvalue())


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
        raise ParamsError(f"{key}: {text!r} is not a YAML value") from None


Model = TypeVar("Model", bound=Block)


def _read(path: Path) -> Params:
    faults: list[str] = []
    blocks: dict[str, Block] = {}
    for name, model in BLOCKS.items():
        try:
            blocks[name] = read_block(path, name, model)
        except ConfigError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise ParamsError(f"{path.name}: " + "; ".join(faults))
    return Params(**blocks)  # type: ignore[arg-type]  # each block was read as the type that BLOCKS names for it
