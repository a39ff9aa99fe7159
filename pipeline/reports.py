"""What the pipeline's own stages report; ``simclr_core.reports`` has those of the encoder's, and writes and reads all.

A field with a default is younger than the first release, as there.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from simclr_core.reports import Report

Severity = Literal["critical", "warning", "info"]
DriftVerdict = Literal["none", "drift", "broken", "not judged"]


@dataclass(frozen=True)
class ImageCounts:
    """Files, and different contents among them; ``quarantined`` by the first reason of each file."""

    ingested: int
    accepted: int
    converted: int
    quarantined: dict[str, int]
    contents: int | None = None
    contents_quarantined: int | None = None


@dataclass(frozen=True)
class Statistic:
    """How far the newest batch is from the earlier ones in one respect, and how far it may be."""

    name: str
    effect: float
    threshold: float
    drifted: bool

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class FoundShape:
    """A batch that has the shape of a known bug."""

    batch: str
    shape: str


@dataclass(frozen=True)
class DriftReport:
    """The newest batch against the earlier ones, by the statistics of the images."""

    verdict: DriftVerdict
    batch: str | None
    reference_images: int
    batch_images: int
    auroc: float | None
    statistics: tuple[Statistic, ...]
    shapes: tuple[FoundShape, ...]
    advice: str


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation.

    ``observed`` is the share of rows that conform, or the aggregate itself. With an ``error`` nothing is known.
    """

    name: str
    suite: str
    severity: Severity
    success: bool
    observed: float | str | None
    threshold: str
    unexpected_count: int | None
    sample_ids: list[str]
    error: str | None

    @property
    def holds(self) -> bool:
        """Whether the pipeline may continue, as far as this expectation is concerned."""
        return self.success or (self.severity != "critical" and not self.error)


@dataclass(frozen=True, kw_only=True)
class ValidationReport(Report):
    """``passed``: the pipeline may continue."""

    path: ClassVar[str] = "reports/validation.json"

    images: ImageCounts
    passed: bool
    drift: DriftReport | None = None
    expectations: tuple[Outcome, ...]


@dataclass(frozen=True)
class ReleasedEncoder:
    """The encoder that looks; all is None before the first release."""

    version: str | None = None
    bundle: str | None = None
    preprocessing: dict[str, int] | None = None


@dataclass(frozen=True)
class Novelty:
    """One of the newest images, the earlier one nearest to it, and how far their embeddings are apart (0 to 2)."""

    sha256: str
    nearest: str
    distance: float


@dataclass(frozen=True)
class EmbeddingDriftReport(Report):
    path: ClassVar[str] = "reports/embedding_drift.json"

    verdict: DriftVerdict  # never "broken"
    batch: str
    champion: ReleasedEncoder
    reference_images: int
    batch_images: int
    auroc: float | None
    mmd: float | None
    mmd_p_value: float | None
    novel_share: float | None
    statistics: tuple[Statistic, ...]
    novel: tuple[Novelty, ...]
    advice: str
