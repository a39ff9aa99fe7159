"""What the folders and tables of a source say about its files: the split and the label of each.

    unlabeled/**            training images without a label, and so is everything in other folders
    labeled/<class>/**      training images with a label; train/ means the same
    test/<class>/**         held out; val/ means the same, because there is one held-out set here: what training needs
                            for its choices, it sets aside from the training images
    labels.csv              anywhere; its paths are relative to its folder, and it overrules the folders; it alone says
                            which images are of one group

The same folders inside one folder, as in ``pets/{train,val}/<class>``, are read too, if it has both kinds. What is said
counts: nothing held out is trained on. What can be read in two ways is refused, and what looks like a slip is noted.
"""

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deploy.failure import printable
from deploy.folders.files import is_labels
from deploy.plural import counted, listed
from pipeline.errors import IngestError
from pipeline.ingest.labels.columns import describe_unused, names_files
from pipeline.ingest.labels.folders import (
    LABELED,
    ROLES,
    TEST,
    UNLABELED,
    describe_deep_class,
    describe_near_misses,
    describe_role,
    describe_source,
    refuse_held_out,
    role_of,
)
from pipeline.ingest.labels.labels_csv import Row, columns_of, read_rows
from pipeline.ingest.labels.matching import match_rows
from pipeline.ingest.labels.names import clean, fold
from pipeline.ingest.sources import Source
from simclr_core.data import label_sets

SHOWN_FAULTS = 3
TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")


class Place(NamedTuple):
    """``split`` is "train" or "test"; ``label`` and ``group`` None: not known. ``label`` may be that of a set."""

    split: str
    label: str | None
    group: str | None = None


@dataclass
class Reading:
    """How a source is read: the place of each file, and what a person may not have meant, with the number of files.

    A number of 0 is not shown: the note is not about files. ``named`` are the files that a table names, ``split`` those
    of them of which it says the split, ``unsplit`` those of which neither it nor their folder does, ``labeled`` those
    of a table with labels. ``unlabeled`` are the files in a folder that says so.
    """

    places: dict[str, Place] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    named: set[str] = field(default_factory=set)
    split: set[str] = field(default_factory=set)
    unsplit: set[str] = field(default_factory=set)
    labeled: set[str] = field(default_factory=set)
    unlabeled: set[str] = field(default_factory=set)

    def without_split(self, paths: Iterable[str]) -> list[str]:
        """Those that are trained on, and of which no table says the split."""
        return [path for path in paths if self.places[path].split == "train" and path not in self.split]

    def labels_of(self, paths: Iterable[str]) -> set[str | None]:
        return {self.places[path].label for path in paths}


def place(path: str, class_folders: bool = False) -> Place:
    """What the folders of a file say: ``labeled/cat/a.jpg`` → train, cat; with ``class_folders`` also ``cat/a.jpg``."""
    top, *below = _parts(path)
    if class_folders and below and fold(top) not in ROLES:
        return Place("train", clean(top))
    match ROLES.get(fold(top)), below:
        case "labeled", [label, _, *_]:
            return Place("train", clean(label))
        case "test", [label, _, *_]:
            return Place("test", clean(label))
        case "test", [_]:
            return Place("test", None)
    return Place("train", None)


def hold_out(place: Place, sha256: str, share: float) -> Place:
    """The place of a labeled training image that ``share`` puts into the test set instead, by its content alone; with
    all other labeled ones of its group, by the name of that."""
    drawn = sha256 if place.group is None else hashlib.sha256(place.group.encode()).hexdigest()
    chosen = place.split == "train" and place.label is not None and int(drawn[-8:], 16) < share * 16**8
    return place._replace(split="test") if chosen else place


class Placed(NamedTuple):
    """A folder as it would be in an inbox, the paths of files in it, and how many more are in it."""

    folder: str
    paths: Sequence[str]
    more: int = 0


def read_layout(
    source: Source, inbox: Path, class_folders: bool = False, sizes: Mapping[str, int] | None = None
) -> Reading:
    """The places of all files of a source, by its folders and its tables.

    Args:
        class_folders: whether a first folder with another name than those of an inbox is a class.
        sizes: folder → number of files directly in it, where the source has only some of each and no table.

    Raises:
        IngestError: it can be read in two ways, or a table cannot be read.
    """
    paths = [*source.files, *source.unsettled]
    prefix, reading, faults = _prefix(source.base, inbox), Reading(), list[str]()
    if prefix and prefix.partition("/")[0] not in (UNLABELED, ""):
        total = sum(sizes.values()) if sizes else len(paths)
        reading.notes[f"{source.name}: read as the folder {prefix} of an inbox"] += total
    folders = defaultdict[str, list[str]](list)
    for path in paths:
        folders[posixpath.dirname(path)].append(path)
    datasets, placed = set() if prefix else _datasets(folders), list[Placed]()
    for folder, inside in folders.items():
        root = next((one for one in _parents(folder) if one in datasets), "")
        within = prefix + (posixpath.relpath(folder, root) if root else folder)
        count = sizes[folder] if sizes else len(inside)
        if root:
            note = f"{root}/ is read like an inbox, because it has folders for training and for testing"
            reading.notes[note] += count
        _read_folder(within, inside, reading, faults, class_folders)
        placed.append(Placed(within, inside, count - len(inside)))
        if label_sets.SEPARATOR in folder:
            faults.append(f"{printable(folder)}/ has a control character in its name; name the folder without it")
    _read_tables(source, reading, faults)
    folder_of_source = Path(source.base.removeprefix("file://"))
    if not prefix and not folder_of_source.is_relative_to(inbox):
        _read_own_name(folder_of_source, placed, reading, faults)
    for one in placed:
        _read_names(one, reading, faults, class_folders)
    _note_deep_classes(placed, reading)
    faults += _without_class(reading)
    if faults:
        raise IngestError(f"{source.name}: {listed(faults, SHOWN_FAULTS, '; ')}")
    return reading


def _parts(path: str) -> list[str]:
    """The folders and the name. A file named ``test\\cat\\1.png`` was unpacked from a Windows archive."""
    top, _, below = path.partition("/")
    pieces = top.split("\\")
    if fold(pieces[0]) not in ROLES:
        pieces = [top]
    return pieces + (below.split("/") if below else [])


def _parents(folder: str) -> Iterator[str]:
    """The folder and those it is in, from the top."""
    parts = folder.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _prefix(base: str, inbox: Path) -> str:
    """Where in an inbox a source would be: inside it, where it is; outside, what its name says."""
    folder = Path(base.removeprefix("file://"))
    if folder.is_relative_to(inbox):
        return f"{folder.relative_to(inbox).as_posix()}/" if folder != inbox else ""
    return f"{folder.name}/" if fold(folder.name) in ROLES else ""


def _datasets(folders: Iterable[str]) -> set[str]:
    """The folders that have separate folders for training and for testing."""
    roles = defaultdict[str, set[str]](set)
    for folder in folders:
        if fold(folder.partition("/")[0]) not in ROLES:
            for inner in _parents(folder):
                parent, _, name = inner.rpartition("/")
                roles[parent].add(ROLES.get(fold(name), ""))
    return {parent for parent, found in roles.items() if parent and {LABELED, TEST} <= found}


def _read_folder(folder: str, paths: Sequence[str], reading: Reading, faults: list[str], class_folders: bool) -> None:
    """Note the places of the files that are directly in a folder."""
    for path in paths:  # each: at the top, a name of a Windows archive says more than the folder
        reading.places[path] = place(f"{folder}/{PurePosixPath(path).name}" if folder else path, class_folders)
    parts = _parts(folder)
    role = role_of(parts[0])
    if role == UNLABELED:
        reading.unlabeled.update(paths)
    if role in (LABELED, TEST) and len(parts) > 2 and fold(parts[1]) in ROLES:
        fault = (
            f"{'/'.join(parts[:2])}/ says two things; move its folders to {ROLES[fold(parts[1])]}/, one for each class"
        )
        faults += [] if fault in faults else [fault]


def _read_names(placed: Placed, reading: Reading, faults: list[str], class_folders: bool) -> None:
    """Note what is odd about the names of a folder. Refuse one that is held out by its name if it would be trained on
    with labels: a test set becomes part of the training set by that."""
    if not placed.folder:
        return
    parts, silent = _parts(placed.folder), reading.without_split(placed.paths)
    labels = reading.labels_of(silent)
    for text in describe_role(parts):
        reading.notes[text] += len(placed.paths) + placed.more
    refused = list(refuse_held_out(parts, labels - {None}))
    faults += [fault for fault in refused if fault not in faults]
    if silent and not refused:
        for text in describe_near_misses(parts, class_folders, labels):
            reading.notes[text] += len(silent) + placed.more


def _note_deep_classes(placed: Iterable[Placed], reading: Reading) -> None:
    """Note the classes of which every file that no table names is in one of several folders."""
    classes = defaultdict[str, Counter[str]](Counter)
    for folder, paths, more in placed:
        top, *below = _parts(folder)
        if below and role_of(top) in (LABELED, TEST):
            count = sum(path not in reading.named for path in paths) + more
            classes[f"{top}/{below[0]}"]["".join(below[1:2])] += count
    for folder, inner in ((folder, +inner) for folder, inner in classes.items()):
        if len(inner) > 1 and "" not in inner:
            reading.notes[describe_deep_class(folder, [*inner])] += inner.total()


def _read_own_name(folder: Path, placed: Sequence[Placed], reading: Reading, faults: list[str]) -> None:
    """Note or refuse what a source is by its own name, if nothing in it says what is held out."""
    paths = [path for one in placed for path in one.paths]
    silent = reading.without_split(paths)
    if not silent or len(silent) < len(paths):
        return
    labels = reading.labels_of(silent)
    if refused := list(refuse_held_out([folder.name], labels - {None})):
        faults += refused
    else:
        reading.notes.update(
            dict.fromkeys(describe_source(folder, labels), len(paths) + sum(one.more for one in placed))
        )


def _without_class(reading: Reading) -> list[str]:
    """What is wrong if images are held out without a class, and no table says that they have none."""
    bare = [
        path
        for path, place in reading.places.items()
        if place.split == "test" and place.label is None and path not in reading.labeled
    ]
    if not bare:
        return []
    return [
        f"{counted(len(bare), 'held-out image')} without a class, such as {bare[0]!r}; move each to "
        "test/<class>/ or name it in labels.csv, or move it to unlabeled/ if it may be trained on"
    ]


def _read_tables(source: Source, reading: Reading, faults: list[str]) -> None:
    """Let the tables overrule the folders."""
    reading.notes.update(
        f"{path!r} is not read: it {reason}; copy the table itself to this place"
        if is_labels(path)
        else f"{path!r} is not read: only a table named labels.csv gives labels"
        for path, reason in source.passed_over.items()
        if path.lower().endswith(TABLES)
    )
    for table in source.writing:
        reading.notes[
            f"{source.name}/{table}: changed a moment ago; it and the files next to it are left for later"
        ] = 0
    for table in source.labels:
        where, data = f"{source.name}/{table}", source.read_labels(table)
        if "/" in table and not names_files(columns_of(data)):
            reading.notes[
                f"{table!r} is not read, because its columns are not path,label, path,labels or path,group"
            ] += 1
            continue
        found = match_rows(where, read_rows(where, data), table, source.base, reading.places.keys() | source.left_out)
        for path, row in found.rows.items():
            if path in source.left_out:
                continue
            if path in reading.named:
                raise IngestError(f"{where}: line {row.line} names {row.path!r} again; give each file one row")
            faults += _overrule(where, path, row, reading)
        reading.named |= found.rows.keys()
        reading.split |= {path for path, row in found.rows.items() if row.split}
        reading.labeled |= {path for path, row in found.rows.items() if row.labels}
        like_sets = [one.label for one in found.rows.values() if one.label and (one.label == "-" or "|" in one.label)]
        if like_sets:
            reading.notes[
                f"{where}: {like_sets[0]!r} is the name of one class; name the column labels, not label, if images may "
                "have several labels or none"
            ] += len(like_sets)
        if found.lost:
            reading.notes[found.lost] = 0
        if unused := describe_unused(columns_of(data)):
            reading.notes[f"{where}: {unused}"] = 0


def _overrule(where: str, path: str, row: Row, reading: Reading) -> list[str]:
    folder = reading.places[path]
    label = row.label if row.labels else folder.label
    reading.places[path] = Place(row.split or folder.split, label, row.group)
    if row.split is None and folder.split == "train":  # of a folder that is not test/, or of none
        reading.unsplit.add(path)
    if folder.label is not None and label != folder.label:
        reading.notes[f"{where} overrules the class that the folder says"] += 1
    if row.split == "train" and folder.split == "test":
        return [
            f"{where}: line {row.line} puts {path!r} into train, its folder holds it out; move it or correct the line"
        ]
    return []
