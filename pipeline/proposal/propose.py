"""The rules: from what a collection and a machine are, and from the time there is, to the values of params.yaml.

Each value comes with its reason. The rules are ours; the constants of a recipe have their sources in its file.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from deploy.images import heif
from deploy.images.preprocess import MOST_PIXELS
from deploy.plural import counted
from pipeline.config import GatesConfig, ValidateConfig
from pipeline.preflight import Images
from pipeline.proposal.collection import Collection
from pipeline.proposal.glance import SIDES
from pipeline.proposal.machine import Machine
from pipeline.recipes.recipe import DEFAULT
from simclr_core.evaluation.fewest import FINETUNE_STEPS
from simclr_core.evaluation.paired_comparison import images_needed

# Detail: a resolution is enough when in nine of ten images this share of the brightness' variance, at most, is lost.
MOST_LOST = 0.15
MOST_LOST_OF_PARTS = 0.02  # a scratch or a dent is a small share of an image of a part
QUANTILE = 0.9
LIKENESS = 0.5  # from here on one kind of thing in one pose: parts, X-rays. Photographs have 0.1, clothes 0.4
TRANSPARENT = COLORED = DEEP = 0.5  # share of the images from which on the collection counts as such
SMALL_PHOTOGRAPHS = 96  # pixels: up to here a compact stem is affordable

LARGEST_SIDE_ON_CPU, LARGEST_SIDE_ON_GPU = 96, 224
FEWEST_EPOCHS, MOST_EPOCHS = 30, 400
STEPS_IN_AN_EPOCH = 8  # a batch leaves at least this many
SMALLEST_BATCH, LARGEST_BATCH_ON_CPU, LARGEST_BATCH_ON_GPU = 32, 256, 1024
IMAGES_FOR_RESNET50 = 50_000
RATE_OF_256 = 0.15  # cpu-small's peak of the learning rate for a batch of 256
PRETRAINING_SHARE = 0.55  # of the time; the rest is for looking, evaluating, fine-tuning and exporting
FINETUNING_SHARE = 0.2
TRAININGS = 12  # fine-tuning on two fractions with three seeds, with pretraining and without
VIEWS_PER_IMAGE = 2  # pretraining computes two views of an image, fine-tuning one
CLASS_FOLDERS = (2, 1000)  # fewest and most folders that may be classes
FOLDERS_SHARE = 0.8  # of the unlabeled images are in them
FEWEST_OF_A_CLASS = 3  # images in the middle one of the folders
ORIGINS = re.compile(r"\d{3}|^(dcim|batch|part|shard|chunk|page|disk|volume|camera|folder|dir)\W*_*\d*$")
HELD_OUT = 0.25  # of the labeled images, where nothing is held out
MAX_LOSSES = (3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)
DISAGREEMENT = 0.1  # of two encoders that are equally good: the share of the test images that one alone classifies
GATES, VALIDATE = GatesConfig(), ValidateConfig()  # as in every recipe

Rate = Callable[["Training"], float]
"""Measures a training on this machine: images a second."""


@dataclass(frozen=True)
class Choice:
    """A key of params.yaml, as in ``pretrain.image_size``; its value; and why, as the end of a sentence."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Training:
    """What decides how long an image takes."""

    recipe: str
    side: int
    encoder: str
    width: float
    stem: str
    batch: int


@dataclass(frozen=True)
class Proposal:
    """A recipe, the values that differ from it, and what a person should know before a run.

    ``images`` are those that will be ingested with these values.
    """

    recipe: str
    reason: str
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    images: Images


def propose(collection: Collection, machine: Machine, seconds: float, rate: Rate) -> Proposal:
    """Choose the recipe by the images, then fit resolution and epochs to the time.

    Args:
        seconds: for the whole first run.
        rate: asked once, or a second time when the resolution has to be lower.
    """
    labels = {one.key: one for one in _choose_labels(collection)}
    mixed = [*_note_mixed_folders(collection)]
    if "ingest.class_folders" in labels:
        collection = collection.with_class_folders()
    if "ingest.hold_out" in labels:
        collection = collection.with_held_out(HELD_OUT)
    recipe, why = choose_recipe(collection, machine)
    wanted, detail = choose_side(collection, machine, recipe)
    training, epochs, fit = _fit(collection, machine, recipe, wanted, seconds, rate)
    if training.side < wanted:
        detail = f"{wanted} pixels would keep more detail, but there is no time for {FEWEST_EPOCHS} epochs at that size"
    choices = [
        *labels.values(),
        *_choose_limits(collection),
        *_choose_training(collection, machine, training, detail),
        Choice("pretrain.epochs", epochs, fit),
        *_choose_evaluation(collection, epochs),
        *_choose_gates(collection),
    ]
    notes = (*mixed, *_notes(collection, machine), *_warn_of_time(collection, epochs))
    return Proposal(recipe, why, tuple(choices), notes, collection.numbers)


def look_like_classes(collection: Collection) -> bool:
    """Whether no label is said, and folders whose names are not dates or numbers hold nearly all images, and no other
    folder any: it would be taken for a class too."""
    return bool(_class_folders(collection)) and not _other_folders(collection)


def _class_folders(collection: Collection) -> dict[str, int]:
    """The folders that look like classes, and how many images each has; none if they hold too few of all."""
    folders = {
        name: n for name, n in collection.folders.items() if any(map(str.isalpha, name)) and not _names_an_origin(name)
    }
    if collection.count("train") or not CLASS_FOLDERS[0] <= len(folders) <= CLASS_FOLDERS[1]:
        return {}
    enough = median(folders.values()) >= FEWEST_OF_A_CLASS
    return folders if enough and sum(folders.values()) >= FOLDERS_SHARE * collection.training_images else {}


def _other_folders(collection: Collection) -> list[str]:
    return sorted(collection.folders.keys() - _class_folders(collection).keys())


def _names_an_origin(name: str) -> bool:
    """``2026-11 Rome``, ``DCIM``, ``100CANON``, ``batch_07``: when or how the images came, not what they show."""
    return bool(ORIGINS.search(name.lower()))


def _choose_labels(collection: Collection) -> Iterator[Choice]:
    classes = look_like_classes(collection)
    if classes:
        folders = sorted(collection.folders)
        named = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
        yield Choice("ingest.class_folders", True, f"{len(folders)} folders look like classes: {named}")
    if (classes or len(collection.count("train")) > 1) and not collection.count("test"):
        yield Choice(
            "ingest.hold_out", HELD_OUT, "accuracy is measured on held-out images, and nothing is held out yet"
        )


def _note_mixed_folders(collection: Collection) -> Iterator[str]:
    classes, others = _class_folders(collection), _other_folders(collection)
    if classes and others:
        named, odd = (", ".join(names[:3]) + (", ..." if len(names) > 3 else "") for names in (sorted(classes), others))
        yield (
            f"{counted(len(classes), 'folder')} ({named}) could be classes, and {odd} could not, so no folder is taken "
            "for a class; move what is not one into a folder unlabeled/ next to them, or leave it out with "
            "ingest.exclude, and look again"
        )


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
    if not machine.gpu_gigabytes:
        return Training(recipe, side, "resnet10", 0.5, "imagenet" if side > 64 else "compact", batch)
    large = side > SMALL_PHOTOGRAPHS and collection.training_images >= IMAGES_FOR_RESNET50
    return Training(recipe, side, "resnet50" if large else "resnet18", 1.0, "imagenet" if side > 64 else "cifar", batch)


def _fit(
    collection: Collection, machine: Machine, recipe: str, wanted: int, seconds: float, rate: Rate
) -> tuple[Training, int, str]:
    """The largest resolution up to ``wanted`` that leaves enough epochs, and how many there are."""
    budget, images = seconds * PRETRAINING_SHARE, collection.training_images
    training = _training(collection, machine, recipe, wanted)
    speed = rate(training)
    if budget * speed / images < FEWEST_EPOCHS:
        smaller = [side for side in SIDES if side < wanted]
        fast = [side for side in smaller if budget * speed * (wanted / side) ** 2 / images >= FEWEST_EPOCHS]
        if smaller:
            training = _training(collection, machine, recipe, fast[-1] if fast else smaller[0])
            speed = rate(training)
    epochs = max(1, min(MOST_EPOCHS, int(budget * speed / images)))
    spent = epochs * images / speed
    limit = f"; more than {MOST_EPOCHS} gain little" if epochs == MOST_EPOCHS else ""
    return training, epochs, f"{_duration(spent)} at {speed:,.0f} images a second, as measured on this machine{limit}"


def _duration(seconds: float) -> str:
    """In whole seconds below two minutes, in whole minutes above."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _choose_training(collection: Collection, machine: Machine, training: Training, detail: str) -> Iterator[Choice]:
    images, side, batch = collection.training_images, training.side, training.batch
    device = "GPU" if machine.gpu_gigabytes else "CPU"
    encoder = {"name": training.encoder, "width": training.width, "stem": training.stem}
    yield Choice("pretrain.encoder", encoder, f"sized for a {device}, with a stem for images of {side} pixels")
    yield Choice("pretrain.image_size", side, detail)
    yield Choice("pretrain.resize", None, "null: the same as image_size")
    yield Choice("pretrain.batch_size", batch, f"{images // batch} steps in an epoch of {images:,} training images")
    if training.recipe == DEFAULT and batch != LARGEST_BATCH_ON_CPU:
        yield Choice(
            "pretrain.learning_rate", RATE_OF_256 / 16, f"{RATE_OF_256 / 16 * batch**0.5:.3f} for a batch of {batch}"
        )
        yield Choice("pretrain.learning_rate_scaling", "sqrt", "small batches need more than their share (SimCLR B.1)")
    if collection.share("has_color") < COLORED and training.recipe not in (DEFAULT, "inspection", "microscopy-medical"):
        gray = 1 - collection.share("has_color")
        yield Choice("pretrain.augmentation.grayscale", 0.0, f"{gray:.0%} of the images are gray already")


def _choose_evaluation(collection: Collection, epochs: int) -> Iterator[Choice]:
    labels = sum(collection.count("train").values())
    if not labels:
        return
    batch, tenth = _finetuning_batch(labels), max(1, labels // 10)
    steps = tenth // min(batch, tenth)
    # The six trainings on a tenth of the labels cost most; fewer steps than the floor change nothing.
    affordable = max(5, int(_images_for_finetuning(collection, epochs) / (TRAININGS // 2 * tenth)))
    if affordable < 30 and 30 * steps > FINETUNE_STEPS:
        yield Choice("finetune.epochs", affordable, "what the time allows for six trainings on a tenth of the labels")
    yield Choice("finetune.batch_size", batch, f"{counted(steps, 'step')} in an epoch of a tenth of {labels:,} labels")


def _finetuning_batch(labels: int) -> int:
    return 64 if labels >= 1000 else 16


def _images_for_finetuning(collection: Collection, epochs: int) -> float:
    """How many images fine-tuning may compute in its share of the time."""
    return FINETUNING_SHARE / PRETRAINING_SHARE * epochs * collection.training_images * VIEWS_PER_IMAGE


def _warn_of_time(collection: Collection, epochs: int) -> Iterator[str]:
    labels = sum(collection.count("train").values())
    least = TRAININGS * FINETUNE_STEPS * _finetuning_batch(labels)
    if labels and least > _images_for_finetuning(collection, epochs):
        yield (
            f"the run will take longer than asked: fine-tuning is {TRAININGS} trainings of at least {FINETUNE_STEPS} "
            "steps, however short pretraining is; give more time with --budget, or fewer finetune.seeds"
        )


def _choose_gates(collection: Collection) -> Iterator[Choice]:
    """The smallest loss that the paired test can rule out on the test images, for an equally good candidate."""
    tested = sum(collection.count("test").values())
    if tested and not _can_rule_out(GATES.max_loss, tested):
        loss = next((loss for loss in MAX_LOSSES if _can_rule_out(loss, tested)), MAX_LOSSES[-1])
        yield Choice("gates.max_loss", loss, f"on {tested:,} test images a smaller loss cannot be ruled out")


def _can_rule_out(loss: float, tested: int) -> bool:
    alone = max(1, round(tested * DISAGREEMENT / 2))
    return images_needed(tested, alone, alone, loss / 100, GATES.confidence) <= tested


def _choose_limits(collection: Collection) -> Iterator[Choice]:
    largest = max(one.width * one.height for one in collection.glances) / 1e6
    if largest > VALIDATE.max_megapixels:
        yield Choice(
            "validate.max_megapixels", MOST_PIXELS // 10**6, f"images of {largest:.0f} megapixels are among them"
        )
    tenth = collection.training_images // 10
    news = max(VALIDATE.min_images, min(1000, tenth))
    if news < 1000:
        reason = f"a tenth of the {collection.training_images:,} training images there are now"
        if tenth < VALIDATE.min_images:
            reason = f"the fewest worth a run; {reason} would be {tenth}"
        yield Choice("retraining.min_new_images", news, reason)


def _notes(collection: Collection, machine: Machine) -> Iterator[str]:
    if collection.unreadable:
        sampled = collection.unreadable + len(collection.glances)
        yield f"{collection.unreadable:,} of {sampled:,} sampled images cannot be decoded and will be quarantined"
    if collection.unread_heic:
        yield f"{collection.unread_heic:,} of the images: {heif.ADVICE}"
    if collection.copies > 0.2:
        yield f"{collection.copies:.0%} of the sampled images are nearly a copy of another one"
    if collection.share("deep") > 0:
        yield f"{collection.share('deep'):.0%} of the images have more than 8 bits a channel and are reduced to 8"
    needed = 2 * collection.images * collection.image_bytes / 1e9
    if needed > 0.8 * machine.free_disk_gigabytes:
        yield (
            f"raw images and their cache take about {needed:.0f} GB, {machine.free_disk_gigabytes:.0f} GB are free; "
            "make the workspace on a larger disk"
        )
