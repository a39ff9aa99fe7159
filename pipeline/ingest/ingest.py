"""Ingest: copy what is new in a folder, a glob or a bucket into a frozen raw batch, and leave the source as it is.

    simclr ingest inbox photos/2026-11 's3://bucket/camera-7/*.jpg'

A file is known by the SHA-256 of its bytes, so renamed or copied files add nothing; one that has not changed since an
earlier ingest (``pipeline.ingest.stamps``) is not read again. What a source says of it now counts, whatever it said
before (``pipeline.ingest.claims``). What that is, ``pipeline.ingest.layout`` reads from its folders and ``labels.csv``.
Whether a file is an image at all is for the validate stage to say.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from deploy.artifact import publish
from deploy.failpoint import failpoint
from deploy.folders.files import describe_passed_over
from pipeline.dvc.client import add, exclusive
from pipeline.dvc.project import RAW, read_tracked
from pipeline.dvc.purged import contents
from pipeline.errors import IngestError
from pipeline.ingest.claims import (
    UNCLAIMED,
    Claim,
    Known,
    combine,
    describe,
    describe_absent,
    find_claimed,
    is_news,
    read_known,
    summarize,
)
from pipeline.ingest.layout import Reading, read_layout, refuse_twins
from pipeline.ingest.raw import OCCURRENCES, Occurrence, batches, find_lost, next_name
from pipeline.ingest.sources import GRANULARITY_SECONDS, LINK, Source, list_source
from pipeline.ingest.stamps import STAMPS, Key, Stamps
from pipeline.ingest.understood import tabulate
from pipeline.params import read
from pipeline.workspace import Workspace
from simclr_core.data.shards import portions, write_tar

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
        parts = [f"{self.new_images} new images in batch {self.batch}" if self.batch else "nothing new"]
        parts += self.changes
        if self.known:
            parts.append(f"{self.known} files already ingested")
        if self.unsettled:
            parts.append(f"{self.unsettled} changed a moment ago and left for the next run")
        if self.skipped:
            parts.append(f"{len(self.skipped)} passed over ({'; '.join(self.skipped[:3])})")
        return ", ".join(parts)


@dataclass
class Content:
    """Bytes with news in this ingest: where to read them, and every place they are in now."""

    source: Source
    path: str
    occurrences: list[Occurrence]


@dataclass
class Listing:
    """What a source holds now: path → SHA-256, path → what is said of it, and SHA-256 → what is claimed of it."""

    source: Source
    hashes: dict[str, str]
    reading: Reading
    claims: dict[str, frozenset[Claim]]


def ingest(
    workspace: Workspace, sources: Sequence[str] = ("inbox",), wait: Callable[[str], None] | None = None
) -> IngestResult:
    """Add every new file of the sources as one raw batch and track it with DVC.

    Args:
        sources: folders, globs or fsspec URLs; a relative one is taken from the workspace.
        wait: what says that files which changed a moment ago are waited for; None: they are left for the next time.

    Raises:
        IngestError: a source does not exist, all of them are empty, ``labels.csv`` cannot be understood, or a label is
            none of ``ingest.classes``.
    """
    config = read(workspace).ingest
    workspace.inbox.mkdir(exist_ok=True)  # Git does not carry it into a clone of a workspace
    with exclusive(workspace.root, "ingest"):
        stamps = Stamps(workspace.scratch / STAMPS)
        listed = _list(workspace.root, sources, config.settle_seconds, wait)
        earlier = batches(workspace.raw)
        if not earlier and workspace.raw.with_suffix(".dvc").exists():
            raise IngestError(
                f"{workspace.raw}: its earlier batches are missing, only data/raw.dvc is here; fetch them first, "
                "with `dvc checkout data/raw.dvc` or `dvc pull data/raw.dvc`"
            )
        if not earlier and not any(source.files for source in listed):
            raise IngestError(
                f"{', '.join(sources)}: nothing to ingest, {_why_nothing(listed, config.settle_seconds)}; "
                f"put images into {workspace.inbox / 'unlabeled'} or name another source: `simclr ingest SRC`"
            )
        readings = [read_layout(source, workspace.inbox) for source in listed]
        refuse_twins(readings, config.classes)
        stamped: dict[Key, tuple[str, str]] = {}
        before = read_known(earlier, lambda path, sha256: _guess(listed, stamps, path, sha256))
        for sha256 in find_lost(earlier, before.keys()):
            del before[sha256]
        purged = contents(workspace.root)
        listings = [
            _read(source, reading, before, stamps, stamped, purged)
            for source, reading in zip(listed, readings, strict=True)
        ]
        silent = [_silent(listing, before, earlier) for listing in listings]
        new = _find_new(listings, before, silent)
        if config.classes is not None:
            _check_labels(new, config.classes)
        batch = workspace.raw / next_name(earlier) if new else None
        if batch is not None:
            _write(batch, new, before, config.shard_megabytes * 1_000_000)
        failpoint("ingest.track")
        add(workspace.root, workspace.raw)
        failpoint("ingest.stamp")
        version = read_tracked(workspace.root, RAW).md5
        whole = [source.base for source in listed if source.whole]
        stamps.record(stamped, version, whole)  # last: what is stamped has been ingested
    files = sum(len(listing.hashes) for listing in listings)
    fresh = [sha256 for sha256 in new if sha256 not in before]
    return IngestResult(
        batch=batch.name if batch else None,
        new_images=len(fresh),
        new_labels=len(new) - len(fresh),
        known=files - sum(len(content.occurrences) for content in new.values()),
        unsettled=sum(len(source.unsettled) for source in listed),
        skipped=tuple(reason for source in listed for reason in source.skipped),
        changes=tuple(_describe(listings, before, new, len(earlier), silent)),
        understood=tuple(tabulate(listed, readings)),
    )


def _list(
    root: Path, sources: Sequence[str], settle_seconds: float, wait: Callable[[str], None] | None
) -> list[Source]:
    """List the sources, again and again while files in them settle: a copy that never ends is not waited for."""
    for left in reversed(range(1 if wait is None else WAITS)):
        listed = [list_source(root, source, settle_seconds) for source in sources]
        unsettled = [file.changed for source in listed for file in source.unsettled.values() if file.changed]
        if not (unsettled and left and wait):
            break
        seconds = min(max(unsettled) - listed[0].listed, 0) + settle_seconds + GRANULARITY_SECONDS
        wait(f"waiting {seconds:.1f} s for {len(unsettled):,} files that changed a moment ago")
        time.sleep(seconds)
    return listed


def _why_nothing(listed: Sequence[Source], settle_seconds: float) -> str:
    unsettled = sum(len(source.unsettled) for source in listed)
    faults = [f"{unsettled} files changed less than {settle_seconds:g} s ago"] if unsettled else []
    faults += [line for source in listed for line in describe_passed_over(source.passed_over)]
    links = any(reason == LINK for source in listed for reason in source.passed_over.values())
    hint = "; copy what a link leads to, or name its folder as a source" if links else ""
    return "; ".join(faults or ["no files"]) + hint


def _guess(listed: Sequence[Source], stamps: Stamps, path: str, sha256: str) -> str | None:
    """The source of a file that an earlier version has recorded without one."""
    return next((one.identity for one in listed if one.whole and stamps.had(one.base, path, sha256)), None)


def _read(
    source: Source,
    reading: Reading,
    known: Known,
    stamps: Stamps,
    stamped: dict[Key, tuple[str, str]],
    purged: Collection[str],
) -> Listing:
    """What the source holds, but for purged contents; adds the stamps of all files whose next change will show."""
    listing = Listing(source, {}, reading, {})
    tables = source.labels.items()
    stamped.update({(source.base, path): (table.stamp, "") for path, table in tables if source.settled(table)})
    for path, file in source.files.items():
        sha256 = stamps.find(source.base, path, file.stamp) if file.certain else None
        if sha256 not in known:  # also when the batches are not those that the stamps were taken with
            try:
                sha256 = hashlib.sha256(source.read(path)).hexdigest()
            except IngestError as error:  # only this file is affected
                source.passed_over[path] = str(error).removeprefix(f"{path!r} ")
                source.unseen.add(path)
                continue
        if source.settled(file):
            stamped[source.base, path] = (file.stamp, sha256)
        if sha256 in purged:
            source.passed_over[path] = "was purged; remove it from there"
            continue
        listing.hashes[path] = sha256
        claims = listing.claims.get(sha256, frozenset())
        listing.claims[sha256] = claims | ({reading.places[path]} - {UNCLAIMED})
    return listing


def _silent(listing: Listing, known: Known, earlier: Sequence[Path]) -> set[str]:
    """Contents of which the source claims nothing now, and takes nothing back: labels.csv only has no row for them any
    more, or the file that made the claim cannot be looked at now."""
    source = listing.source
    unclaimed = {
        sha256
        for sha256, claims in listing.claims.items()
        if not claims and sha256 in known and is_news(known[sha256], source.identity, claims)
    }
    return {
        sha256
        for sha256, paths in find_claimed(earlier, source.identity, unclaimed).items()
        for path in paths
        if source.hides(path) or (listing.hashes.get(path) == sha256 and path not in listing.reading.named)
    }


def _find_new(listings: Sequence[Listing], known: Known, silent: Sequence[set[str]]) -> dict[str, Content]:
    """The contents that no batch holds, or of which a source says something else than before."""
    news = [
        {
            sha256
            for sha256, claims in listing.claims.items()
            if sha256 not in known or (sha256 not in kept and is_news(known[sha256], listing.source.identity, claims))
        }
        for listing, kept in zip(listings, silent, strict=True)
    ]
    # The first source that says something of a content replaces all that earlier versions have recorded without one.
    repeated = {sha256 for found in news for sha256 in found if not all(one.certain for one in known.get(sha256, ()))}
    new: dict[str, Content] = {}
    for listing, found in zip(listings, news, strict=True):
        for path, sha256 in listing.hashes.items():
            if sha256 in found or sha256 in repeated:
                content = new.setdefault(sha256, Content(listing.source, path, []))
                content.occurrences.append(Occurrence(path, *listing.reading.places[path], listing.source.identity))
    return new


def _describe(
    listings: Sequence[Listing], before: Known, new: Mapping[str, Content], number: int, silent: Sequence[set[str]]
) -> Iterator[str]:
    """How the verdicts on known images have changed, and what the sources do not say any more."""
    latest = {sha256: summarize(sha256, content.occurrences, number) for sha256, content in new.items()}
    after = before | {sha256: combine(before.get(sha256, ()), said) for sha256, said in latest.items()}
    yield from describe(before, after, [sha256 for sha256 in new if sha256 in before])
    complete = [
        (listing, kept)
        for listing, kept in zip(listings, silent, strict=True)
        if not listing.source.unsettled and not listing.source.unseen
    ]
    claims = {listing.source.identity: listing.claims for listing, _ in complete}
    yield from describe_absent(after, claims, sum(len(kept) for _, kept in complete))


def _check_labels(new: dict[str, Content], classes: Sequence[str]) -> None:
    """Raise IngestError if a label is not listed: it is mistyped, or ingest.classes lacks it."""
    unknown: dict[str, list[str]] = {}
    for occurrence in (one for content in new.values() for one in content.occurrences):
        if occurrence.label is not None and occurrence.label not in classes:
            unknown.setdefault(occurrence.label, []).append(occurrence.path)
    faults = [
        f"{label!r} ({paths[0]!r}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}{_suggest(label, classes)})"
        for label, paths in sorted(unknown.items())
    ]
    if faults:
        raise IngestError(
            f"labels not listed in ingest.classes: {'; '.join(faults[:5])}; allowed: {', '.join(classes)}; "
            "correct the folder's name or labels.csv, or add the class to ingest.classes in params.yaml"
        )


def _suggest(label: str, classes: Sequence[str]) -> str:
    close = get_close_matches(label, classes, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _write(batch: Path, new: dict[str, Content], known: Known, max_bytes: int) -> None:
    def members() -> Iterator[tuple[str, bytes]]:
        for sha256, content in new.items():
            if sha256 in known:
                continue
            data = content.source.read(content.path)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise IngestError(f"{content.path}: changed while it was read; run again when its writer is done")
            yield f"{sha256}.{_extension(content.path)}", data

    with publish(batch) as folder:
        for portion in portions(members(), max_bytes, size=lambda member: len(member[1])):
            write_tar(folder, portion)
            failpoint("ingest.tar")
        lines = [
            json.dumps({"sha256": sha256, "occurrences": [asdict(one) for one in content.occurrences]}) + "\n"
            for sha256, content in new.items()
        ]
        (folder / OCCURRENCES).write_text("".join(lines), encoding="utf-8")


def _extension(path: str) -> str:
    """What the file calls itself, made safe for a tar member; nothing later trusts it."""
    extension = PurePosixPath(path).suffix[1:].lower()
    return extension if re.fullmatch("[a-z0-9]{1,8}", extension) else "bin"
