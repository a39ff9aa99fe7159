"""Whether the folders of unlabeled images are classes, by their names and by how many images they hold."""

import re
from collections.abc import Iterator
from statistics import median

from deploy.plural import counted, listed
from pipeline.ingest.labels.folders import NEAR_WORDS
from pipeline.ingest.labels.names import is_held_out, words_of
from pipeline.proposal.collection import Collection

CLASS_FOLDERS = (2, 1000)  # fewest and most folders that may be classes
FOLDERS_SHARE = 0.8  # of the unlabeled images are in them
FEWEST_OF_A_CLASS = 3  # images in the middle one of the folders
ORIGINS = re.compile(r"\d{3}|^(dcim|batch|part|shard|chunk|page|disk|volume|camera|folder|dir)\W*_*\d*$")


def look_like_classes(collection: Collection) -> bool:
    """Whether no label is said, and folders whose names are not dates or numbers hold nearly all images, and no other
    folder any: it would be taken for a class too."""
    return bool(_class_folders(collection)) and not _other_folders(collection)


def _class_folders(collection: Collection) -> dict[str, int]:
    """The folders that look like classes, and how many images each has; none if they hold too few of all."""
    folders = {name: n for name, n in collection.folders.items() if _may_be_a_class(name)}
    if collection.count("train") or not CLASS_FOLDERS[0] <= len(folders) <= CLASS_FOLDERS[1]:
        return {}
    enough = median(folders.values()) >= FEWEST_OF_A_CLASS
    return folders if enough and sum(folders.values()) >= FOLDERS_SHARE * collection.training_images else {}


def _other_folders(collection: Collection) -> list[str]:
    return sorted(collection.folders.keys() - _class_folders(collection).keys())


def _may_be_a_class(name: str) -> bool:
    return any(map(str.isalpha, name)) and not _names_an_origin(name) and not _names_a_use(name)


def _names_a_use(name: str) -> bool:
    """``trn``, ``holdout``, ``fold_0``: what the images are used for, not what they show."""
    return is_held_out(name) or "".join(words_of(name)) in NEAR_WORDS


def _names_an_origin(name: str) -> bool:
    """``2026-11 Rome``, ``DCIM``, ``100CANON``, ``batch_07``: when or how the images came, not what they show."""
    return bool(ORIGINS.search(name.lower()))


def note_mixed_folders(collection: Collection) -> Iterator[str]:
    classes, others = _class_folders(collection), _other_folders(collection)
    if classes and others:
        yield (
            f"{counted(len(classes), 'folder')} ({listed(sorted(classes), 3)}) could be classes, and "
            f"{listed(others, 3)} could not, so no folder is taken for a class; move what is not one into a folder "
            "unlabeled/ next to them, or leave it out with ingest.exclude, and look again"
        )
