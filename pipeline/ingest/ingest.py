"""Ingest: copy what is new in a folder, a glob or a bucket into a frozen raw batch, and leave the source as it is.

    simclr ingest inbox photos/2026-11 's3://bucket/camera-7/*.jpg'

A file is known by the SHA-256 of its bytes, so renamed or copied files add nothing; one that has not changed since an
earlier ingest (``pipeline.ingest.stamps``) is not read again. What a source says of it now counts, whatever it said
before (``pipeline.ingest.claims``). What that is, ``pipeline.ingest.layout`` reads from its folders and ``labels.csv``.
A file that is not an image, by its name and its first bytes, is counted and left where it is; whether an image is sound
is for the validate stage to say.
"""

import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.failpoint import failpoint
from deploy.moved import keep_callable
from deploy.plural import counted
from pipeline.dvc.client import add, exclusive
from pipeline.dvc.project import RAW, read_tracked
from pipeline.dvc.purged import contents
from pipeline.errors import UnfinishedError
from pipeline.ingest.added import Added, find_added, is_settled, state_terms
from pipeline.ingest.batch import write_batch
from pipeline.ingest.claims import GONE, Known, Said, combine, judge, summarize
from pipeline.ingest.classes import check_labels, describe_names
from pipeline.ingest.files.reading import Spool
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.found import Found, find
from pipeline.ingest.labels.groups import describe_groups
from pipeline.ingest.news import Content, describe_news, find_new
from pipeline.ingest.raw import REPLACED, next_name
from pipeline.ingest.relisting.store import Terms, note_ingested, write_state
from pipeline.ingest.sources import GRANULARITY_SECONDS, Source, find_repeated, list_source, unique
from pipeline.ingest.stamps import STAMPS, Key, Stamps
from pipeline.ingest.understood import tabulate
from pipeline.ingest.undo import complete, read_undone
from pipeline.ingest.unfinished import Interrupted
from pipeline.params import Params, read
from pipeline.workspace import Workspace, make_inbox
from simclr_core.data import label_sets

keep_callable(__name__)

WAITS = 4  # listings, the last of which leaves what is still changing for the next time


@dataclass(frozen=True)
class IngestResult:
    """What one ingest did; ``batch`` is None when nothing was new.

    ``understood`` has the lines of a table: how the sources were read, and what was passed over.
    """

    batch: str | None
    new_images: int
    new_labels: int
    known: int
    unsettled: int
    skipped: tuple[str, ...]
    changes: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{counted(self.new_images, 'new image')} in batch {self.batch}"] if self.new_images else []
        if self.batch and not self.new_images:
            parts = [
                f"no new image, but batch {self.batch} records new labels, splits or groups of "
                f"{counted(self.new_labels, 'known image')}"
            ]
        parts = parts or ["nothing new"]
        parts += self.changes
        if self.known:
            parts.append(f"{counted(self.known, 'file')} already ingested")
        if self.unsettled:
            parts.append(f"{self.unsettled} left for the next run, because of changes a moment ago")
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped ({'; '.join(self.skipped[:3])})")
        return ", ".join(parts)


def ingest(
    workspace: Workspace,
    sources: Sequence[str] = ("inbox",),
    wait: Callable[[str], None] | None = None,
    unfinished: Interrupted | None = None,
    listing_seconds: float = 0.0,
) -> IngestResult:
    """Add every new file of the sources as one raw batch and track it with DVC.

    Args:
        sources: folders, globs or fsspec URLs; a relative one is taken from the workspace.
        wait: what says that files which changed a moment ago are waited for; None: they are left for the next time.
        unfinished: an interrupted run; what is new waits for its end, since with it the run would begin again.
        listing_seconds: the age that the listing of a folder may have in which no file was added, removed or renamed;
            0: every file is looked at.

    Raises:
        IngestError: a source does not exist, all of them are empty, ``labels.csv`` cannot be understood, or a label is
            none of ``ingest.classes``.
        UnfinishedError: something is new, and has to wait.
    """
    params = read(workspace)
    config = params.ingest
    make_inbox(workspace)
    with exclusive(workspace.root, "ingest"), Spool(workspace.scratch) as spool:
        stamps = Stamps(workspace.scratch / STAMPS)
        complete(workspace.raw)
        added = find_added(workspace, params, sources, stamps, listing_seconds, spool)
        if added:
            batch = _take(workspace, params, added.new, {}, added, unfinished)
            _stamp_added(workspace, params, added, stamps)
            return _describe_added(added, batch, config.classes)
        selection = Selection(config.include, config.exclude, params.prepare.channels is not None)
        listed = _list(workspace.root, sources, config.settle_seconds, selection, wait)
        for source in listed:
            source.spool = spool
        found = find(workspace, config, listed, stamps)
        new = find_new(found.listings, found.before)
        batch = _take(workspace, params, new, found.before, found, unfinished)
        _stamp(workspace, listed, found, stamps)  # last: what is stamped has been ingested
        after = _combine(found, new)
        result = _describe(found, new, batch, config.classes, after)
        settled = not contents(workspace.root) and not read_undone(found.earlier)
        settled = settled and is_settled(found, after, result.changes)
        _write_state(workspace, params, [one.identity for one in listed], _labels(after) if settled else None)
    return result


def _take(
    workspace: Workspace,
    params: Params,
    new: dict[str, Content],
    known: Container[str],
    found: Found | Added,
    unfinished: Interrupted | None,
) -> Path | None:
    """Write what is new as a batch, if anything is, and track it; ``new`` loses what cannot be read any more."""
    config = params.ingest
    if config.classes is not None:
        check_labels((one for content in new.values() for one in content.occurrences), config.classes)
    if new and unfinished:
        images = "1 new image or label" if len(new) == 1 else f"{len(new):,} new images or labels"
        raise UnfinishedError(
            f"a run was interrupted {unfinished.progress}; `simclr run` finishes it first, and takes "
            f"{images} in the run after it; `--restart` takes them now, and the run begins again"
        )
    batch = workspace.raw / next_name(found.earlier) if new else None
    if batch is not None:
        for sha256 in write_batch(batch, new, known, config.shard_megabytes * 1_000_000):
            found.forget(sha256)
        batch = batch if new else None
    failpoint("ingest.track")
    add(workspace.root, workspace.raw)
    failpoint("ingest.stamp")
    return batch


def _stamp(workspace: Workspace, listed: Sequence[Source], found: Found, stamps: Stamps) -> None:
    """Remember which files were ingested, so that the next ingest reads only those that have changed."""
    whole = {source.base for source in listed if source.whole}
    stamps.record(found.stamped, read_tracked(workspace.root, RAW).md5, whole)


def _stamp_added(workspace: Workspace, params: Params, added: Added, stamps: Stamps) -> None:
    """The same of the new files alone; the listing of the others stays."""
    raw, config = read_tracked(workspace.root, RAW).md5, params.ingest
    stamps.record(added.stamped, raw, ())
    certain = [key for key, (stamp, _) in added.stamped.items() if stamp]
    note_ingested(workspace.scratch, added.listing, Terms((), (), config.settle_seconds, raw), certain)
    labels = {label for content in added.new.values() for one in content.occurrences if (label := one.label)}
    identities = [one.source.identity for one in added.listings]
    _write_state(workspace, params, identities, {*added.labels, *label_sets.members_of(labels)})


def _write_state(
    workspace: Workspace, params: Params, identities: Sequence[str], labels: Collection[str] | None
) -> None:
    terms = state_terms(params, identities, read_tracked(workspace.root, RAW).md5)
    write_state(workspace.scratch, terms, None if labels is None else sorted(labels))


def _describe_added(added: Added, batch: Path | None, classes: Sequence[str] | None) -> IngestResult:
    listed = [one.source for one in added.listings]
    labels = {label for content in added.new.values() for one in content.occurrences if (label := one.label)}
    return IngestResult(
        batch=batch.name if batch else None,
        new_images=len(added.new),
        new_labels=0,
        known=added.others.total() + added.copies,
        unsettled=0,
        skipped=tuple(line for source in listed for line in source.skipped),
        understood=(
            *tabulate(listed, added.readings, added.others),
            *describe_names({*added.labels, *label_sets.members_of(labels)}, classes),
        ),
    )


def _combine(found: Found, new: dict[str, Content]) -> Known:
    """What holds after the ingest."""
    before = found.before
    return before | {
        sha256: combine(before.get(sha256, ()), summarize(sha256, content.occurrences, len(found.earlier)))
        for sha256, content in new.items()
    }


def _describe(
    found: Found, new: dict[str, Content], batch: Path | None, classes: Sequence[str] | None, after: Known
) -> IngestResult:
    before, listed = found.before, [listing.source for listing in found.listings]
    repeated = find_repeated(listed)
    files = {
        (source.identity, path)
        for source, listing, twice in zip(listed, found.listings, repeated, strict=True)
        for path in listing.hashes.keys() - twice
    }
    recorded = {
        (one.source, one.path) for content in new.values() for one in content.occurrences if one.split != REPLACED
    }
    fresh = [sha256 for sha256 in new if sha256 not in before]
    return IngestResult(
        batch=batch.name if batch else None,
        new_images=len(fresh),
        new_labels=len(new) - len(fresh),
        known=len(files - recorded),
        unsettled=sum(
            len({*source.unsettled, *source.writing} - twice) for source, twice in zip(listed, repeated, strict=True)
        ),
        skipped=tuple(
            f"{path!r} {reason}"
            for source, twice in zip(listed, repeated, strict=True)
            for path, reason in source.passed_over.items()
            if path not in twice
        ),
        changes=tuple(describe_news(found.listings, before, after, new)),
        understood=(
            *tabulate(listed, found.readings),
            *_describe_kept(listed, found.stamped, before),
            *found.emptied,
            *describe_names(_labels(after), classes),
            *describe_groups(_groups(after)),
        ),
    )


def _list(
    root: Path,
    sources: Sequence[str],
    settle_seconds: float,
    selection: Selection,
    wait: Callable[[str], None] | None,
) -> list[Source]:
    """List the sources, again and again while files in them settle: a copy that never ends is not waited for."""
    for left in reversed(range(1 if wait is None else WAITS)):
        listed = unique(list_source(root, source, settle_seconds, selection) for source in sources)
        changing = [time for source in listed for time in source.changing(settle_seconds)]
        if not (changing and left and wait):
            break
        seconds = min(max(changing) - listed[0].listed, 0) + settle_seconds + GRANULARITY_SECONDS
        wait(f"waiting {seconds:.1f} s for {counted(len(changing), 'file')} that changed a moment ago")
        time.sleep(seconds)
    return listed


def _describe_kept(listed: Sequence[Source], stamped: Mapping[Key, tuple[str, str]], known: Known) -> Iterator[str]:
    kept = [
        path for one in listed for path in sorted(one.left_out) if stamped.get((one.base, path), ("", ""))[1] in known
    ]
    if kept:
        yield (
            f"note: {counted(len(kept), 'file')} left out now, such as {kept[0]!r}, ingested before and still used; "
            "`simclr ingest --undo BATCH` takes a batch back, `simclr quarantine deny` excludes an image"
        )


def _groups(known: Known) -> Iterator[tuple[str, str | None]]:
    """Split and group of each image, where there are groups."""
    verdicts = {said: judge(said) for said in set(known.values())}
    if any(verdict.group for verdict in verdicts.values()):
        yield from ((verdicts[said].split, verdicts[said].group) for said in known.values() if not _is_gone(said))


def _is_gone(said: tuple[Said, ...]) -> bool:
    return all(one.claims == {GONE} for one in said)


def _labels(known: Known) -> set[str]:
    return label_sets.members_of(label for said in set(known.values()) for label in judge(said).labels)
