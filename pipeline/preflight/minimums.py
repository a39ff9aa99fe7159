"""Are there enough images? With few much still works, so each minimum that is not reached is only reported, with what
follows from it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import NormalDist

from deploy.plural import counted, listed, plural
from pipeline.ingest.raw import age
from pipeline.params import Params, read
from pipeline.preflight.images import Images
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.champion import Champion
from simclr_core.data import label_sets
from simclr_core.evaluation.fewest import CALIBRATION_LABELS, PARITY_IMAGES, fold_count

SHOWN_CLASSES = 5


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


def warnings(workspace: Workspace, images: Images) -> list[str]:
    """What the numbers of images do not allow in this workspace, in sentences."""
    champion = reports.known(workspace.root, Champion)
    return too_few(images, read(workspace), champion is not None and champion.version is not None)


def too_few(images: Images, params: Params, released: bool) -> list[str]:
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
