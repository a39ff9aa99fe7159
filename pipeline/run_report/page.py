"""``reports/run.html``: one file that needs nothing else, with no active content.

Names of files and classes are hostile until shown otherwise: the template escapes them, ``printable`` spells out their
control and direction characters, and a content security policy forbids scripts and every request. Thumbnails are drawn
from the prepared pixels.
"""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from deploy.artifact import write_atomically
from deploy.errors import ImageError
from deploy.images.full_depth import Samples
from deploy.images.preview import preview
from deploy.plural import duration
from pipeline.costs.comparison import comparison, comparison_rows
from pipeline.git import leave_out
from pipeline.maintenance.disk import size
from pipeline.run_report import charts
from pipeline.run_report.advice import advise
from pipeline.run_report.facts import RunFacts, collect
from pipeline.run_report.labels_saved import TITLES, find_labels_saved, read_curves, rows
from pipeline.validation.reasons import REASONS
from pipeline.validation.report.template import load
from pipeline.validation.report.thumbnails import jpeg
from pipeline.workspace import Workspace
from simclr_core.data.shards import ShardedImages, stored_pixels
from simclr_core.errors import DatasetError
from simclr_core.evaluation_reports import ClassScores, Estimate, Measured

FILE = "run.html"
MOST_MISTAKES = 24
MOST_CLASSES = 200
SIDE = 96  # pixels of a thumbnail
CURVES = (
    ("loss", "loss", ""),
    ("kNN of the monitor", "knn_top1", " %"),
    ("linear probe of the monitor", "probe_top1", " %"),
    ("effective rank", "effective_rank", ""),
)


def write(workspace: Workspace) -> Path:
    """Write the page of the workspace's present state, and return where it is."""
    facts = collect(workspace)
    page = render(facts, thumbnails(workspace, facts))
    target = workspace.reports / FILE
    leave_out(workspace.reports, FILE)
    write_atomically(target, page)
    return target


def render(facts: RunFacts, pictures: Mapping[str, str]) -> str:
    """The page; ``pictures`` are JPEGs in base64 by SHA-256."""
    template = load(Path(__file__).with_name("run.html.j2"), size=size, estimate=_estimate, seconds=duration)
    evaluation = facts.evaluation
    several = evaluation.multi_label if evaluation else None
    probe = several.scores.get("probe") if several else evaluation.scores.get("probe") if evaluation else None
    by_recall = sorted((probe.per_class if probe else {}).items(), key=lambda one: (one[1].recall or 0, one[0]))
    drawn = [charts.over_epochs(title, name, facts.curves, unit) for title, name, unit in CURVES]
    budgets = evaluation.budgets if evaluation else {}
    curves = read_curves(evaluation, facts.finetune) if evaluation else {}
    saved = find_labels_saved(evaluation, facts.finetune)
    measure = "mean average precision" if several else "top-1"
    joules = [numbers["joules"] for numbers in facts.timings.values() if "joules" in numbers]
    return template.render(
        facts=facts,
        advice=advise(facts),
        meanings=REASONS,
        features=charts.FEATURES,
        curves=[one for one in drawn if one],
        by_labels=charts.over_labels(measure, {TITLES[name]: points for name, points in curves.items()}),
        budgets=sorted(budgets.items(), key=lambda one: one[1].labels),
        several=several,
        precision_budgets=sorted(several.budgets.items(), key=lambda one: one[1].labels) if several else [],
        saved=saved,
        worth=[*rows(saved)] if saved else [],
        classes=by_recall[:MOST_CLASSES],
        counts=count_answers,
        mistakes=facts.mistakes[:MOST_MISTAKES],
        pictures=pictures,
        total=sum(numbers.get("seconds", 0.0) for numbers in facts.timings.values()),
        expected=[*comparison_rows(comparison(facts.costs))],
        energy=f"{sum(joules) / 3.6e6:.3f} kWh" if joules else "not measured: this machine does not tell it",
    )


def count_answers(one: ClassScores) -> tuple[int | None, ...]:
    """Images of a class that are found and missed, and others that are taken for it: true positives, false negatives
    and false positives. A report of an earlier version does not tell."""
    right = one.right
    return (None,) * 3 if right is None else (right, one.images - right, one.answers - right)


def thumbnails(workspace: Workspace, facts: RunFacts) -> dict[str, str]:
    """Pictures of the mistakes that are shown, from the prepared images; nothing where they are missing."""
    wanted = {one.sha256 for one in facts.mistakes[:MOST_MISTAKES]}
    found: dict[str, str] = {}
    try:
        split = "train" if facts.evaluation and facts.evaluation.out_of_fold else "test"
        images = ShardedImages(workspace.prepared / split) if wanted else None
        for position in range(len(images)) if images else ():
            if images and (key := images.key(position)) in wanted:
                found[key] = jpeg(thumbnail(stored_pixels(images, position)))
    except (DatasetError, ImageError):
        return found
    return found


def thumbnail(pixels: Samples) -> Image.Image:
    """A prepared image of SIDE pixels on its longer side."""
    image = Image.fromarray(preview(pixels))
    scale = SIDE / max(image.size)
    small = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), small)


def _estimate(one: Estimate | Measured | None) -> str:
    if one is None:
        return "–"
    value = one.value if isinstance(one, Measured) else one.top1
    return f"{value:.1f} ({one.low:.1f} to {one.high:.1f})"
