"""What the stages report: one frozen dataclass for each JSON file, for the stage that writes it and those that read it.

Gates, status, summary, release notes and the UI read these files, and DVC tracks those under reports/. Fields stand in
the order of the file. Percentages are of test images; what could not be measured is None, and ``reason`` says why.
A field with a default is younger than the first release: reports that were committed before it can be read as well.

Standard dataclasses rather than pydantic models: a model converts numbers on the way in (81 to 81.0), and equal results
have to give equal bytes. pydantic checks what is read, strictly: "70" is not a number, nor is NaN. Unknown keys pass.
"""

import fnmatch
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Any, ClassVar, NoReturn, TypeVar, cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from deploy.artifact import write_atomically
from deploy.plural import listed
from simclr_core.errors import ReportError

Parsed = TypeVar("Parsed")
Saved = Mapping[str, JsonValue]  # reports of a commit: what each says, by the name of its file without ".json"


@dataclass(frozen=True)
class Report:
    """Base of every report; ``path`` is relative to the workspace, with a ``*`` if the stage writes several."""

    path: ClassVar[str]
    ascii: ClassVar[bool] = True  # whether letters beyond ASCII are escaped in the file

    @property
    def file(self) -> str:
        return self.path


AnyReport = TypeVar("AnyReport", bound=Report)


@dataclass(frozen=True, kw_only=True)
class PretrainReport(Report):
    path: ClassVar[str] = "reports/pretrain.json"

    init: str = "scratch"
    epochs: int
    steps: int
    loss_first: float
    loss_last: float
    loss_chance: float
    finite: bool
    collapsed: bool
    learning_rate_scale: float = 1.0
    knn_top1: float | None
    probe_top1: float | None = None
    effective_rank: float
    feature_std: float
    effective_rank_z: float | None = None
    feature_std_z: float | None = None
    alignment: float
    uniformity: float
    parameters: int
    precision: str = "float32"
    precision_fallback: str | None = None  # why not what was asked for
    compiled: bool = False
    compile_fallback: str | None = None
    skipped_steps: int = 0  # by the loss scaler of float16
    kept_epoch: int | None = None  # which epoch's network is published; None: the last one's
    processes: int = 1  # over which gradients were summed: another number gives other last bits


@dataclass(frozen=True)
class ServedAccuracy:
    """Of what onnxruntime gives for the image files; where an image may have several labels, the mean average
    precisions in place of the accuracies."""

    knn_top1: float | None
    classifier_top1: float | None
    knn_precision: float | None = None
    classifier_precision: float | None = None


@dataclass(frozen=True)
class VariantReport:
    """Of a variant of the encoder, next to fp32; ``tolerance`` is what it may differ by on another machine."""

    method: str
    size_ratio: float
    cosine_mean: float
    batch_cosine_min: float
    knn_top1: float | None
    classifier_top1: float | None
    tolerance: dict[str, float]
    undecided: str | None = None  # why its accuracy could not be judged
    knn_precision: float | None = None
    classifier_precision: float | None = None


@dataclass(frozen=True)
class ClassResults:
    """Of one class: the share of its images that are found, and of the answers with it that are right."""

    images: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class ClassifierResults:
    """How sure against how right, in percentage points (``calibration``), and each class on its own."""

    test_images: int
    temperature: float
    calibration_error_before: float
    calibration_error: float
    per_class: dict[str, ClassResults]


@dataclass(frozen=True)
class NoResults:
    """Without a classifier or labeled test images."""


@dataclass(frozen=True)
class ServedPixels:
    """Cosines between the embeddings of files as they came and of what training saw of them; ``worst`` is a SHA-256."""

    images: int
    cosine_median: float
    cosine_min: float
    worst: str


@dataclass(frozen=True)
class ExportReport(Report):
    path: ClassVar[str] = "reports/export.json"
    ascii: ClassVar[bool] = False

    images: int
    cosine_min: float
    max_abs: float
    passed: bool
    bundle: str
    source: str
    megabytes: float
    variants: dict[str, VariantReport | ServedAccuracy]  # fp32 is what the others are held against
    left_out: dict[str, str]  # why, by name
    results: ClassifierResults | NoResults = field(default_factory=NoResults)
    served: ServedPixels | None = None  # None: what was prepared has no files as they came


@dataclass(frozen=True)
class LatencyReport(Report):
    """Medians on one thread of this machine; the ids of both bundles tell which bundles it is about."""

    path: ClassVar[str] = ".simclr/timings/latency.json"

    bundle: str
    champion: str | None
    p50_ms: float
    champion_p50_ms: float | None
    rounds: int


def write(workspace: Path, report: Report) -> None:
    text = json.dumps(asdict(report), indent=2, ensure_ascii=report.ascii, allow_nan=False)
    write_atomically(workspace / report.file, text + "\n")


def read(workspace: Path, model: type[AnyReport], path: str | None = None) -> AnyReport:
    """A report; of a stage that writes several, the one at ``path``, relative to the workspace.

    Raises:
        ReportError: it is missing, is not JSON, or lacks something.
    """
    path = path or model.path
    try:
        content = load_json(workspace / path)
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {_reason(error)}; run the stage that writes it again") from None
    return parse(content, model, path)


def read_each(workspace: Path, model: type[AnyReport]) -> list[AnyReport]:
    """Every report of a stage that writes several, by name, at least one.

    Raises:
        ReportError: as ``read``.
    """
    return [read(workspace, model, path) for path in _paths(workspace, model) or [model.path]]


def known(workspace: Path, model: type[AnyReport], path: str | None = None) -> AnyReport | None:
    """As ``read``, but None for what cannot be read; the gates report it."""
    with suppress(ReportError):
        return read(workspace, model, path)
    return None


def known_each(workspace: Path, model: type[AnyReport]) -> list[AnyReport]:
    """As ``read_each``, without those that cannot be read."""
    found = (known(workspace, model, path) for path in _paths(workspace, model))
    return [one for one in found if one is not None]


def find_in(reports: Saved, model: type[AnyReport]) -> AnyReport | None:
    """As ``known``, of a commit."""
    return next(iter(find_each_in(reports, model)), None)


def find_each_in(reports: Saved, model: type[AnyReport]) -> list[AnyReport]:
    """As ``known_each``, of a commit."""
    found = []
    for name in fnmatch.filter(sorted(reports), PurePath(model.path).stem):
        with suppress(ReportError):
            found.append(parse(reports[name], model, name))
    return found


def _paths(workspace: Path, model: type[Report]) -> list[str]:
    return [path.relative_to(workspace).as_posix() for path in sorted(workspace.glob(model.path))]


def parse(content: object, model: type[Parsed], source: str) -> Parsed:
    """A dataclass from what JSON says; ``source`` names it to a person.

    Raises:
        ReportError: something is missing or of another type.
    """
    try:
        found: Parsed = _adapter(cast("Any", model)).validate_json(json.dumps(content, allow_nan=False), strict=True)
        return found
    except ValidationError as error:
        faults = [_fault(one["loc"], one["type"], one["msg"]) for one in error.errors()]
        raise ReportError(
            f"{source} lacks what is needed: {listed(faults, 3, '; ')}; run the stage that writes it again"
        ) from None
    except ValueError as error:  # of json.dumps: not a number
        raise ReportError(f"{source} cannot be read: {error}; run the stage that writes it again") from None


@cache
def _adapter(model: type[Any]) -> TypeAdapter[Any]:
    """Made once for each class: that takes many times as long as to read a report with it."""
    return TypeAdapter(model)


def _fault(where: tuple[int | str, ...], kind: str, said: str) -> str:
    name = ".".join(map(str, where)) or "all of it"
    return f"{name} is missing" if kind == "missing" else f"{name}: {said.replace('Input should be', 'has to be')}"


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno} is not JSON"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def load_json(path: Path) -> Any:
    """JSON without Python's NaN and infinity, which no comparison with a threshold would notice.

    Raises:
        OSError, ValueError: it is not there, is not JSON, or has one of them.
    """
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
