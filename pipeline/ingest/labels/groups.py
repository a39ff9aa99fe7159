"""Groups of images, such as those of one patient, part or video: what a person should know of them after an ingest.

Two images of a group are positives of each other in pretraining (``simclr_core.data.groups``), so a name has to mean
the same thing in all tables, and a group that is in the training set and in the test set leaks from one to the other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from deploy.failure import printable
from deploy.plural import counted
from pipeline.ingest.labels.names import fold

MISSING = ("nan", "none", "null", "n/a", "na", "<na>")  # pandas, Python, SQL and R

Groups = Mapping[str, Mapping[str, int]]
"""Group → split → number of images."""


def describe_groups(images: Iterable[tuple[str, str | None]]) -> Iterator[str]:
    """Lines on the groups of all images in use.

    Args:
        images: split and group of each; None: it has none.
    """
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for split, group in images:
        if group is not None:
            groups[group][split] += 1
    if not groups:
        return
    shared = [group for group in groups if groups[group].total() > 1]
    count = sum(groups[group].total() for group in shared)
    yield f"{counted(len(shared), 'group')} of {counted(count, 'image')}: positives of each other in pretraining"
    yield from (f"note: {note}" for note in (*_alone(groups), *_leaks(groups), *_odd_names(groups)))


def describe_regrouped(changes: Counter[tuple[str | None, str | None]]) -> Iterator[str]:
    """What has changed of the groups of known images, in a few words.

    Args:
        changes: group before and group now, which differ → number of images.
    """
    given, taken, moved = (
        sum(number for (old, new), number in changes.items() if (old is None, new is None) == kind)
        for kind in ((True, False), (False, True), (False, False))
    )
    if given:
        yield f"{counted(given, 'known image')} put into a group"
    if moved:
        yield f"{counted(moved, 'image')} put into another group"
    if taken:
        yield f"{counted(taken, 'image')} taken out of a group"


def _alone(groups: Groups) -> Iterator[str]:
    alone = [group for group in groups if sum(groups[group].values()) == 1]
    if alone:
        yield (
            f"{counted(len(alone), 'group')} of one image, such as {_shown(alone[0])}, which count as none; give all "
            "images of the same thing the same group in labels.csv"
        )


def _leaks(groups: Groups) -> Iterator[str]:
    torn = [group for group in groups if {"train", "test"} <= groups[group].keys()]
    if torn:
        train, test = (groups[torn[0]][split] for split in ("train", "test"))
        yield (
            f"{counted(len(torn), 'group')} both in training and in test, such as {_shown(torn[0])} ({train:,} and "
            f"{test:,}): such test images are not new to the encoder, and accuracy is too high; give all images of a "
            "group the same split in labels.csv"
        )


def _odd_names(groups: Groups) -> Iterator[str]:
    for group in groups:
        if fold(group) in MISSING:
            yield (
                f"{_shown(group)} is a group, and also what programs write for a missing value; leave the cell blank "
                "for images without a group"
            )
    twins = defaultdict[str, list[str]](list)
    for group in sorted(groups):
        twins["".join(fold(group).split())].append(group)
    if alike := [names for names in twins.values() if len(names) > 1]:
        others = f" (and {counted(len(alike) - 1, 'other case')})" if len(alike) > 1 else ""
        yield (
            f"{' and '.join(map(_shown, alike[0]))}{others} are separate groups, and differ in nothing but capitals, "
            "blanks or Unicode form; if they are one, give them one name"
        )


def _shown(group: str) -> str:
    return repr(printable(group, None))
