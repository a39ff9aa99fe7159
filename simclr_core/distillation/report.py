"""``reports/distill.json``."""

from dataclasses import dataclass
from typing import ClassVar

from simclr_core.evaluation_reports import PairedCounts, Scores
from simclr_core.reports import Report


@dataclass(frozen=True, kw_only=True)
class DistillReport(Report):
    """What a student has learned from its teacher. Percentages are of test images; None where there is nothing to
    measure, and ``reason`` says why, also where the stage is off.

    ``agreement`` is how many test images student and teacher take for the same class; ``paired`` counts
    what the student alone has right (``trained_only``), and what the teacher alone has.
    """

    path: ClassVar[str] = "reports/distill.json"

    teacher: str | None
    reason: str | None
    teaches: str | None = None  # classes or vectors
    top1: float | None = None
    teacher_top1: float | None = None
    agreement: float | None = None
    test_images: int | None = None
    paired: PairedCounts | None = None
    scores: Scores | None = None
    knn_top1: float | None = None  # of h, by labels of training images
    probe_top1: float | None = None
    parameters: int | None = None
    teacher_parameters: int | None = None
    labels: int = 0  # that have a part in the loss
    epochs: int | None = None
    steps: int | None = None
    loss_first: float | None = None
    loss_last: float | None = None
    collapsed: bool = False
    precision: str = "float32"
    processes: int = 1
