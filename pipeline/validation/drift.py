"""Drift: do the images of the newest raw batch look like those of the earlier ones?

Compared are the accepted training images, by the statistics of the manifest: each number by its Wasserstein distance in
standard deviations of the earlier images, each category by its Jensen-Shannon distance, and all numbers together by how
well a logistic regression tells new images from earlier ones. These are effect sizes: p-values would call every large
batch different. What chance alone does is measured on random splits of the earlier images into parts of the same sizes,
and a threshold is never below it.

    none          the batch looks like the earlier ones
    drift         it does not: a warning, and a reason to retrain
    broken        it looks like a bug of whatever made it, such as swapped channels: the data contract fails
    not judged    too few images, or no earlier batch

For ``broken`` every batch is held against those before it, so that the next batch does not bury the fault.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.validation.distances import Array, domain_auroc, jensen_shannon, wasserstein
from pipeline.validation.shapes import shapes

Verdict = Literal["none", "drift", "broken", "not judged"]

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
standard deviation is no yardstick; one gray level or five percent is."""

CATEGORIES = {"format": "file format", "mode": "pixel layout"}
CLASSIFIER = "domain_classifier"
MEANINGS = {name: meaning for name, (meaning, _) in NUMBERS.items()} | CATEGORIES
MEANINGS[CLASSIFIER] = "AUROC of a classifier, new against earlier"

REFERENCE_SAMPLE, BATCH_SAMPLE, CLASSIFIER_SAMPLE = 4000, 2000, 2000
SPLITS = 200
FALSE_ALARMS = 0.01
"""How often a batch like the earlier ones may be called different, whatever the number of statistics."""

OUTLIER = 5.0  # standard deviations; features of the classifier end there


@dataclass(frozen=True)
class Images:
    """Accepted training images, in the order of their hashes, which is as good as a random one."""

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
class Statistic:
    """How far the batch is from the earlier ones in one respect, and how far it may be."""

    name: str
    effect: float
    threshold: float
    drifted: bool

    def __str__(self) -> str:
        return self.name


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

    verdict: Verdict
    batch: str | None
    reference_images: int
    batch_images: int
    advice: str
    statistics: tuple[Statistic, ...] = ()
    shapes: tuple[Shape, ...] = ()
    samples: dict[str, tuple[Array, Array]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "batch": self.batch,
            "reference_images": self.reference_images,
            "batch_images": self.batch_images,
            "auroc": next((one.effect for one in self.statistics if one.name == CLASSIFIER), None),
            "statistics": [vars(one) for one in self.statistics],
            "shapes": [{"batch": one.batch, "shape": one.shape} for one in self.shapes if one.found],
            "advice": self.advice,
        }


def judge(
    manifest: pa.Table, *, enabled: bool, min_images: int, distance: float, auroc: float, accepted: Sequence[str]
) -> Drift:
    """Compare the newest raw batch with all earlier ones.

    Args:
        min_images: of a batch, and twice as many of all earlier ones; fewer are not judged.
        distance, auroc: what is no drift yet, however many images say so.
        accepted: batches whose look a person has approved; no bug is seen in them.
    """
    newest = pc.max(manifest["ingest_batch"]).as_py()
    images, homes = _training_images(manifest)
    reference, batch = images.take(homes != newest), images.take(homes == newest)
    why = _too_few(len(reference), len(batch), min_images) if enabled else "switched off by validate.drift.enabled"
    statistics: tuple[Statistic, ...] = ()
    samples: dict[str, tuple[Array, Array]] = {}
    if not why:
        earlier, new = reference.take(slice(REFERENCE_SAMPLE)), batch.take(slice(BATCH_SAMPLE))
        statistics = tuple(_statistics(earlier, new, distance, auroc))
        samples = {name: (earlier.numbers[name], new.numbers[name]) for name in NUMBERS}
    examined = tuple(_shapes(images, homes, min_images, frozenset(accepted))) if enabled else ()
    verdict, advice = _conclude(why, statistics, examined)
    return Drift(verdict, newest, len(reference), len(batch), advice, statistics, examined, samples)


def _conclude(why_not: str | None, statistics: Iterable[Statistic], examined: Iterable[Shape]) -> tuple[Verdict, str]:
    """The verdict, and what to do about it."""
    found = ", ".join(str(one) for one in examined if one.found)
    drifted = sorted((one for one in statistics if one.drifted), key=lambda one: -one.effect / one.threshold)
    if found:
        return "broken", (
            f"{found}: this looks like a bug of what made the images; mend it, take the batch back (restore the "
            "data/raw.dvc of before, then run `dvc checkout data/raw.dvc`) and ingest the right ones; if they really "
            "look like that, add the batch to validate.drift.accepted"
        )
    if why_not:
        return "not judged", why_not
    if drifted:
        most = ", ".join(one.name for one in drifted[:3]) + (f" and {len(drifted) - 3} more" if drifted[3:] else "")
        advice = "look at them, and retrain so that the encoder learns from them"
        return "drift", f"the new images differ from the earlier ones in {most}: {advice}"
    return "none", "the new images look like the earlier ones"


def _training_images(manifest: pa.Table) -> tuple[Images, Array]:
    """The images, and the batch that holds the bytes of each."""
    used = manifest.filter((pc.field("verdict") != "quarantine") & (pc.field("split") == "train")).sort_by("sha256")
    column = {name: used[name].to_numpy() for name in ("short_side", "aspect", "width", "height", *CATEGORIES)}
    numbers = {name: used[name].to_numpy().astype(np.float64) for name in NUMBERS if name in used.column_names}
    numbers["red_minus_blue"] = numbers["red_mean"] - numbers["blue_mean"]
    numbers |= {f"log_{name}": np.log(column[name].astype(np.float64)) for name in ("short_side", "aspect")}
    categories = {name: column[name].astype(str) for name in CATEGORIES}
    sizes = np.column_stack([column["width"], column["height"]])
    return Images(numbers, categories, sizes), np.array(used["batch"].to_pylist(), dtype=object)


def _too_few(earlier: int, new: int, min_images: int) -> str | None:
    if not earlier:
        return "there is no earlier batch with accepted training images to compare with"
    if new < min_images:
        return f"only {new} accepted training images are new; validate.drift.min_images is {min_images}"
    if earlier < 2 * min_images:
        return f"only {earlier} training images are earlier; twice validate.drift.min_images is {2 * min_images}"
    return None


def _shapes(images: Images, homes: Array, min_images: int, accepted: frozenset[str]) -> Iterator[Shape]:
    """Hold each batch with enough images against those before it."""
    names, index = np.unique(homes.astype(str), return_inverse=True)
    for number, name in enumerate(names):
        new, earlier = np.flatnonzero(index == number)[:BATCH_SAMPLE], np.flatnonzero(index < number)[:REFERENCE_SAMPLE]
        if len(new) >= min_images and len(earlier) >= 2 * min_images and name not in accepted:
            reference, batch = images.take(earlier), images.take(new)
            found = shapes(reference.numbers, reference.sizes, batch.numbers, batch.sizes)
            yield from (Shape(str(name), shape, present) for shape, present in found.items())


def _statistics(reference: Images, batch: Images, distance: float, auroc: float) -> Iterator[Statistic]:
    """Effects of the batch, and thresholds by splits of the reference into parts of the sizes that are compared."""
    random = np.random.default_rng(0)
    part = min(len(batch), len(reference) // 2)
    splits = random.permuted(np.tile(np.arange(len(reference)) < part, (SPLITS, 1)), axis=1)
    floors = dict.fromkeys((*NUMBERS, *CATEGORIES), distance) | {CLASSIFIER: auroc - 0.5}
    chance = _effects(reference, splits, reference)
    kept, drawn = reference.take(slice(part, None)), batch.take(slice(part))
    pool, newer = _joined(kept, drawn), np.arange(len(reference)) >= len(kept)
    observed = _effects(pool, newer[np.newaxis], reference)
    # One factor for all statistics keeps the rate of false alarms of all of them together: it bounds, in all but
    # FALSE_ALARMS of the splits, the largest effect, each measured in what it reaches by chance or its floor.
    scales = {name: max(floors[name], float(np.quantile(chance[name], 0.95))) for name in floors}
    largest = np.max([chance[name] / scales[name] for name in scales], axis=0)
    factor = max(1.0, float(np.quantile(largest, 1 - FALSE_ALARMS, method="higher")))
    for name, scale in scales.items():
        zero = 0.5 if name == CLASSIFIER else 0.0  # an AUROC's; it is reported as such
        effect, threshold = round(zero + float(observed[name][0]), 4), round(zero + factor * scale, 4)
        yield Statistic(name, effect, threshold, effect > threshold)


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
    told = [domain_auroc(features[rows], mask[rows]) for mask in newer for rows in [_balanced(mask)]]
    effects[CLASSIFIER] = np.maximum(np.array(told) - 0.5, 0.0)
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
