"""A labeled set from outside the workspace: a folder of class folders, or the digits that scikit-learn brings.

    birds/train/robin/1.jpg, birds/test/robin/2.jpg     a set with its own split
    birds/robin/1.jpg, birds/robin/2.jpg                a fifth of the images is held out for the test

Which fifth follows from the SHA-256 of a file: copies of a file are on one side, and new images move none.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.folders.files import passed_over
from deploy.images.inputs import Picture
from deploy.plural import counted, listed
from simclr_core.errors import LabelError

TEST_SHARE = 5  # one image of this number is a test image where a set has no split
FEWEST = 2  # training images of a class: one to learn from, one to choose the penalty by
SHOWN = 5  # names in a message
SPLITS = ("train", "test")


@dataclass(frozen=True)
class LabeledSet:
    """Images with one class each: ``labels`` [n] index ``classes``, ``keys`` [n, 32] are SHA-256 of the content, and
    ``is_test`` [n] says which are held out, ``places`` [n] where each was when the set was opened. ``notes`` are for
    the reader of a report."""

    name: str
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]
    is_test: NDArray[np.bool_]
    places: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def only(self, kept: NDArray[np.bool_], note: str) -> "LabeledSet":
        """The images for which ``kept`` [n] is true; where that leaves some out, with a note."""
        if kept.all():
            return self
        pictures = tuple(self.pictures[place] for place in np.flatnonzero(kept))
        fewer = replace(self, pictures=pictures, labels=self.labels[kept], keys=self.keys[kept])
        return replace(fewer, is_test=self.is_test[kept], places=self.places[kept], notes=(*self.notes, note))


def open_folder(name: str, folder: Path) -> LabeledSet:
    """The set in a folder.

    Raises:
        LabelError: there is no such folder, there are no class folders, or ``check`` refuses what they hold.
    """
    if not folder.is_dir():
        raise LabelError(f"{name}: no folder {folder}; give NAME=FOLDER with a folder for each class in it")
    inner = {child.name for child in _folders(folder)}
    if inner & set(SPLITS) and not set(SPLITS) <= inner:
        given, missing = sorted(SPLITS, key=lambda split: split not in inner)
        raise LabelError(
            f"{name}: {folder} has a folder {given} and no folder {missing}; add it, or name {given} alone"
        )
    split = set(SPLITS) <= inner
    roots = {part: folder / part if split else folder for part in (SPLITS if split else ("all",))}
    found = [(part, one.name, file) for part, root in roots.items() for one in _folders(root) for file in _files(one)]
    if not found:
        raise LabelError(f"{name}: {folder} has no images in class folders; put them into {folder}/<class>/")
    classes = tuple(sorted({label for _, label, _ in found}))
    keys = np.stack([_digest(file.read_bytes()) for *_, file in found])
    is_test = np.array([part == "test" for part, *_ in found]) if split else hold_out(keys)
    labels = np.array([classes.index(label) for _, label, _ in found], np.int64)
    return LabeledSet(name, classes, tuple(file for *_, file in found), labels, keys, is_test, np.arange(len(found)))


def digits() -> LabeledSet:
    """The 1,797 handwritten digits of 8 x 8 pixels in scikit-learn (``load_digits``), levels 0 to 16 as 0 to 255."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    gray = np.round(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    keys = np.stack([_digest(image.tobytes()) for image in gray])
    pictures = tuple(np.repeat(image, 3, axis=2) for image in gray)
    classes = tuple(str(digit) for digit in range(10))
    places = np.arange(len(pictures))
    return LabeledSet("digits", classes, pictures, labels.astype(np.int64), keys, hold_out(keys), places)


def hold_out(keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which images, by their SHA-256 [n, 32], are test images where a set has no split: bool [n], a fifth of them."""
    numbers = np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0]
    return np.asarray(numbers % TEST_SHARE == 0)


def check(images: LabeledSet) -> LabeledSet:
    """The set without training images that are test images too, and without labels that contradict each other.

    Raises:
        LabelError: fewer than two classes, a class without test images, or with fewer than two training images.
    """
    images = _without_contradictions(images)
    tested = {key.tobytes() for key in images.keys[images.is_test]}
    copied = np.array([key.tobytes() in tested for key in images.keys]) & ~images.is_test
    images = images.only(~copied, f"left out of training: {counted(int(copied.sum()), 'copy')} of test images")
    if len(images.classes) < 2:
        raise LabelError(f"{images.name}: one class, {images.classes[0]!r}; give a folder for each of two or more")
    train, test = Counter(images.labels[~images.is_test].tolist()), Counter(images.labels[images.is_test].tolist())
    _refuse(images, [place for place in range(len(images.classes)) if not test[place]], "no test image")
    few = f"fewer than {FEWEST} training images"
    _refuse(images, [place for place in range(len(images.classes)) if train[place] < FEWEST], few)
    return images


def _without_contradictions(images: LabeledSet) -> LabeledSet:
    """Equal files in folders of two classes have no label that could be right."""
    known: dict[bytes, set[int]] = {}
    for key, label in zip(images.keys, images.labels.tolist(), strict=True):
        known.setdefault(key.tobytes(), set()).add(label)
    clear = np.array([len(known[key.tobytes()]) == 1 for key in images.keys])
    return images.only(clear, f"left out: {counted(int((~clear).sum()), 'file')} that are in folders of two classes")


def _refuse(images: LabeledSet, places: Sequence[int], why: str) -> None:
    if places:
        names = listed([repr(images.classes[place]) for place in places], SHOWN)
        verb = "has" if len(places) == 1 else "have"
        raise LabelError(f"{images.name}: {names} {verb} {why} that can be read; add images, or leave the class out")


def _folders(folder: Path) -> Iterator[Path]:
    yield from (one for one in sorted(folder.iterdir()) if _counts(one) and one.is_dir())


def _files(folder: Path) -> Iterator[Path]:
    yield from (one for one in sorted(folder.rglob("*")) if _counts(one, folder) and one.is_file())


def _counts(path: Path, base: Path | None = None) -> bool:
    """By the rule for folders that ``simclr-deploy`` has; no link is followed."""
    relative = path.relative_to(base) if base else Path(path.name)
    return not path.is_symlink() and passed_over(relative.as_posix()) is None


def _digest(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
