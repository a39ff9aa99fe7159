"""Which recipe, resolution, encoder and batch fit the images and the machine, and how many epochs the time allows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from deploy.plural import duration
from pipeline.costs.model import Measured
from pipeline.preflight.images import Images
from pipeline.proposal.collection import Collection
from pipeline.proposal.glance import SIDES
from pipeline.proposal.judging import Judging, choose_judging
from pipeline.proposal.machine import Machine
from pipeline.recipes.recipe import DEFAULT

# Detail: a resolution is enough when in nine of ten images this share of the brightness' variance, at most, is lost.
MOST_LOST = 0.15
MOST_LOST_OF_PARTS = 0.02  # a scratch or a dent is a small share of an image of a part
QUANTILE = 0.9
LIKENESS = 0.5  # from here on one kind of thing in one pose: parts, X-rays. Photographs have 0.1, clothes 0.4
TRANSPARENT = COLORED = DEEP = 0.5  # share of the images from which on the collection counts as such
SMALL_PHOTOGRAPHS = 96  # pixels: up to here a compact stem is affordable

LARGEST_SIDE_ON_CPU, LARGEST_SIDE_ON_GPU = 96, 224
FEWEST_EPOCHS, MOST_EPOCHS = 30, 400
MOST_TRIALS = 3  # of a resolution: each takes some ten seconds
STEPS_IN_AN_EPOCH = 8  # a batch leaves at least this many
SMALLEST_BATCH, LARGEST_BATCH_ON_CPU, LARGEST_BATCH_ON_GPU = 32, 256, 1024
IMAGES_FOR_RESNET50 = 50_000
LABELS_FOR_LARGE_BATCH = 1000  # of fine-tuning


@dataclass(frozen=True)
class Training:
    """What decides how long an image takes."""

    recipe: str
    side: int
    encoder: str
    width: float
    stem: str
    batch: int
    tuning_batch: int


@dataclass(frozen=True)
class Trial:
    """What a training costs on this machine: ``seconds`` of the whole run, by epochs of pretraining and judging."""

    measured: Measured
    seconds: Callable[[int, Judging], float]

    def epoch(self, judging: Judging) -> float:
        """Seconds of one more epoch of pretraining."""
        return (self.seconds(11, judging) - self.seconds(1, judging)) / 10

    def epochs(self, seconds: float, judging: Judging) -> int:
        """Of pretraining, for which there is time; below 1 where even one is too much."""
        return 1 + int((seconds - self.seconds(1, judging)) // self.epoch(judging))

    def judging(self, seconds: float) -> Judging:
        return choose_judging(seconds, partial(self.seconds, 1))


Try = Callable[[Training, Images], Trial]
"""Measures a training on this machine."""


@dataclass(frozen=True)
class Fitted:
    """What there is time for; ``reason`` says why this number of ``epochs``."""

    training: Training
    trial: Trial
    epochs: int
    judging: Judging
    reason: str


def choose_recipe(collection: Collection, machine: Machine) -> tuple[str, str]:
    """The name of the recipe, and why."""
    deep, color = collection.share("deep"), collection.share("has_color")
    middle = collection.short_side(0.5)
    if collection.share("has_alpha") >= TRANSPARENT:
        return "icons-transparent", f"{collection.share('has_alpha'):.0%} of the images have transparency"
    if collection.likeness >= LIKENESS and middle > SMALL_PHOTOGRAPHS:
        return (
            "inspection",
            f"the images show one kind of thing in one pose (mean correlation {collection.likeness:.2f})",
        )
    if deep >= DEEP:
        return "microscopy-medical", f"{deep:.0%} of the images have more than 8 bits in a channel"
    if middle < 40:
        name = "cifar" if machine.gpu_gigabytes and color >= COLORED else DEFAULT
        return name, f"half of the images have at most {middle} pixels on the shorter side"
    side, _ = choose_side(collection, machine, "photos")
    name = "photos" if side > SMALL_PHOTOGRAPHS else "photos-small"
    return name, f"pictures of {middle} pixels on the shorter side, {color:.0%} of them in color"


def choose_side(collection: Collection, machine: Machine, recipe: str) -> tuple[int, str]:
    """The resolution that keeps the detail, in pixels, and why: never above what the images have."""
    most_lost = MOST_LOST_OF_PARTS if recipe == "inspection" else MOST_LOST
    affordable = LARGEST_SIDE_ON_GPU if machine.gpu_gigabytes else LARGEST_SIDE_ON_CPU
    available = max(SIDES[0], collection.short_side(0.5))
    allowed = [side for side in SIDES if side <= min(affordable, available)]
    side = next((side for side in allowed if collection.lost(side, QUANTILE) <= most_lost), allowed[-1])
    lost = collection.lost(side, QUANTILE)
    if lost <= most_lost:
        return side, f"in nine of ten images at most {lost:.0%} of the detail is lost at {side} pixels"
    limit = "without a GPU" if side == allowed[-1] and affordable <= available else "of these images"
    return side, f"the largest resolution {limit}; in one of ten images over {lost:.0%} of the detail is lost"


def choose_batch(images: int, machine: Machine) -> int:
    """A power of two that leaves enough steps in an epoch."""
    largest = LARGEST_BATCH_ON_GPU if machine.gpu_gigabytes else LARGEST_BATCH_ON_CPU
    fitting = max(SMALLEST_BATCH, images // STEPS_IN_AN_EPOCH)
    return int(min(largest, 1 << (fitting.bit_length() - 1)))


def _training(collection: Collection, machine: Machine, recipe: str, side: int) -> Training:
    batch = choose_batch(collection.training_images, machine)
    tuning_batch = 64 if sum(collection.count("train").values()) >= LABELS_FOR_LARGE_BATCH else 16
    if not machine.gpu_gigabytes:
        stem = "imagenet" if side > 64 else "compact"
        return Training(recipe, side, "resnet10", 0.5, stem, batch, tuning_batch)
    large = side > SMALL_PHOTOGRAPHS and collection.training_images >= IMAGES_FOR_RESNET50
    stem = "imagenet" if side > 64 else "cifar"
    return Training(recipe, side, "resnet50" if large else "resnet18", 1.0, stem, batch, tuning_batch)


def fit(collection: Collection, machine: Machine, recipe: str, wanted: int, seconds: float, attempt: Try) -> Fitted:
    """The largest resolution up to ``wanted`` that leaves enough epochs, and how many there are."""
    sides = [*(side for side in SIDES if side < wanted), wanted]
    trials: dict[int, Trial] = {}
    side = wanted
    while side not in trials and len(trials) < MOST_TRIALS:
        trials[side] = attempt(_training(collection, machine, recipe, side), collection.numbers)
        side = _largest_in_time(sides, _least_seconds(trials, seconds), seconds)
    if side not in trials:
        side = _largest_in_time(sorted(trials), _least_seconds(trials, seconds), seconds)
    return _fill(_training(collection, machine, recipe, side), trials[side], seconds)


def _least_seconds(trials: Mapping[int, Trial], seconds: float) -> Callable[[int], float]:
    """Of a run with the fewest epochs, by resolution: as measured; between two that were, by the number of pixels;
    below them, as if pretraining took its time for pixels alone."""
    judgings = {side: trial.judging(seconds) for side, trial in trials.items()}
    known = {side: trials[side].seconds(FEWEST_EPOCHS, judgings[side]) for side in sorted(trials)}
    smallest = min(known)
    pretraining = FEWEST_EPOCHS * trials[smallest].epoch(judgings[smallest])

    def least(side: int) -> float:
        if side < smallest:
            return known[smallest] - pretraining * (1 - (side / smallest) ** 2)
        return float(np.interp(side**2, [one**2 for one in known], [*known.values()]))

    return least


def _largest_in_time(sides: Sequence[int], least: Callable[[int], float], seconds: float) -> int:
    return max((side for side in sides if least(side) <= seconds), default=sides[0])


def _fill(training: Training, trial: Trial, seconds: float) -> Fitted:
    """The number of epochs for which there is time."""
    judging = trial.judging(seconds)
    epochs = max(1, min(MOST_EPOCHS, trial.epochs(seconds, judging)))
    speed, limit = trial.measured.unit.images_per_second, ""
    if epochs == MOST_EPOCHS:
        limit = f"; more than {MOST_EPOCHS} gain little"
    spent = duration(trial.seconds(epochs, judging))
    reason = f"a whole run takes about {spent}, at {speed:,.0f} images a second, as measured on this machine{limit}"
    return Fitted(training, trial, epochs, judging, reason)
