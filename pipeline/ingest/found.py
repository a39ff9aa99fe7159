"""Found: what the sources hold and say now, next to what the batches hold. Nothing is written.

``simclr ingest`` makes a batch of what is new in it, and ``simclr plan`` counts it: so both say the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deploy.folders.files import LINK, describe_passed_over
from deploy.plural import counted
from pipeline.config import IngestConfig
from pipeline.dvc.project import RAW, read_tracked
from pipeline.dvc.purged import contents
from pipeline.errors import IngestError
from pipeline.ingest.claims import Known, read_known
from pipeline.ingest.classes import refuse_twins
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.layout import Reading, read_layout
from pipeline.ingest.moved import find_moved
from pipeline.ingest.news import ARRAY, Listing, compare, find_new, read_source
from pipeline.ingest.raw import batches, find_lost
from pipeline.ingest.sources import Source, list_source, unique
from pipeline.ingest.stamps import STAMPS, Key, Stamps
from pipeline.ingest.undo import KeptOut, read_undone
from pipeline.params import read
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Found:
    """What the sources hold, next to what batches hold: ``before``, by SHA-256, in the ``earlier`` batches.

    ``emptied`` says which sources hold nothing any more. ``stamped`` are the stamps and contents of the files, without
    a stamp if the next change may not show.
    """

    earlier: list[Path]
    before: Known
    readings: list[Reading]
    listings: list[Listing]
    emptied: tuple[str, ...]
    stamped: dict[Key, tuple[str, str]]

    def forget(self, sha256: str) -> None:
        """Take a content that was not ingested for one that was never seen; the next ingest reads its files again."""
        for key in [key for key, (_, found) in self.stamped.items() if found == sha256]:
            del self.stamped[key]
        for listing in self.listings:
            listing.claims.pop(sha256, None)
            listing.hashes = {path: one for path, one in listing.hashes.items() if one != sha256}


def find(workspace: Workspace, config: IngestConfig, listed: Sequence[Source], stamps: Stamps) -> Found:
    """Read what the sources hold and say, and what has become of what they held before.

    Raises:
        IngestError: there is nothing to make the first batch of, or the sources cannot be understood.
    """
    earlier = batches(workspace.raw)
    tracked = workspace.raw.with_suffix(".dvc").exists()
    if not earlier and tracked:
        raise IngestError(
            f"{workspace.raw}: its earlier batches are missing, only data/raw.dvc is here; fetch them first, "
            "with `dvc checkout data/raw.dvc` or `dvc pull data/raw.dvc`"
        )
    if not earlier and not any(source.files for source in listed):
        raise _nothing(workspace, listed, config.settle_seconds)
    readings = [read_layout(source, workspace.inbox, config.class_folders) for source in listed]
    refuse_twins(readings, config.classes)
    said = read_known(earlier, lambda path, sha256: _guess(listed, stamps, path, sha256))
    lost = find_lost(earlier, said.keys())
    before = {sha256: one for sha256, one in said.items() if sha256 not in lost} if lost else said
    kept_out = KeptOut(contents(workspace.root), read_undone(earlier))
    stamped: dict[Key, tuple[str, str]] = {}
    listings = [
        read_source(source, reading, config.hold_out, before, stamps, stamped, kept_out)
        for source, reading in zip(listed, readings, strict=True)
    ]
    if not earlier and not any(listing.hashes for listing in listings):
        raise _nothing(workspace, listed, config.settle_seconds)
    current = tracked and stamps.raw == read_tracked(workspace.root, RAW).md5
    for listing in listings:
        unused = partial(_find_unused, workspace.manifest, earlier)
        compare(listing, before, said, earlier, stamps if current else None, unused)
    if current:
        find_moved(listings, before, earlier, stamps, workspace.root)
    return Found(earlier, before, readings, listings, tuple(_describe_emptied(listed, stamps)), stamped)


class News(NamedTuple):
    """How many images no batch holds, and of how many known ones a source says something else than before."""

    images: int
    labels: int

    def __str__(self) -> str:
        parts = [counted(self.images, "new image")] if self.images else []
        parts += [f"new labels, splits or groups of {counted(self.labels, 'known image')}"] if self.labels else []
        return " and ".join(parts) or "no new images"


def count_news(workspace: Workspace, sources: Sequence[str]) -> News:
    """What an ingest of these sources would take. Files whose stamps are not known are read, as an ingest reads them.

    What changed a moment ago counts: a run waits for it.

    Raises:
        IngestError: the sources cannot be listed or understood.
    """
    params = read(workspace)
    selection = Selection(params.ingest.include, params.ingest.exclude, params.prepare.channels is not None)
    listed = unique(list_source(workspace.root, source, 0.0, selection) for source in sources)
    found = find(workspace, params.ingest, listed, Stamps(workspace.scratch / STAMPS))
    new = find_new(found.listings, found.before)
    fresh = sum(sha256 not in found.before for sha256 in new)
    return News(fresh, len(new) - fresh)


def _describe_emptied(listed: Sequence[Source], stamps: Stamps) -> Iterator[str]:
    for source in listed:
        empty = source.whole and not (source.files or source.unsettled or source.passed_over)
        if empty and (held := stamps.held(source.base)):
            yield (
                f"note: {source.name} is empty, and had {counted(len(held), 'content')}, which stay in use; if you did "
                "not remove them, check whether it is mounted"
            )


def _nothing(workspace: Workspace, listed: Sequence[Source], settle_seconds: float) -> IngestError:
    """Why there is nothing to make the first batch of."""
    named = ", ".join(source.name for source in listed)
    remedy = f"put images into {workspace.inbox / 'unlabeled'} or name another source: `simclr ingest SRC`"
    faults = _why_nothing(listed, settle_seconds)
    if arrays := sum(reason == ARRAY for source in listed for reason in source.passed_over.values()):
        are = "is an image" if arrays == 1 else "are images"
        remedy = "set it to their number of channels, such as `prepare.channels: 5`"
        faults = [*faults, f"{counted(arrays, 'array')} {are} only with prepare.channels"]
    return IngestError(f"{named}: nothing to ingest, {'; '.join(faults) or 'no files'}; {remedy}")


def _why_nothing(listed: Sequence[Source], settle_seconds: float) -> list[str]:
    """But for arrays."""
    unsettled = sum(len(source.changing(settle_seconds)) for source in listed)
    faults = [f"{counted(unsettled, 'file')} changed less than {settle_seconds:g} s ago"] if unsettled else []
    others = [{path: why for path, why in source.passed_over.items() if why != ARRAY} for source in listed]
    faults += [line for reasons in others for line in describe_passed_over(reasons)]
    links = any(LINK in reasons.values() for reasons in others)
    return [*faults, *(["copy what a link leads to, or name its folder as a source"] if links else [])]


def _guess(listed: Sequence[Source], stamps: Stamps, path: str, sha256: str) -> str | None:
    """The source of a file that an earlier version has recorded without one."""
    return next((one.identity for one in listed if one.whole and stamps.last(one.base, path) == sha256), None)


def _find_unused(manifest: Path, earlier: Sequence[Path]) -> set[str] | None:
    """The contents that the validate stage does not use; None if it has not seen all batches."""
    if not any((manifest / "manifest").glob(f"{earlier[-1].name}-*.parquet")):
        return None
    from pyarrow.parquet import read_table

    return set(read_table(manifest / "quarantine.parquet", columns=["sha256"])["sha256"].to_pylist())
