"""What the names of folders say: of an inbox (``labeled``, ``test``), and of what may be meant for one of them.

The functions take the names of a folder and of those it is in, from the top, as ``parts``.
"""

from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from deploy.plural import listed
from pipeline.ingest.labels.names import (
    HELD_OUT,
    PERHAPS_HELD_OUT,
    TRAINED,
    clean,
    fold,
    is_held_out,
    stem,
    words_of,
)

UNLABELED, LABELED, TEST = "unlabeled", "labeled", "test"
ROLES = {
    **dict.fromkeys(("unlabeled", "unlabelled"), UNLABELED),
    **dict.fromkeys(("labeled", "labelled", "train", "training"), LABELED),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation"), TEST),
}
NEAR = 0.82  # how alike a folder's name and one of these have to be to be taken for a slip
NEAR_WORDS = {
    **dict.fromkeys(sorted(HELD_OUT | PERHAPS_HELD_OUT | {"fold"}), TEST),
    **dict.fromkeys(sorted(TRAINED | {"label", "labels"}), LABELED),
    **ROLES,
}
SHOWN_FOLDERS = 3
SHORT = 2  # letters of a word that stands for one of these only as a whole name


def role_of(name: str) -> str | None:
    """The folder of an inbox that a name means."""
    return ROLES.get(fold(name))


def describe_role(parts: Sequence[str]) -> Iterator[str]:
    """How a folder of an inbox is read, where it is written in another way or lacks the folders of classes."""
    top, role = parts[0], role_of(parts[0])
    if role is not None and top != role:
        why = ", because what is set aside is never trained on" if fold(top).startswith("val") else ""
        yield f"{top}/ is read as {role}/{why}"
    if role == LABELED and len(parts) == 1:
        yield f"images directly in {top}/ have no class; taken as unlabeled: move them to {top}/<class>/"


def refuse_held_out(parts: Sequence[str], labels: Collection[str | None]) -> Iterator[str]:
    """A fault for a folder, other than that of the class, whose name says that what is in it is held out.

    Args:
        labels: with which files in it would be trained on.
    """
    for depth, part in enumerate(parts, start=1):
        if is_held_out(part) and not set(labels) <= {clean(part)}:
            yield (
                f"{'/'.join(parts[:depth])}/ is held out by its name, and would be trained on with its labels; move it "
                "to test/<class>/, or give the split of each image, train or test, in labels.csv"
            )
            return


def describe_near_misses(parts: Sequence[str], class_folders: bool, labels: Collection[str | None]) -> Iterator[str]:
    """What the names of folders with training images may mean otherwise.

    Args:
        labels: of these images.
    """
    top, role = parts[0], role_of(parts[0])
    label = parts[min(1, len(parts) - 1)] if role == LABELED else top if role is None and class_folders else None
    if role is None and (meant := find_meant(top)):
        taken = f"class {top}" if class_folders else _kind(labels)
        yield f"{top}/ is taken as {taken}; if {meant}/ is meant, name it so"
    taken = f"as class {label}" if label is not None else "with its labels" if any(labels) else "unlabeled"
    words = ROLES if role == LABELED else NEAR_WORDS  # a class may have the name of a near miss
    for depth in range(2, len(parts) + 1):
        meant = words.get("".join(words_of(parts[depth - 1])))
        if (
            meant == TEST
            or (meant == LABELED and role != LABELED)
            or (meant == UNLABELED and label == parts[depth - 1])
        ):
            target = f"{meant}/" if meant == UNLABELED else f"{meant}/<class>/"
            yield f"{'/'.join(parts[:depth])}/ is trained on, {taken}; if {meant}/ is meant, move it to {target}"
            return


def describe_deep_class(folder: str, inner: Sequence[str]) -> str:
    """``sorted/cat`` was copied to ``labeled/A/cat``, perhaps: no file of a class is directly in its folder."""
    names = listed(sorted(inner), SHOWN_FOLDERS)
    return f"{folder}/ holds the folders {names}; if these are the classes, move them up"


def describe_source(folder: Path, labels: Collection[str | None]) -> Iterator[str]:
    """What a source outside of an inbox may be by its own name: ``pets_test``, ``test/cat``."""
    within = role_of(folder.parent.name)
    meant = within if within in (LABELED, TEST) else find_meant(folder.name)
    if meant == TEST or (meant == LABELED and not any(labels)):
        name = f"{folder.parent.name}/{folder.name}" if meant == within else folder.name
        remedy = f"name the folder {folder.parent.name} as the source" if meant == within else f"name it {meant}"
        yield f"{name}/ is taken as {_kind(labels)}; if {meant}/ is meant, {remedy}"


def _kind(labels: Collection[str | None]) -> str:
    return "training images" if any(labels) else "unlabeled training images"


def find_meant(name: str) -> str | None:
    """The folder that a name may stand for: ``test_set``, ``tset``, ``images-val``, ``train2017``, ``fold0``."""
    words = words_of(name)
    for word in [*words, "".join(words)]:
        if len(word) <= SHORT < len("".join(words)):
            continue
        for one in (word, stem(word)):
            if one in NEAR_WORDS and (one == word or len(one) > SHORT):
                return NEAR_WORDS[one]
        if close := get_close_matches(word, [one for one in NEAR_WORDS if len(one) > 3], n=1, cutoff=NEAR):
            return NEAR_WORDS[close[0]]
        if sorted(word) == sorted(TEST):
            return TEST
    return None
