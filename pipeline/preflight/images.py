"""How many images there are, of each label and in each batch."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.ingest.claims import judge, read_known
from pipeline.ingest.raw import batches
from pipeline.workspace import Workspace
from simclr_core.data import label_sets


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
