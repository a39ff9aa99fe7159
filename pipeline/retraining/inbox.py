"""What waits in the sources, found out by listing them and reading nothing: cheap enough for every minute.

A file is new if no ingest has seen it with its present stamp (``pipeline.ingest.stamps``). What was ingested and never
trained on, because a person called ``simclr ingest`` or because the run failed, waits as well.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from deploy.folders.files import is_labels
from pipeline.config import IngestConfig
from pipeline.dvc.project import RAW, Locked, Recorded, read_lock, read_tracked
from pipeline.ingest.files.listing import File
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.raw import batches, count_contents
from pipeline.ingest.relisting.relist import relist
from pipeline.ingest.relisting.store import Terms, Waiting
from pipeline.ingest.sources import Source, find_repeated, list_source, unique
from pipeline.ingest.stamps import STAMPS, Key, Stamps
from pipeline.ingest.unfinished import look
from pipeline.reports import EmbeddingDriftReport, ValidationReport
from pipeline.retraining.decide import Inbox
from pipeline.workspace import Workspace, make_inbox
from simclr_core.params import read_block
from simclr_core.reports import known

PREPARED = "data/prepared"


class Seen(NamedTuple):
    """What the sources hold, each file once: new images and new tables of labels, when what is still being written
    changed, and the number of all that have settled."""

    images: dict[Key, File]
    labels: dict[Key, File]
    changing: list[float]
    files: int


def survey(workspace: Workspace, sources: Sequence[str], age: float | None = None) -> Inbox:
    """List the sources and compare with what has been ingested.

    Args:
        age: seconds that the listing of a folder may have in which no file was added, removed or renamed; a file that
            was overwritten in place shows later by at most that. None: every file is looked at.

    Raises:
        IngestError: a source does not exist or cannot be listed.
        ConfigError: ``params.yaml`` has faults.
    """
    make_inbox(workspace)
    relisted = None if age is None else relist_sources(workspace, sources, age)
    seen = _list(workspace, sources) if relisted is None else _see(relisted)
    new = {key: file.stamp for key, file in {**seen.images, **seen.labels}.items()}
    recent = [file.changed for file in (*seen.images.values(), *seen.labels.values())]
    return Inbox(
        digest=_digest(_raw(workspace), new, look(workspace) if new else ""),
        new_files=len(seen.images),
        untrained=count_untrained(workspace),
        unsettled=len(seen.changing),
        relabeled=bool(seen.labels),
        last_change=_latest([*recent, *seen.changing]),
        drift=_drift(workspace.root),
        files=seen.files,
    )


def relist_sources(workspace: Workspace, sources: Sequence[str], age: float) -> list[Waiting] | None:
    """What waits in the sources by the folders that have changed; None: they have to be listed as a whole.

    Raises:
        IngestError: a source does not exist or cannot be listed.
    """
    config = read_block(workspace.params, "ingest", IngestConfig)
    known = _known(workspace)
    terms = Terms(config.include, config.exclude, config.settle_seconds, known.raw if known else None)
    return relist(workspace.root, sources, workspace.scratch, terms, age)


def _raw(workspace: Workspace) -> str:
    """The data version of the batches; empty if there are none."""
    return read_tracked(workspace.root, RAW).md5 if workspace.raw.with_suffix(".dvc").exists() else ""


def _known(workspace: Workspace) -> Stamps | None:
    """The stamps, if they are of these batches: after a checkout of another commit, nothing is known."""
    stamps = Stamps(workspace.scratch / STAMPS)
    return stamps if stamps.raw == _raw(workspace) else None


def _see(found: Sequence[Waiting]) -> Seen:
    new = {(one.base, path): file for one in found for path, file in one.new.items()}
    return Seen(
        {key: file for key, file in new.items() if not is_labels(key[1])},
        {key: file for key, file in new.items() if is_labels(key[1])},
        [file.changed for one in found for file in one.unsettled.values() if file.changed],
        sum(one.settled for one in found),
    )


def _list(workspace: Workspace, sources: Sequence[str]) -> Seen:
    known, config = _known(workspace), read_block(workspace.params, "ingest", IngestConfig)
    selection = Selection(config.include, config.exclude)
    listed = unique(list_source(workspace.root, source, config.settle_seconds, selection) for source in sources)
    settled = _settled(listed)
    new = {key: file for key, file in settled.items() if known is None or known.find(*key, file.stamp) is None}
    images = {(source.base, path) for source in listed for path in source.files}
    return Seen(
        {key: file for key, file in new.items() if key in images},
        {key: file for key, file in new.items() if key not in images},
        [time for source in listed for time in source.changing(config.settle_seconds)],
        len(settled),
    )


def count_untrained(workspace: Workspace) -> int:
    """Images of the raw batches that the latest pretraining has not seen.

    Those that a stage has read are the first ones, with the number of files that dvc.lock says; if these are all and
    yet not the same data, a batch was removed, and all images count. What is prepared and not trained on is at least
    the last of these: the run that prepared it has not finished.
    """
    stages = read_lock(workspace.root)
    prepare, pretrain = stages.get("prepare", Locked()), stages.get("pretrain", Locked())
    folders = batches(workspace.raw)
    seen = prepare.deps.get(RAW)
    trained = _prefix(folders, seen.files if seen else 0)
    if trained and trained == len(folders) and _hash(seen) != read_tracked(workspace.root, RAW).md5:
        trained = 0
    if trained and _hash(pretrain.deps.get(PREPARED)) != _hash(prepare.outs.get(PREPARED)):
        trained -= 1
    return sum(count_contents(batch) for batch in folders[trained:])


def _settled(listed: Sequence[Source]) -> dict[Key, File]:
    """Files and tables, each once: sources may overlap."""
    return {
        (source.base, path): file
        for source, twice in zip(listed, find_repeated(listed), strict=True)
        for path, file in {**source.files, **source.labels}.items()
        if path not in twice
    }


def _digest(raw: str, new: dict[tuple[str, str], str], unfinished: str) -> str:
    """``unfinished``: what is finished before the new files are ingested; the run for them is another one."""
    content = [raw, sorted((*key, stamp) for key, stamp in new.items()), *([unfinished] if unfinished else [])]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _latest(times: Iterable[float | None]) -> datetime | None:
    known = [time for time in times if time is not None]
    return datetime.fromtimestamp(max(known), UTC) if known else None


def _hash(recorded: Recorded | None) -> str | None:
    return recorded.md5 if recorded else None


def _prefix(folders: Sequence[Path], files: int) -> int:
    """How many batches, from the first one on, have this many files together; 0 where no number of them has."""
    total = 0
    for number, folder in enumerate(folders, start=1):
        total += sum(1 for _ in folder.iterdir())
        if total == files:
            return number
    return 0


def _drift(root: Path) -> bool:
    """Whether the images' statistics or the champion's embeddings tell the newest batch from the earlier ones.

    What the embeddings say of an earlier batch than the one that was validated last is out of date.
    """
    validation, embeddings = known(root, ValidationReport), known(root, EmbeddingDriftReport)
    statistics = validation.drift if validation else None
    if statistics is None:
        return False
    if statistics.verdict == "drift":
        return True
    return embeddings is not None and embeddings.verdict == "drift" and embeddings.batch == statistics.batch
