"""What a person looks at before a decision: the candidate next to the champion, as a part of a page of the UI.

It is written when the person is asked, while the images and reports are those of the candidate, into
``.simclr/candidates/<name>.html``; a purge removes it, as it shows images. Whether one can still decide is not in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import polars as pl

from deploy.artifact import write_atomically
from deploy.plural import counted
from pipeline import waiting
from pipeline.explore.explore import TABLE, PreparedImages, folder_of
from pipeline.gates.precision import gain_interval
from pipeline.params import read
from pipeline.reports import EmbeddingDriftReport, ValidationReport
from pipeline.run_report.page import thumbnail
from pipeline.validation.report.template import load
from pipeline.validation.report.thumbnails import jpeg
from pipeline.waiting import Candidate, candidate_page
from pipeline.workspace import Workspace
from simclr_core.champion import Champion
from simclr_core.evaluation.paired_comparison import Interval, interval
from simclr_core.evaluation_reports import CompareReport, Estimate, FinetuneReport, LinearEvalReport, Measured, Paired
from simclr_core.reports import LatencyReport, Saved, find_each_in, find_in, known, known_each

MOST_PICTURES = 24  # of each kind
RENAMED = {"prediction": "candidate"}
CLASSIFIERS = {"knn": "kNN", "probe": "linear probe"}


@dataclass(frozen=True)
class Row:
    """One number of both, as people read it; ``difference`` with its interval."""

    name: str
    candidate: str
    champion: str
    difference: str = "–"


@dataclass(frozen=True)
class Flipped:
    """A labeled test image that one of the two gets right and the other wrong."""

    path: str
    sha256: str
    label: str
    candidate: str
    champion: str


def write(workspace: Workspace, candidate: Candidate) -> None:
    """Write the part of the page about this candidate, of the workspace, and remove those that no one needs."""
    target = candidate_page(workspace.root, candidate.name)
    root = workspace.root
    found = {"drift": known(root, EmbeddingDriftReport), "validation": known(root, ValidationReport)}
    images, lost, won = flipped(workspace)
    pictures = _pictures(workspace, [*lost[:MOST_PICTURES], *won[:MOST_PICTURES]])
    page = load(Path(__file__).with_name("candidate.html.j2")).render(
        candidate=candidate,
        rows=list(compare(workspace)),
        images=images,
        lost=lost,
        won=won,
        most=MOST_PICTURES,
        pictures=pictures,
        **found,
    )
    waits = {one.name for one in waiting.waiting(root / read(workspace).release.registry)}
    for old in target.parent.glob("*.html"):
        if old.stem not in waits:
            old.unlink()
    write_atomically(target, page)


def compare(workspace: Workspace) -> Iterator[Row]:
    """Accuracies on the same test images, what fine-tuning reached, and what it costs to serve them."""
    root, confidence = workspace.root, read(workspace).gates.confidence
    report, pinned = known(root, CompareReport), known(root, Champion)
    if report:
        yield from _on_same_images(report, confidence)
    yield from _each_in_its_run(root, pinned.reports if pinned else {})
    if report:
        size = report.megabytes
        yield Row("ONNX file", f"{size.candidate:.1f} MB", "–" if size.champion is None else f"{size.champion:.1f} MB")
    latency = known(root, LatencyReport)
    if latency and latency.champion == (pinned.bundle if pinned else None):
        released = "–" if latency.champion_p50_ms is None else f"{latency.champion_p50_ms:.2f} ms"
        yield Row("one image on one thread", f"{latency.p50_ms:.2f} ms", released)


def _on_same_images(report: CompareReport, confidence: float) -> Iterator[Row]:
    """With bounds that hold with this confidence each, as the gates ask for."""
    for name, pair in (("knn", report.knn), ("probe", report.probe)):
        if pair.candidate is not None:
            yield _paired(CLASSIFIERS[name], pair, report.test_images, confidence)
    for name, gain in report.gains.items():
        title = f"{CLASSIFIERS.get(name, name)}, mean average precision"
        yield Row(title, _percent(gain.trained), _percent(gain.other), _points(gain_interval(gain, confidence)))
    if views := report.label_free:
        title = "neighbors that two views of an image share"
        yield Row(title, _percent(views.candidate), _percent(views.champion), f"{views.difference:+.1f} points")


def _each_in_its_run(root: Path, before: Saved) -> Iterator[Row]:
    """What was measured without the other one; ``before`` are the champion's reports."""
    evaluation, other = known(root, LinearEvalReport), find_in(before, LinearEvalReport)
    for name, scores in evaluation.scores.items() if evaluation else ():
        released = other.scores.get(name) if other else None
        title = f"{CLASSIFIERS.get(name, name)}, each in its run"
        yield Row(title, _estimate(scores.top1), _estimate(released.top1 if released else None))
    finetuned = {one.fraction: one for one in find_each_in(before, FinetuneReport)}
    for one in known_each(root, FinetuneReport):
        if one.reached is not None:
            title = f"fine-tuned on {counted(one.labels, 'label')}, each in its run"
            yield Row(title, _finetuned(one), _finetuned(finetuned.get(one.fraction)))


def flipped(workspace: Workspace) -> tuple[int, list[Flipped], list[Flipped]]:
    """How many labeled test images both encoders were asked about as they are served; those that the champion alone has
    right, and those that the candidate alone has, the surest mistakes first."""
    table = folder_of(workspace) / TABLE
    if not table.is_file():
        return 0, [], []
    asked = pl.read_parquet(table).filter(
        (pl.col("split") == "test") & pl.all_horizontal(pl.col("label", "prediction", "champion").is_not_null())
    )
    right, before = pl.col("prediction") == pl.col("label"), pl.col("champion") == pl.col("label")
    ordered = asked.sort(["confidence", "sha256"], descending=[True, False])
    names = [one.name for one in fields(Flipped)]
    lost, won = (
        [Flipped(**row) for row in ordered.filter(one).rename(RENAMED).select(names).iter_rows(named=True)]
        for one in (before & ~right, right & ~before)
    )
    return len(asked), lost, won


def _pictures(workspace: Workspace, shown: Sequence[Flipped]) -> dict[str, str]:
    """JPEGs in base64 by SHA-256, of the prepared images."""
    images = PreparedImages(workspace.prepared) if shown else None
    return {one.sha256: jpeg(thumbnail(images.pixels(one.sha256))) for one in shown if images}


def _paired(title: str, pair: Paired, images: int, confidence: float) -> Row:
    difference = "–"
    if pair.champion is not None and pair.candidate_only is not None and pair.champion_only is not None:
        difference = _points(interval(images, [(pair.candidate_only, pair.champion_only)], confidence))
        difference += f"; alone right: {pair.candidate_only:,} and {pair.champion_only:,} of {images:,}"
    return Row(f"{title} on the served embeddings", _percent(pair.candidate), _percent(pair.champion), difference)


def _points(one: Interval) -> str:
    return f"{100 * one.difference:+.1f} points ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _estimate(one: Estimate | Measured | None) -> str:
    if one is None:
        return "–"
    value = one.value if isinstance(one, Measured) else one.top1
    return f"{value:.1f} % ({one.low:.1f} to {one.high:.1f})"


def _finetuned(one: FinetuneReport | None) -> str:
    if one is None or one.reached is None:
        return "–"
    if one.multi_label:
        return _estimate(one.multi_label.simclr)
    return _estimate(one.interval) if one.interval else _percent(one.top1)
