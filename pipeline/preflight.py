"""What can be known before a run: does this machine have what params.yaml asks for, and are there enough images?

What is missing is refused. With few images much still works, so each minimum that is not reached is only reported, with
what follows from it.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from deploy.errors import DeployError
from deploy.failure import install_command
from deploy.images.background import WHITE
from deploy.plural import counted, listed, plural
from deploy.trust.signature import sign
from pipeline.dvc import client, remote
from pipeline.dvc.project import read_definitions
from pipeline.environment import SIGNING_KEY_FILE
from pipeline.errors import BusyError, ParamsError, WorkspaceError
from pipeline.ingest.claims import judge, read_known
from pipeline.ingest.raw import age, batches
from pipeline.params import Params, override, read
from pipeline.workspace import Workspace, expand_home
from simclr_core import reports
from simclr_core.champion import Champion
from simclr_core.compute.settings import STAGES, read_compute, where
from simclr_core.data import label_sets
from simclr_core.encoder_names import TIMM, TIMM_MISSING
from simclr_core.errors import SimclrError
from simclr_core.evaluation.fewest import CALIBRATION_LABELS, PARITY_IMAGES, fold_count
from simclr_core.monitoring.trackers import missing_trackers
from simclr_core.pretraining.initial import is_adopted
from simclr_core.weights import FOLDER

SHOWN_CLASSES = 5


class Image(NamedTuple):
    """``split`` is "train" or "test"; ``label``, which may be that of a set, None: not known."""

    split: str
    label: str | None
    batch: str


@dataclass
class Images:
    """How many there are of each label, None for those without one, and how many training images in each batch."""

    train: Counter[str | None] = field(default_factory=Counter)
    test: Counter[str | None] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.train.total() + self.test.total()

    @property
    def labeled(self) -> int:
        return self.train.total() - self.train[None]

    @property
    def classes(self) -> list[str]:
        return sorted(label_sets.members_of(self.train))

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none of the classes."""
        return any(map(label_sets.is_set, (*self.train, *self.test)))

    @property
    def by_class(self) -> list[int]:
        """Labeled training images of each class; one with several labels counts for the rarest of them."""
        return [*label_sets.rarest_of(self.train).values()]

    @property
    def tested(self) -> int:
        return self.test.total() - self.test[None]

    @property
    def judging(self) -> int:
        """What the labeled test images count for in a comparison: of several labels, rare classes decide the mean."""
        return int(label_sets.effective_images(self.test)) if self.several else self.tested


@dataclass(frozen=True)
class Minimum:
    """How many there are of something, how many are needed and by what rule, and what happens with fewer."""

    noun: str
    found: int
    least: int
    rule: str
    otherwise: str

    def __str__(self) -> str:
        only = "only " if self.found else ""
        found = counted(self.found, self.noun) if self.found else f"no {plural(self.noun)}"
        return f"{only}{found}, and {self.rule} needs {self.least:,}: {self.otherwise}"


def apply(workspace: Workspace, values: Mapping[str, str]) -> None:
    """Write values into params.yaml, unless the run would end, perhaps after hours, where it lacks something.

    Raises:
        ParamsError: a value is not valid, or something is missing; all of it is named, and how to get it.
        BusyError: there are values, and something is at work that began with others.
    """
    if values and (holder := client.holder(workspace.root)):
        raise BusyError(f"{workspace.root}: busy with {holder}")
    override(workspace, values, lambda params: require(workspace, params))


def require(workspace: Workspace, params: Params, weights: Path | None = None) -> None:
    """Check that this machine and workspace have what params.yaml asks for; ``weights``: see ``unmet``.

    Raises:
        ParamsError: something is missing; all of it is named, and how to get it.
    """
    if missing := unmet(workspace, params, weights):
        raise ParamsError("; ".join(missing))


def unmet(workspace: Workspace, params: Params, weights: Path | None = None) -> list[str]:
    """What params.yaml asks for and this machine or workspace does not have.

    Args:
        weights: where the weights are that will be copied into the workspace; None: they are there.
    """
    missing = missing_trackers(params.watch.trackers)
    try:
        compute = read_compute(workspace.root)
    except SimclrError as error:
        missing.append(str(error))
    else:
        stages = ["validate", *STAGES]
        engines = [compute.probing.engine, *(where(workspace.root, stage).engine for stage in STAGES)]
        asking = [stage for stage, engine in zip(stages, engines, strict=True) if engine == "ray"]
        asking = asking or (["validate"] if params.validate.engine == "ray" else [])
        if asking and find_spec("ray") is None:
            missing.append(
                f"{asking[0]}.engine is ray, which is not installed; run {install_command('ray')}, or set it to local"
            )
    if params.release.require_remote and remote.find_remote(workspace.root) is None:
        missing.append(
            "release.require_remote is true, but the workspace has no DVC remote; "
            "`dvc remote add --default NAME URL` gives it one, or set it to false"
        )
    return [
        *missing,
        *_unusable_key(workspace),
        *_unwatched(workspace, params),
        *_other_channels(workspace, params),
        *_unmet_weights(workspace, params, weights),
    ]


def _unusable_key(workspace: Workspace) -> Iterator[str]:
    """Why the key that the environment names could not sign a release, hours from now."""
    given = os.environ.get(SIGNING_KEY_FILE)
    try:
        key = expand_home(given) if given else None
    except WorkspaceError as error:
        yield f"{SIGNING_KEY_FILE}: {error}"
        return
    if key and key.resolve().is_relative_to(workspace.root.resolve()):
        yield f"{SIGNING_KEY_FILE}={given}: is in the workspace, whose files are committed; move the key out of it"
    elif key:
        try:
            sign(b"", key)
        except DeployError as error:
            yield f"{SIGNING_KEY_FILE}: {error}"


def _unwatched(workspace: Workspace, params: Params) -> Iterator[str]:
    """What validation depends on, and dvc.yaml of an earlier version does not say."""
    prepare, watched = params.prepare, _stage(workspace, "validate", "params")
    changed = {"background": prepare.background != WHITE, "channels": prepare.channels is not None}
    for name in (name for name, is_set in changed.items() if is_set and f"prepare.{name}" not in watched):
        yield (
            f"prepare.{name} is {getattr(prepare, name)}, and dvc.yaml of this workspace is of an earlier "
            f"version: add `- prepare.{name}` to the params of the stage validate, so that images are judged on it"
        )


def _other_channels(workspace: Workspace, params: Params) -> Iterator[str]:
    """A released encoder that cannot see the images, with which every candidate is compared."""
    bundle = workspace.root / "models" / "champion" / "bundle" / "bundle.json"
    if not bundle.exists():
        return
    found = json.loads(bundle.read_text(encoding="utf-8"))["preprocessing"].get("channels")
    if found != params.prepare.channels:
        takes = "8-bit RGB images" if found is None else f"images with {counted(found, 'channel')}"
        yield (
            f"prepare.channels is {params.prepare.channels or 'null'}, and the released encoder takes {takes}, so that "
            "they cannot be compared; begin a new workspace for these images"
        )


def _unmet_weights(workspace: Workspace, params: Params, weights: Path | None) -> Iterator[str]:
    """Why pretraining could not begin with its encoder or its weights, hours from now."""
    pretrain = params.pretrain
    if pretrain.encoder.name.startswith(TIMM) and find_spec("timm") is None:
        yield f"pretrain.encoder.name is {pretrain.encoder.name}, and {TIMM_MISSING}"
        return
    if pretrain.init != "weights":
        return
    if not (workspace.root / FOLDER).is_dir() or FOLDER not in _stage(workspace, "initial", "deps"):
        yield (
            "pretrain.init is weights, and dvc.yaml of this workspace is of an earlier version: make the folder with "
            "`mkdir -p weights`, and add `- weights` to the deps of the stage initial and `- models/initial` to those "
            "of linear_eval, so that other weights are noticed"
        )
        return
    if weights is not None or not is_adopted(workspace.root, pretrain):
        from simclr_core.weights.adoption import adopt  # brings torch

        try:
            adopt(workspace.root, pretrain, weights)
        except SimclrError as error:
            yield str(error)


def _stage(workspace: Workspace, name: str, key: str) -> Sequence[Any]:
    """What dvc.yaml of the workspace lists there."""
    named: Sequence[Any] = read_definitions(workspace.root).get(name, {}).get(key, ())
    return named


def warnings(workspace: Workspace, images: Images) -> list[str]:
    """What the numbers of images do not allow in this workspace, in sentences."""
    champion = reports.known(workspace.root, Champion)
    return shortages(images, read(workspace), champion is not None and champion.version is not None)


def shortages(images: Images, params: Params, released: bool) -> list[str]:
    """What the numbers of images do not allow, in sentences; ``released``: whether there is a champion."""
    short = [str(one) for one in minimums(images, params, released) if one.found < one.least]
    return [*short, *_labels(images), *_equal_shares(images, params.linear_eval.fractions)]


def minimums(images: Images, params: Params, released: bool) -> Iterator[Minimum]:
    """Every number of images that a stage, a gate or a statistic needs.

    Args:
        released: whether there is a champion, which some of them compare with.
    """
    total, labeled, tested = images.train.total(), images.labeled, images.tested
    contract = "the data contract will not hold; add images, or lower the minimum"
    yield Minimum("training image", total, params.validate.min_images, "validate.min_images", contract)
    begin = "pretraining cannot begin; add images, or give a smaller batch size"
    yield Minimum("training image", total, params.pretrain.batch_size, "pretrain.batch_size", begin)
    proof = "export compares its result with PyTorch's on the images there are, which proves less"
    yield Minimum("image", total + images.test.total(), PARITY_IMAGES, "the usual proof", proof)
    unknown = "the encoder will be trained, and its accuracy stays unknown; put some into inbox/{}/<class>/"
    yield Minimum("labeled training image", labeled, 1, "measuring accuracy", unknown.format("labeled"))
    folds = fold_count(images.by_class)
    estimated = (
        "accuracy is estimated out of fold, on labeled training images, which is less sure, and labels compare no "
        "candidate with the champion; put some into inbox/test/<class>/"
    )
    otherwise = estimated if folds else unknown.format("test")
    yield Minimum("labeled test image", tested, 1, "measuring accuracy", otherwise)
    if labeled and (tested or folds):
        second = "the encoder will be trained, and its accuracy stays unknown; label images of another class"
        if len(images.classes) == 1 and not images.several:
            noun = f"class of labeled training images ({images.classes[0]!r})"
            yield Minimum(noun, 1, 2, "measuring accuracy", second)
        votes = max(params.linear_eval.knn_neighbours, params.compare.knn_neighbours)
        yield Minimum("labeled training image", labeled, votes, "kNN", "all of them vote on every image")
        sure = "the probabilities of the classifier are not calibrated"
        yield Minimum("labeled training image", labeled, CALIBRATION_LABELS, "calibration", sure)
    if released and tested:
        refused = (
            f"even a candidate that answers exactly as the champion does cannot show that it loses no more than "
            f"{params.gates.max_loss:g} points (gates.max_loss), and gates.abstain decides; add test images or raise "
            "that limit"
        )
        least = images_for_proof(params.gates.max_loss / 100, params.gates.confidence)
        noun = "labeled test image"
        if images.judging < tested:
            noun = "effective test image"
            refused = f"each class counts the same, so {counted(tested, 'labeled one')} make no more; {refused}"
        yield Minimum(noun, images.judging, least, "the gate representation", refused)
    yield from _drift(images, params, released)


def _drift(images: Images, params: Params, released: bool) -> Iterator[Minimum]:
    """What the comparison of the newest batch with the earlier ones needs, where there are earlier ones."""
    *earlier, newest = sorted(images.batches, key=age) or [""]
    before = sum(images.batches[name] for name in earlier)
    pixels, embeddings = params.validate.drift, params.embedding_drift
    looks = [("validate.drift.min_images", pixels.enabled, pixels.min_images)]
    looks += [("embedding_drift.min_images", embeddings.enabled and released, embeddings.min_images)]
    if embeddings.enabled:
        for limit, least in (("batch_images", embeddings.min_images), ("reference_images", 2 * embeddings.min_images)):
            never = f"drift is never checked; raise embedding_drift.{limit}"
            yield Minimum("compared image", getattr(embeddings, limit), least, "embedding_drift.min_images", never)
    for rule, enabled, least in looks:
        if before and enabled:
            skipped = "drift is not checked"
            yield Minimum("new training image", images.batches[newest], least, rule, skipped)
            if images.batches[newest] >= least:
                yield Minimum("earlier training image", before, 2 * least, f"twice {rule}", skipped)


def images_for_proof(max_loss: float, confidence: float) -> int:
    """The fewest test images on which an encoder that never disagrees with the champion passes ``representation``; of
    several labels, the fewest effective ones.

    Its lower bound is then -z² / (n + z²) (``simclr_core.evaluation.paired_comparison``). 0 where no number is enough.
    """
    square = NormalDist().inv_cdf(confidence) ** 2
    return math.floor(square * (1 / max_loss - 1)) + 1 if max_loss else 0


def _labels(images: Images) -> Iterator[str]:
    known, asked = map(label_sets.members_of, (images.train, images.test))
    if len(known) > 1 and (unknown := sorted(asked - known)):
        named = listed([*map(repr, unknown)], SHOWN_CLASSES)
        none = "none of these can" if asked & known else "no test image can"
        yield (
            f"test images are labeled {named}, and no training image is: {none} be classified correctly; "
            "use the same class names in both, or label such training images"
        )
    if asked & known and (untested := sorted(known - asked)):
        one = len(untested) == 1
        yield (
            f"{len(untested)} of {counted(len(known), 'class')} {'has' if one else 'have'} no test image "
            f"({listed([*map(repr, untested)], SHOWN_CLASSES)}): how well {'it is' if one else 'they are'} recognized "
            "stays unknown; put some into inbox/test/<class>/, or give them the split test in labels.csv"
        )


def lost_classes(images: Images, quarantined: Iterable[str | None]) -> Iterator[str]:
    """Classes of which no image is left, by the labels of those that are in quarantine."""
    left = label_sets.members_of((*images.train, *images.test))
    if lost := sorted(label_sets.members_of(quarantined) - left):
        yield f"all images labeled {', '.join(map(repr, lost))} are quarantined: `simclr quarantine list` says why"


def _equal_shares(images: Images, fractions: Sequence[str]) -> Iterator[str]:
    """Shares of the labels that are the same labels, because every class gives at least one."""
    counts = images.by_class
    if not counts:
        return
    shares = {one: sum(max(1, round(Fraction(one) * count)) for count in counts) for one in fractions}
    for smaller, larger in pairwise(sorted(fractions, key=Fraction)):
        if shares[smaller] == shares[larger]:
            yield (
                f"{smaller} and {larger} of the labels are the same {counted(shares[smaller], 'label')}, because every "
                "class gives at least one, so their accuracies are the same number; label more training images"
            )


def count(images: Iterable[Image]) -> Images:
    """Count images."""
    found = Images()
    for split, label, batch in images:
        (found.train if split == "train" else found.test)[label] += 1
        found.batches[batch] += split == "train"
    return found


def ingested(workspace: Workspace) -> Images:
    """What was ingested, before validation; contents with contradictory labels count as unlabeled."""
    earlier = batches(workspace.raw)
    found = Images()
    for said in read_known(earlier, lambda *_: None).values():
        split, labels, _ = judge(said)
        (found.train if split == "train" else found.test)[labels[0] if len(labels) == 1 else None] += 1
        first = min(one.batch for one in said)
        found.batches[earlier[first].name] += split == "train"
    return found
