"""The rules: from what a collection and a machine are, and from the time there is, to the values of params.yaml.

Each value comes with its reason. The rules are ours; the constants of a recipe have their sources in its file.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deploy.images import heif
from deploy.images.background import LEVELS, WHITE
from deploy.images.preprocess import MOST_PIXELS
from deploy.plural import counted, duration, listed
from pipeline.config import GatesConfig, ValidateConfig
from pipeline.preflight.images import Images
from pipeline.proposal.class_folders import look_like_classes, note_mixed_folders
from pipeline.proposal.collection import Collection
from pipeline.proposal.glance import Glance
from pipeline.proposal.judging import MOST
from pipeline.proposal.machine import Machine
from pipeline.proposal.training import (
    COLORED,
    FEWEST_EPOCHS,
    LARGEST_BATCH_ON_CPU,
    Fitted,
    Training,
    Trial,
    Try,
    choose_recipe,
    choose_side,
    fit,
)
from pipeline.recipes.recipe import DEFAULT
from pipeline.validation.reasons import REASONS
from simclr_core.evaluation.paired_comparison import images_needed

RATE_OF_256 = 0.15  # cpu-small's peak of the learning rate for a batch of 256
HELD_OUT = 0.25  # of the labeled images, where nothing is held out
MAX_LOSSES = (3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)
DISAGREEMENT = 0.1  # of two encoders that are equally good: the share of the test images that one alone classifies
GATES, VALIDATE = GatesConfig(), ValidateConfig()  # as in every recipe


@dataclass(frozen=True)
class Choice:
    """A key of params.yaml, as in ``pretrain.image_size``; its value; and why, as the end of a sentence."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Proposal:
    """A recipe, the values that differ from it, and what a person should know before a run.

    ``images`` are those that will be ingested with these values, ``trial`` is what was measured for them.
    """

    recipe: str
    reason: str
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    images: Images
    trial: Trial


def propose(collection: Collection, machine: Machine, seconds: float, attempt: Try) -> Proposal:
    """Choose the recipe by the images, then fit resolution and epochs to the time.

    Args:
        seconds: for the whole first run.
        attempt: asked once, or up to three times when the resolution has to be lower.
    """
    labels = {one.key: one for one in _choose_labels(collection)}
    mixed = [*note_mixed_folders(collection)]
    if "ingest.class_folders" in labels:
        collection = collection.with_class_folders()
    if "ingest.hold_out" in labels:
        collection = collection.with_held_out(HELD_OUT)
    recipe, why = choose_recipe(collection, machine)
    wanted, detail = choose_side(collection, machine, recipe)
    fitted = fit(collection, machine, recipe, wanted, seconds, attempt)
    training = fitted.training
    if training.side < wanted:
        detail = f"{wanted} pixels would keep more detail, but there is no time for {FEWEST_EPOCHS} epochs at that size"
    choices = [
        *labels.values(),
        *_choose_limits(collection),
        *_choose_background(collection),
        *_choose_channels(collection),
        *_choose_training(collection, machine, training, detail),
        Choice("pretrain.epochs", fitted.epochs, fitted.reason),
        *_choose_evaluation(collection, fitted),
        *_choose_gates(collection),
    ]
    background = next((choice.value for choice in choices if choice.key == "prepare.background"), WHITE)
    notes = (*mixed, *collection.notes, *_notes(collection, background), *_warn_of_time(fitted, seconds))
    return Proposal(recipe, why, tuple(choices), notes, collection.numbers, fitted.trial)


def _choose_labels(collection: Collection) -> Iterator[Choice]:
    classes = look_like_classes(collection)
    if classes:
        folders = sorted(collection.folders)
        named = listed(folders, 3)
        yield Choice("ingest.class_folders", True, f"{counted(len(folders), 'folder')} that look like classes: {named}")
    if (classes or len(collection.count("train")) > 1) and not collection.count("test"):
        yield Choice(
            "ingest.hold_out", HELD_OUT, "accuracy is measured on held-out images, and nothing is held out yet"
        )


def _choose_training(collection: Collection, machine: Machine, training: Training, detail: str) -> Iterator[Choice]:
    images, side, batch = collection.training_images, training.side, training.batch
    device = "GPU" if machine.gpu_gigabytes else "CPU"
    encoder = {"name": training.encoder, "width": training.width, "stem": training.stem}
    yield Choice("pretrain.encoder", encoder, f"sized for a {device}, with a stem for images of {side} pixels")
    yield Choice("pretrain.image_size", side, detail)
    yield Choice("pretrain.resize", None, "null: the same as image_size")
    steps = counted(images // batch, "step")
    yield Choice("pretrain.batch_size", batch, f"{steps} in an epoch of {counted(images, 'training image')}")
    if training.recipe == DEFAULT and batch != LARGEST_BATCH_ON_CPU:
        yield Choice(
            "pretrain.learning_rate", RATE_OF_256 / 16, f"{RATE_OF_256 / 16 * batch**0.5:.3f} for a batch of {batch}"
        )
        yield Choice("pretrain.learning_rate_scaling", "sqrt", "small batches need more than their share (SimCLR B.1)")
    if collection.share("has_color") < COLORED and training.recipe not in (DEFAULT, "inspection", "microscopy-medical"):
        gray = 1 - collection.share("has_color")
        yield Choice("pretrain.augmentation.grayscale", 0.0, f"{gray:.0%} of the images are gray already")


def _choose_evaluation(collection: Collection, fitted: Fitted) -> Iterator[Choice]:
    labels = sum(collection.count("train").values())
    if not labels:
        return
    chosen = fitted.judging
    if chosen.tuning_epochs < MOST.tuning_epochs:
        yield Choice("finetune.epochs", chosen.tuning_epochs, "what the time allows on a tenth of the labels")
    if chosen.seeds != MOST.seeds:
        yield Choice("finetune.seeds", [*chosen.seeds], "what the time allows; more seeds make its accuracy surer")
    if chosen.draws < MOST.draws:
        yield Choice("linear_eval.draws", chosen.draws, "what the time allows")
    if chosen.labels_per_class != MOST.labels_per_class:
        yield Choice("linear_eval.labels_per_class", [*chosen.labels_per_class], "what the time allows")
    batch, tenth = fitted.training.tuning_batch, max(1, labels // 10)
    steps = tenth // min(batch, tenth)
    yield Choice("finetune.batch_size", batch, f"{counted(steps, 'step')} in an epoch of a tenth of {labels:,} labels")


def _warn_of_time(fitted: Fitted, seconds: float) -> Iterator[str]:
    least = fitted.trial.seconds(1, fitted.judging)
    if least > seconds:
        yield (
            f"a run takes longer than {duration(seconds)}: even with one epoch of pretraining it is about "
            f"{duration(least)}, for the stages' starts, evaluation and fine-tuning; give more time with --budget"
        )


def _choose_gates(collection: Collection) -> Iterator[Choice]:
    """The smallest loss that the paired test can rule out on the test images, for an equally good candidate."""
    numbers = collection.numbers
    tested = numbers.judging
    if tested and not _can_rule_out(GATES.max_loss, tested):
        loss = next((loss for loss in MAX_LOSSES if _can_rule_out(loss, tested)), MAX_LOSSES[-1])
        shown = f"on {counted(numbers.tested, 'test image')}"
        if tested < numbers.tested:
            shown = f"{shown}, which count as {tested:,} since each class counts the same,"
        yield Choice("gates.max_loss", loss, f"{shown} a smaller loss cannot be ruled out")


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


def _choose_background(collection: Collection) -> Iterator[Choice]:
    """White, unless fewer images are blank on another color: white drawings on nothing are blank on white."""
    blank = {background: collection.blank(background, VALIDATE.min_standard_deviation) for background in LEVELS}
    best = min(blank, key=blank.__getitem__)
    if blank[best] < blank[WHITE]:
        sampled = counted(len(collection.glances), "sampled image")
        reason = f"{blank[WHITE]:,} of {sampled} would be of one color on white, {blank[best] or 'none'} on {best}"
        yield Choice("prepare.background", best, reason)


def _choose_channels(collection: Collection) -> Iterator[Choice]:
    """Full depth where the images can be read with one number of channels, and 8-bit RGB would lose something."""
    if channels := collection.channels:
        share = collection.share("needs_depth")
        reason = f"{share:.0%} of the images are arrays, or have more than 8 bits or other channels than 8-bit RGB"
        if (count := _having(collection, channels)) < len(collection.glances):
            have = f"have {counted(channels, 'channel')}"
            reason = f"{count:,} of {collection.sampled:,} {have}; the others will be quarantined"
        yield Choice("prepare.channels", channels, reason)


def _warn_of_quarantine(collection: Collection, background: str) -> Iterator[str]:
    """What the data contract will say of the sample. Copies are not looked for: few copies of one picture are in it."""
    found = defaultdict[str, list[str]](list, {"cannot be decoded": [*collection.unreadable]})
    for path, one in zip(collection.paths, collection.glances, strict=True):
        if reason := _fault(one, background, collection.channels):
            found[REASONS[reason]].append(path)
    if not (refused := sum(map(len, found.values()))):
        return
    kinds = "; ".join(
        f"{len(paths):,}: {kind}, {'such as ' if len(paths) > 1 else ''}{paths[0]!r}"
        for kind, paths in sorted(found.items(), key=lambda item: -len(item[1]))
        if paths
    )
    sentence = f"{refused:,} of {counted(collection.sampled, 'sampled image')} will be quarantined ({kinds})"
    if refused > VALIDATE.max_quarantine_rate * collection.sampled:
        sentence += (
            f"; the first run will stop at the data contract, which allows {VALIDATE.max_quarantine_rate:.0%}: leave "
            "such files out by ingest.exclude, or raise validate.max_quarantine_rate"
        )
    yield sentence


def _having(collection: Collection, channels: int) -> int:
    return sum(one.channels == channels for one in collection.glances)


def _fault(one: Glance, background: str, channels: int | None) -> str | None:
    if channels and one.channels != channels:
        return "wrong_channels"
    if one.frames > 1 and VALIDATE.animated == "quarantine":
        return "animated"
    if one.short_side < VALIDATE.min_side:
        return "too_small"
    if max(one.width, one.height) > VALIDATE.max_aspect * one.short_side:
        return "extreme_aspect"
    return "low_information" if one.deviations[background] < VALIDATE.min_standard_deviation else None


def _notes(collection: Collection, background: str) -> Iterator[str]:
    yield from _warn_of_quarantine(collection, background)
    if collection.unread_heic:
        yield f"{collection.unread_heic:,} of the images: {heif.ADVICE}"
    if collection.copies > 0.2:
        yield f"{collection.copies:.0%} of the sampled images are nearly a copy of another one"
    if collection.share("deep") > 0 and not collection.channels:
        yield f"{collection.share('deep'):.0%} of the images have more than 8 bits a channel and are reduced to 8"
