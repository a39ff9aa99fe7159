"""Drift: do the images of the newest raw batch look like those of the earlier ones?

Compared are the accepted training images, by the statistics of the manifest: each number by its Wasserstein distance in
standard deviations of the earlier images, each category by its Jensen-Shannon distance, and all numbers together by how
well a logistic regression tells new images from earlier ones; see ``calibration`` for how far each may be.

    none          the batch looks like the earlier ones
    drift         it does not: a warning, and a reason to retrain
    broken        it looks like a bug of whatever made it, such as swapped channels: the data contract fails
    not judged    too few images, or no earlier batch

For ``broken`` every batch is held against those before it, so that the next batch does not bury the fault.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from deploy.plural import counted, listed
from pipeline.reports import DriftReport, DriftVerdict, FoundShape, Statistic
from pipeline.validation import tables
from pipeline.validation.drift.calibration import CLASSIFIER, calibrate, random_splits
from pipeline.validation.drift.distances import Array, domain_auroc, jensen_shannon, wasserstein
from pipeline.validation.drift.shapes import shapes

NUMBERS = {
    "luma_mean": ("brightness, 0 to 255", 1.0),
    "luma_std": ("contrast, 0 to 255", 1.0),
    "saturation": ("saturation, 0 to 255", 1.0),
    "entropy": ("entropy of brightness, bits", 0.05),
    "edge_energy": ("edges, 0 to 255", 1.0),
    "red_mean": ("red, 0 to 255", 1.0),
    "green_mean": ("green, 0 to 255", 1.0),
    "blue_mean": ("blue, 0 to 255", 1.0),
    "red_minus_blue": ("red minus blue, -255 to 255", 1.0),
    "log_short_side": ("logarithm of the shorter side", 0.05),
    "log_aspect": ("logarithm of longer over shorter side", 0.05),
}
"""What is compared: its meaning, and the least spread that it is measured in. Where all earlier images are alike, their
standard deviation is not a useful unit; one gray level or five percent is."""

CATEGORIES = {"format": "file format", "mode": "pixel layout"}
MEANINGS = {name: meaning for name, (meaning, _) in NUMBERS.items()} | CATEGORIES
MEANINGS[CLASSIFIER] = "AUROC of a classifier, new against earlier"

REFERENCE_SAMPLE, BATCH_SAMPLE, CLASSIFIER_SAMPLE = 4000, 2000, 2000
OUTLIER = 5.0  # standard deviations; features of the classifier end there


@dataclass(frozen=True)
class Images:
    """Accepted training images, in the order of their hashes, which is practically random."""

    numbers: dict[str, Array]
    categories: dict[str, Array]
    sizes: Array  # width and height, [n, 2]

    def __len__(self) -> int:
        return len(self.sizes)

    def take(self, rows: Array | slice) -> "Images":
        return Images(
            {name: values[rows] for name, values in self.numbers.items()},
            {name: values[rows] for name, values in self.categories.items()},
            self.sizes[rows],
        )


@dataclass(frozen=True)
class Shape:
    """Whether one batch has the shape of one known bug."""

    batch: str
    shape: str
    found: bool

    def __str__(self) -> str:
        return f"{self.shape} in {self.batch}"


@dataclass(frozen=True)
class Drift:
    """What came of the comparison; ``samples`` are the values behind it: name → (earlier, new)."""

    verdict: DriftVerdict
    batch: str | None
    reference_images: int
    batch_images: int
    advice: str
    statistics: tuple[Statistic, ...] = ()
    shapes: tuple[Shape, ...] = ()
    samples: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    @property
    def report(self) -> DriftReport:
        return DriftReport(
            verdict=self.verdict,
            batch=self.batch,
            reference_images=self.reference_images,
            batch_images=self.batch_images,
            auroc=next((one.effect for one in self.statistics if one.name == CLASSIFIER), None),
            statistics=self.statistics,
            shapes=tuple(FoundShape(one.batch, one.shape) for one in self.shapes if one.found),
            advice=self.advice,
        )


def judge(
    manifest: tables.Manifest, *, enabled: bool, min_images: int, distance: float, auroc: float, accepted: Sequence[str]
) -> Drift:
    """Compare the newest raw batch with all earlier ones.

    Args:
        manifest: of the schema ``tables.MANIFEST``, its rows in any order.
        min_images: of a batch, and twice that of all earlier ones; fewer are not judged.
        distance, auroc: the largest effects that are not drift, however many images show them.
        accepted: batches whose look a person has approved; no bug is seen in them.
    """
    newest = tables.newest(manifest)
    used = _training_images(manifest)
    is_new = used["batch"].to_numpy() == newest
    earlier, new = np.flatnonzero(~is_new), np.flatnonzero(is_new)
    why = _too_few(len(earlier), len(new), min_images) if enabled else "switched off by validate.drift.enabled"
    statistics: tuple[Statistic, ...] = ()
    samples: dict[str, tuple[Array, Array]] = {}
    if not why:
        reference = _images(manifest, used[earlier[:REFERENCE_SAMPLE]])
        batch = _images(manifest, used[new[:BATCH_SAMPLE]])
        statistics = tuple(_statistics(reference, batch, distance, auroc))
        samples = {name: (reference.numbers[name], batch.numbers[name]) for name in NUMBERS}
    examined = tuple(_shapes(manifest, used, min_images, frozenset(accepted))) if enabled else ()
    verdict, advice = _conclude(why, statistics, examined)
    return Drift(verdict, newest, len(earlier), len(new), advice, statistics, examined, samples)


def _conclude(
    why_not: str | None, statistics: Iterable[Statistic], examined: Iterable[Shape]
) -> tuple[DriftVerdict, str]:
    """The verdict, and what to do about it."""
    found = ", ".join(str(one) for one in examined if one.found)
    drifted = sorted((one for one in statistics if one.drifted), key=lambda one: -one.effect / one.threshold)
    if found:
        return "broken", (
            f"{found}: this looks like a bug in the source of the images; fix it, remove the batch (restore the "
            "data/raw.dvc of before, then run `dvc checkout data/raw.dvc`) and ingest the corrected ones; if they are "
            "right as they are, add the batch to validate.drift.accepted"
        )
    if why_not:
        return "not judged", why_not
    if drifted:
        most = listed([one.name for one in drifted], 3)
        advice = "look at them, and retrain so that the encoder learns from them"
        return "drift", f"the new images differ from the earlier ones in {most}: {advice}"
    return "none", "the new images look like the earlier ones"


def _training_images(manifest: tables.Manifest) -> pl.DataFrame:
    """What is compared, in the order of the hashes: the place in the manifest, and the batch that holds the bytes."""
    used = (pl.col("verdict") != "quarantine") & (pl.col("split") == "train")
    rows = manifest.lazy().select("sha256", "batch", "verdict", "split").with_row_index("place")
    return rows.filter(used).select("place", "batch", "sha256").sort("sha256").drop("sha256").collect()


def _images(manifest: tables.Manifest, chosen: pl.DataFrame) -> Images:
    """What the manifest has of the chosen ``_training_images``."""
    rows = manifest.lazy()
    measured = [name for name in NUMBERS if name in rows.collect_schema()]
    columns = [*measured, *CATEGORIES, "short_side", "aspect", "width", "height"]
    found = rows.select(columns).with_row_index("place").filter(pl.col("place").is_in(chosen["place"].implode()))
    return _measured(chosen.select("place").join(found.collect(), "place", maintain_order="left"))


def _measured(rows: pl.DataFrame) -> Images:
    numbers = {name: rows[name].to_numpy().astype(np.float64) for name in NUMBERS if name in rows.columns}
    numbers["red_minus_blue"] = numbers["red_mean"] - numbers["blue_mean"]
    numbers |= {f"log_{name}": np.log(rows[name].to_numpy().astype(np.float64)) for name in ("short_side", "aspect")}
    categories = {name: rows[name].to_numpy().astype(str) for name in CATEGORIES}
    return Images(numbers, categories, rows.select("width", "height").to_numpy())


def _too_few(earlier: int, new: int, min_images: int) -> str | None:
    if not earlier:
        return "there is no earlier batch with accepted training images to compare with"
    if new < min_images:
        images = counted(new, "accepted training image")
        return f"the newest batch has only {images}; validate.drift.min_images is {min_images}"
    if earlier < 2 * min_images:
        images = counted(earlier, "training image")
        return f"the earlier batches have only {images}; twice validate.drift.min_images is {2 * min_images}"
    return None


def _shapes(
    manifest: tables.Manifest, used: pl.DataFrame, min_images: int, accepted: frozenset[str]
) -> Iterator[Shape]:
    """Hold each batch with enough images against those before it."""
    pairs = [
        (name, earlier, new)
        for name, earlier, new in _samples(used)
        if len(new) >= min_images and len(earlier) >= 2 * min_images and name not in accepted
    ]
    if not pairs:
        return
    needed = np.unique(np.concatenate([rows for _, earlier, new in pairs for rows in (earlier, new)]))
    images = _images(manifest, used[needed])
    for name, earlier, new in pairs:
        reference, batch = (images.take(np.searchsorted(needed, rows)) for rows in (earlier, new))
        found = shapes(reference.numbers, reference.sizes, batch.numbers, batch.sizes)
        yield from (Shape(name, shape, present) for shape, present in found.items())


def _samples(used: pl.DataFrame) -> Iterator[tuple[str, Array, Array]]:
    """Each batch, oldest first, with rows of ``used``: the first of all earlier batches together, and its own first."""
    of_batch = used.with_row_index("row").group_by("batch").agg("row").sort(tables.age("batch"))
    earlier = np.empty(0, dtype=np.int64)
    for name, rows in zip(of_batch["batch"], of_batch["row"], strict=True):
        new = np.sort(rows.to_numpy()).astype(np.int64)
        yield name, earlier, new[:BATCH_SAMPLE]
        earlier = np.sort(np.concatenate([earlier, new[:REFERENCE_SAMPLE]]))[:REFERENCE_SAMPLE]


def _statistics(reference: Images, batch: Images, distance: float, auroc: float) -> Iterator[Statistic]:
    """Effects of the batch, and thresholds by splits of the reference into parts of the sizes that are compared."""
    part = min(len(batch), len(reference) // 2)
    floors = dict.fromkeys((*NUMBERS, *CATEGORIES), distance) | {CLASSIFIER: auroc - 0.5}
    chance = _effects(reference, random_splits(len(reference), part), reference)
    kept, drawn = reference.take(slice(part, None)), batch.take(slice(part))
    pool, newer = _joined(kept, drawn), np.arange(len(reference)) >= len(kept)
    observed = _effects(pool, newer[np.newaxis], reference)
    return calibrate({name: float(effect[0]) for name, effect in observed.items()}, chance, floors)


def _effects(pool: Images, newer: Array, reference: Images) -> dict[str, Array]:
    """Every effect, [splits], for masks [splits, n] of what counts as new."""
    effects: dict[str, Array] = {}
    features = np.empty((len(pool), len(NUMBERS)))
    for index, (name, (_, least)) in enumerate(NUMBERS.items()):
        spread = max(least, float(reference.numbers[name].std()))
        effects[name] = wasserstein(pool.numbers[name] / spread, newer)
        features[:, index] = (pool.numbers[name] - reference.numbers[name].mean()) / spread
    effects |= {name: jensen_shannon(pool.categories[name], newer) for name in CATEGORIES}
    features = features.clip(-OUTLIER, OUTLIER)
    aurocs = [domain_auroc(features[rows], mask[rows]) for mask in newer for rows in [_balanced(mask)]]
    effects[CLASSIFIER] = np.maximum(np.array(aurocs) - 0.5, 0.0)
    return effects


def _balanced(newer: Array) -> Array:
    """The rows for the classifier: the first of each group, few enough to be quick."""
    new, old = np.flatnonzero(newer), np.flatnonzero(~newer)
    share = min(len(new), len(old), CLASSIFIER_SAMPLE // 2)
    return np.concatenate([new[:share], old[: CLASSIFIER_SAMPLE - share]])


def _joined(first: Images, second: Images) -> Images:
    return Images(
        {name: np.concatenate([values, second.numbers[name]]) for name, values in first.numbers.items()},
        {name: np.concatenate([values, second.categories[name]]) for name, values in first.categories.items()},
        np.concatenate([first.sizes, second.sizes]),
    )
