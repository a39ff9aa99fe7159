"""What is exported: the model that ``params.yaml`` names, and its classifier with honest probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Head
from simclr_core.data.subsets import subset
from simclr_core.errors import CheckpointError
from simclr_core.evaluation.calibration import fit_temperature, held_out_logits
from simclr_core.evaluation.linear_probe import head_of, load_probe
from simclr_core.evaluation.served_accuracy import Features, LabeledImages, labeled_images
from simclr_core.model.model_directory import Model, load_model


@dataclass(frozen=True)
class Trained:
    """What is exported: a model, its classifier if there is one, its metrics, and the directory it was read from.

    ``probe`` is the card of the classifier that was fitted on frozen features; empty for a network's own.
    """

    model: Model
    head: Head | None
    metrics: dict[str, Any]
    directory: Path
    probe: dict[str, Any] = field(default_factory=dict)


def choose_model(workspace: Path, source: str) -> Trained:
    """The pretrained encoder with the linear probe; the network fine-tuned on the most labels, or the student that was
    distilled, with its own head."""
    if source == "distilled":
        directory = _distilled(workspace / "models" / "distilled")
        model = load_model(directory)
        return Trained(model, _own_head(model), {"distill": model.card.get("metrics", {})}, directory)
    if source == "finetuned":
        directory = _largest_fraction(workspace / "models" / "finetuned")
        model = load_model(directory)
        return Trained(model, _own_head(model), {"finetune": model.card.get("metrics", {})}, directory)
    directory = workspace / "models" / "pretrained"
    model = load_model(directory)
    head, probe = load_probe(workspace / "models" / "probe")
    metrics = {"pretrain": model.card.get("metrics", {}), "linear_eval": probe.get("metrics", {})}
    if "start" in probe:
        metrics["unadapted weights"] = probe["start"]
    return Trained(model, head, metrics, directory, probe)


def calibrate_head(trained: Trained, features: Features, images: LabeledImages) -> Head | None:
    """The classifier with a temperature fitted on labels that it has not seen.

    A probe has seen all labels of its budget: the temperature is that of probes fitted like it on four fifths of them,
    on the last. A fine-tuned network has left the labels outside its budget untouched, and so has its student; a
    teacher of unknown labels has seen none of these.

    Raises:
        CheckpointError: the classifier was made for other classes than the prepared images have.
    """
    head = trained.head
    if head is None:
        return None
    if head.labels != images.classes:
        raise CheckpointError(
            f"{trained.directory}: its classifier has the classes {', '.join(head.labels)}, the prepared images have "
            f"{', '.join(images.classes)}; run `simclr run` again"
        )
    train, known = images.train, images.known
    if trained.probe:
        logits, labels = held_out_logits(features.train, known, train.keys, len(head.labels), trained.probe["l2"])
    else:
        unseen = ~np.isin(train.positions, _seen(trained.model.card, images))
        logits, labels = features.train[unseen] @ head.weight + head.bias, known[unseen]
    return replace(head, temperature=fit_temperature(logits, labels))


def _seen(card: Mapping[str, Any], images: LabeledImages) -> NDArray[np.int64]:
    """The positions of the labels that a network has learned from, or its teacher."""
    (every, _), budget = labeled_images(images.train.images), card.get("labels", card["config"])
    if budget is None:
        return every.positions if card["config"]["alpha"] < 1 else every.positions[:0]
    return every.positions[subset(every.labels, every.keys, budget["fraction"], budget["seed"])]


def _distilled(directory: Path) -> Path:
    if not (directory / "model.json").exists():
        advice = "name a teacher in distill.teacher and run the stage distill, or set export.source to pretrained"
        raise CheckpointError(f"{directory}: no student was distilled; {advice}")
    return directory


def _largest_fraction(finetuned: Path) -> Path:
    directories = [path.parent for path in finetuned.glob("[01].*/model.json")]
    if not directories:
        advice = "run `simclr run --select finetune`, or set export.source to pretrained"
        raise CheckpointError(f"{finetuned}: no fine-tuned model; {advice}")
    return max(directories, key=lambda path: float(path.name))


def _own_head(model: Model) -> Head | None:
    if "weight" not in model.head:
        return None
    return head_of(model.head["weight"].T.numpy(), model.head["bias"].numpy(), model.card)
