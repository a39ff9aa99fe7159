"""What a person labels next, as files: a table to fill in, a sheet of pictures, and the paths alone.

    reports/suggest-typical.csv   path, label, guess, why: ingest reads path and label
    reports/suggest-typical.png   the images, in the order of the rows
    reports/suggest-typical.txt   a path in each line, for `simclr explore`

Git leaves them out: they show images, and a purge cannot reach a commit. Which images, ``simclr_core.suggest`` chooses.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path

from deploy.artifact import write_atomically
from deploy.failure import printable
from deploy.plural import counted
from pipeline.errors import ValidationError
from pipeline.git import leave_out
from pipeline.ingest.labels.columns import names_files
from pipeline.ingest.labels.labels_csv import columns_of, read_rows
from pipeline.validation.report.thumbnails import contact_sheet, shrink
from pipeline.workspace import Workspace
from simclr_core.data.shards import ShardedImages, stored_pixels
from simclr_core.evaluation.scores.predictions import read_paths
from simclr_core.suggest import By
from simclr_core.suggest.choose import Suggestion, Suggestions, choose

COLUMNS = 10  # of the sheet
SHOWN = 200  # images on it
FOLDER = "suggested"  # of the inbox
CHOSEN = {
    "typical": "the most typical image of each large group of similar images that has the fewest labels (TypiClust)",
    "diverse": "each the farthest from all images that have a label or were chosen before it (k-center greedy)",
    "uncertain": "those for which the linear probe hesitates most between two classes (margin)",
    "novel": "those that are least like any labeled image, or, without labels, like any other one",
    "mistakes": "labels that probes which have not seen them contradict with confidence (confident learning)",
}


def suggest(workspace: Workspace, by: By, budget: int) -> str:
    """Choose, write the files, and say what to do with them.

    Raises:
        PipelineError, SimclrError, DeployError: nothing can be chosen this way, or the workspace lacks what it takes.
    """
    found = choose(workspace.root, by, budget)
    paths = _paths(workspace, found.images)
    base = workspace.reports / f"suggest-{by}"
    base.parent.mkdir(exist_ok=True)
    leave_out(workspace.reports, *(f"{base.name}{suffix}" for suffix in (".csv", ".png", ".txt")))
    kept = write_table(base.with_suffix(".csv"), table(found, paths), workspace.scratch / f"{base.name}.sha256")
    write_atomically(base.with_suffix(".txt"), "".join(f"{path}\n" for path in paths))
    write_atomically(base.with_suffix(".png"), draw(found, ShardedImages(workspace.prepared / "train")))
    said = describe(workspace, found, paths, base.relative_to(workspace.root))
    notes = [f"kept      {kept.relative_to(workspace.root)}, the table from before, which was edited"] if kept else []
    return "\n".join([*notes, *said])


def write_table(path: Path, content: str, note: Path) -> Path | None:
    """Write a table and note its hash; one in its place that a person has edited since gets another name, which is
    returned: labels take hours."""
    kept = None
    if path.exists() and not (note.exists() and note.read_text(encoding="utf-8") == _digest(path.read_bytes())):
        numbered = (path.with_name(f"{path.stem}-{number}.csv") for number in count(1))
        kept = next(name for name in numbered if not name.exists())
        leave_out(path.parent, kept.name)
        path.rename(kept)
    note.parent.mkdir(exist_ok=True)
    write_atomically(note, _digest(content.encode()))
    write_atomically(path, content)
    return kept


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def table(found: Suggestions, paths: Sequence[str]) -> str:
    """The rows of a labels.csv, with two columns more for the person who fills it in."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("path", "labels" if found.multi_label else "label", "guess", "why"))
    writer.writerows((path, one.label, one.guess, one.why) for path, one in zip(paths, found.images, strict=True))
    return content.getvalue()


def draw(found: Suggestions, images: ShardedImages) -> bytes:
    """A PNG of the first images, each with its row in the table, and the probe's guess or the suspected label."""
    shown = found.images[:SHOWN]
    title = f"{counted(len(found.images), 'image')} by {found.by}: {CHOSEN[found.by]}"
    tiles = [
        (printable(f"{row} {_shown(one)}", 20), shrink(stored_pixels(images, one.position)))
        for row, one in enumerate(shown, start=2)  # as a spreadsheet counts
    ]
    return contact_sheet(title, tiles, COLUMNS)


def _shown(one: Suggestion) -> str:
    """In a few letters: a label that may be wrong, or what the probe says."""
    return f"{one.label}?" if one.label else one.guess


def describe(workspace: Workspace, found: Suggestions, paths: Sequence[str], base: Path) -> Iterator[str]:
    """What was chosen and why, where it is, and what comes next."""
    of = "labels" if found.by == "mistakes" else "unlabeled training images"
    yield f"{len(found.images):,} of {found.pool:,} {of}, by {found.by}: {CHOSEN[found.by]}"
    if found.fewer:
        yield f"fewer than asked for: {found.fewer}"
    if not found.images:
        return
    yield f"table     {base}.csv"
    yield f"pictures  {base}.png" + (f", the first {SHOWN}" if len(paths) > SHOWN else "")
    yield f"paths     {base}.txt"
    if found.by == "mistakes":
        yield f"next: look at each, and in {base}.csv correct the column label where it is wrong"
    else:
        column = "labels" if found.multi_label else "label"
        yield f"next: in {base}.csv fill in the column {column}; an empty cell leaves an image without a label"
    yield f"then: {_way_back(workspace, paths, base)}; then `simclr run`"


def _way_back(workspace: Workspace, paths: Sequence[str], base: Path) -> str:
    """How the table comes into the inbox, where no second table may name a file, and an earlier one has to stay."""
    if not any((workspace.inbox / path).is_file() for path in paths):
        return "put it as labels.csv into the folder that these images were ingested from"
    for given in sorted(workspace.inbox.rglob("labels.csv")):
        if _names(given, paths):
            shown = given.relative_to(workspace.root)
            return f"write the labels into {shown}, which has rows for some of these images already"
    numbered = (f"{FOLDER}-{number}" for number in count(2))
    folder = next(name for name in chain([FOLDER], numbered) if not (workspace.inbox / name).exists())
    return f"`mkdir -p inbox/{folder} && cp {base}.csv inbox/{folder}/labels.csv`"


def _names(given: Path, paths: Sequence[str]) -> bool:
    """Whether a table has a row for one of the paths, as it is written there."""
    data = given.read_bytes()
    if not names_files(columns_of(data)):
        return False
    return not {row.path for row in read_rows(given.name, data)}.isdisjoint(paths)


def _paths(workspace: Workspace, images: Sequence[Suggestion]) -> list[str]:
    """As the images were ingested."""
    known = read_paths(workspace.root)
    missing = [one.sha256 for one in images if one.sha256 not in known]
    if missing:
        raise ValidationError(
            f"data/manifest does not list {missing[0]} and {len(missing) - 1:,} others of data/prepared; run "
            "`simclr run --select validate --select prepare`"
        )
    return [known[one.sha256] for one in images]
