"""Added: what an ingest takes where files were added to the sources, and all else is as the last ingest left it.

Most ingests are such: a camera has written, and no file was moved, removed or overwritten. Then the new files
alone are read and judged, found by the folders that have changed (``relisting``), and the batches are searched for
their contents alone: memory and time follow what is new. In every other case, such as a table of labels or a file that
says something else of a known content, ``found`` judges all files, which it holds in memory. So the answer here is
None where it could be another than that of ``found``.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.images import heif
from pipeline.dvc.project import RAW, read_tracked
from pipeline.dvc.purged import contents
from pipeline.ingest.claims import GONE, UNCLAIMED, Known, Said, claims_of, summarize
from pipeline.ingest.classes import refuse_twins
from pipeline.ingest.files.listing import UNSEEN, File, file_stamp
from pipeline.ingest.files.reading import Spool
from pipeline.ingest.found import Found
from pipeline.ingest.layout import Reading, read_layout
from pipeline.ingest.news import NOT_AN_IMAGE, Content, Listing, find_new, read_source, why_no_image
from pipeline.ingest.raw import UNDONE, age, batches, read_some
from pipeline.ingest.relisting.relist import relist
from pipeline.ingest.relisting.store import Details, Terms, Waiting, read_details, read_state
from pipeline.ingest.sources import Address, Source, locate
from pipeline.ingest.stamps import Key, Stamps
from pipeline.ingest.undo import KeptOut
from pipeline.params import Params
from pipeline.workspace import Workspace

NO_CONTENTS = KeptOut((), {})


@dataclass(frozen=True)
class Added:
    """The new files, of which ``new`` are the contents that no batch holds.

    ``others`` counts the files that are known, by split and label, ``copies`` those of the new files whose contents
    are. ``labels`` are those of all batches. ``listing`` is what the listing was made under.
    """

    earlier: list[Path]
    listings: list[Listing]
    readings: list[Reading]
    new: dict[str, Content]
    others: Counter[tuple[str, str | None]]
    copies: int
    labels: list[str]
    stamped: dict[Key, tuple[str, str]]
    listing: str

    def forget(self, sha256: str) -> None:
        """Take a content that was not ingested for one that was never seen."""
        for key in [key for key, (_, found) in self.stamped.items() if found == sha256]:
            del self.stamped[key]


def find_added(
    workspace: Workspace, params: Params, names: Sequence[str], stamps: Stamps, age_seconds: float, spool: Spool
) -> Added | None:
    """What was added; None: something else may have changed.

    Args:
        age_seconds: that the listing of a folder may have in which no file was added, removed or renamed.

    Raises:
        IngestError: a source does not exist, or what its folders say cannot be understood.
    """
    config, raw = params.ingest, _raw(workspace)
    if raw is None or stamps.raw != raw or config.include or config.exclude or config.hold_out:
        return None
    earlier = batches(workspace.raw)
    if not earlier or not _is_complete(earlier) or contents(workspace.root):
        return None
    addresses = list({one.identity: one for one in (locate(workspace.root, name) for name in names)}.values())
    labels = read_state(workspace.scratch, state_terms(params, [one.identity for one in addresses], raw))
    if labels is None:
        return None
    terms = Terms((), (), config.settle_seconds, raw)
    listing = terms.text(workspace.scratch)
    waiting = relist(workspace.root, names, workspace.scratch, terms, age_seconds)
    if waiting is None:
        return None
    listings, readings, others = [], [], Counter[tuple[str, str | None]]()
    stamped: dict[Key, tuple[str, str]] = {}
    for address, one in zip(addresses, waiting, strict=True):
        details = read_details(workspace.scratch, one.base)
        not_images = stamps.not_images(one.base, NOT_AN_IMAGE)
        if not _is_addition(address, one, details, stamps.count(one.base)):
            return None
        source = _open(address, one, params.prepare.channels is not None, spool)
        reading = _read_layout(source, details, workspace.inbox, config.class_folders)
        if _reads_known_otherwise(source, reading, details, workspace.inbox, config.class_folders):
            return None
        others += _count_others(reading, details, [*one.new, *not_images])
        listings.append(read_source(source, reading, 0.0, {}, None, stamped, NO_CONTENTS))
        _pass_over(source, details, not_images)
        readings.append(reading)
    refuse_twins(readings, config.classes)
    known = _find_known(earlier, {sha256 for one in listings for sha256 in one.claims})
    if known is None or not all(_repeats(found, known) for found in listings):
        return None
    copies = sum(sha256 in known for found in listings for sha256 in found.hashes.values())
    for found in listings:
        found.hashes = {path: sha256 for path, sha256 in found.hashes.items() if sha256 not in known}
        found.claims = {sha256: claims for sha256, claims in found.claims.items() if sha256 not in known}
    return Added(earlier, listings, readings, find_new(listings, {}), others, copies, labels, stamped, listing)


def state_terms(params: Params, identities: Sequence[str], raw: str) -> list[object]:
    """What has to be the same at the next ingest."""
    config = params.ingest
    return [*identities, config.class_folders, config.classes, params.prepare.channels is not None, raw]


def is_settled(found: Found, after: Known, changes: Sequence[str]) -> bool:
    """Whether an ingest has left nothing that each ingest has to judge again: then the next one may look at what was
    added alone.

    Args:
        after: what holds after it.
        changes: what it said of known images.
    """
    said, identities = set(after.values()), {one.source.identity for one in found.listings}
    if changes or found.emptied or not all(map(_is_plain, found.listings)) or not _is_complete(found.earlier):
        return False
    if not all(one.certain and one.source in identities and _is_ungrouped(one) for some in said for one in some):
        return False
    return all(_holds_what_it_said(one, after) for one in found.listings)


def _is_plain(listing: Listing) -> bool:
    source = listing.source
    odd = (source.unsettled, source.unseen, source.left_out, source.labels, source.writing)
    return (
        source.whole
        and bool(source.files)
        and not any(odd)
        and all(file.certain for file in source.files.values())
        and not any(heif.is_unread(path) or "\\" in path for path in source.files)
    )


def _is_ungrouped(said: Said) -> bool:
    return GONE not in said.claims and all(group is None for *_, group in said.claims)


def _holds_what_it_said(listing: Listing, after: Known) -> bool:
    """Whether the source has every content of which it has claimed something, with that claim, and none of which
    another source has."""
    identity = listing.source.identity
    mine = {said: claims_of(said, identity) for said in set(after.values())}
    foreign = {said for said in mine if any(one.claims and one.source != identity for one in said)}
    return all(
        claims == mine[said] and said not in foreign
        if (claims := listing.claims.get(sha256)) is not None
        else not mine[said]
        for sha256, said in after.items()
    )


def _raw(workspace: Workspace) -> str | None:
    return read_tracked(workspace.root, RAW).md5 if workspace.raw.with_suffix(".dvc").exists() else None


def _is_complete(earlier: Sequence[Path]) -> bool:
    """Whether no batch was removed, with bytes that a later one lists."""
    return [age(batch.name)[0] for batch in earlier] == list(range(1, len(earlier) + 1))


def _is_addition(address: Address, waiting: Waiting, details: Details, rows: int) -> bool:
    """Whether files were added to a folder or bucket, and none is gone, overwritten, or not what it seems."""
    odd = details.tables or waiting.unsettled or any(why.startswith(UNSEEN) for why in details.passed_over.values())
    names = any(heif.is_unread(path) or "\\" in path for path in waiting.new)
    known = waiting.settled - len(waiting.new)
    if odd or names or address.kind != "folder" or not 0 < rows == known:  # 0: as after a move of the workspace
        return False
    if not address.local:
        return all(file.certain for file in waiting.new.values())
    return all(file_stamp(f"{address.base}/{path}") == file.stamp for path, file in waiting.new.items())


def _open(address: Address, waiting: Waiting, arrays: bool, spool: Spool) -> Source:
    """The source, with the new files."""
    source = Source(address.name, waiting.base, address.identity, address.filesystem, True, arrays=arrays, spool=spool)
    root = address.base.rstrip("/")
    source.files = {path: file._replace(path=f"{root}/{path}") for path, file in sorted(waiting.new.items())}
    return source


def _read_layout(source: Source, details: Details, inbox: Path, class_folders: bool) -> Reading:
    """How the source is read, by one file of each folder and the new ones."""
    new = source.files
    samples = {path: File(path) for _, path in details.folders.values()}
    source.files = dict(sorted((samples | new).items()))
    sizes = {folder: size for folder, (size, _) in details.folders.items()}
    reading = read_layout(source, inbox, class_folders, sizes)
    source.files = new
    return reading


def _reads_known_otherwise(
    source: Source, reading: Reading, details: Details, inbox: Path, class_folders: bool
) -> bool:
    """Whether a folder that had files says something else of them with the new ones: ``pets/train`` is a training set
    where there is ``pets/test``, too."""
    added = Counter(map(posixpath.dirname, source.files))
    had = {folder: (size, path) for folder, (size, path) in details.folders.items() if size > added[folder]}
    before = _read_layout(replace(source, files={}), details._replace(folders=had), inbox, class_folders)
    return any(reading.places[path] != place for path, place in before.places.items())


def _count_others(reading: Reading, details: Details, left: Sequence[str]) -> Counter[tuple[str, str | None]]:
    """Known images by split and label: all files but those that are ``left``."""
    fewer = Counter(map(posixpath.dirname, left))
    others = Counter[tuple[str, str | None]]()
    for folder, (size, sample) in details.folders.items():
        place = reading.places[sample]
        others[place.split, place.label] += size - fewer[folder]
    return +others


def _pass_over(source: Source, details: Details, not_images: Sequence[str]) -> None:
    """Complete what is passed over, in the order in which a listing of all files has it."""
    read = source.passed_over | {path: why_no_image(path) for path in not_images}
    source.passed_over = details.passed_over | dict(sorted(read.items()))


def _find_known(earlier: Sequence[Path], wanted: set[str]) -> dict[str, list[Said]] | None:
    """What batches have said of these contents; None if one of them, or part of one, was undone."""
    known: dict[str, list[Said]] = {}
    for number, batch in enumerate(earlier):
        found = read_some(batch, wanted, UNDONE)
        if found is None:
            return None
        for sha256, occurrences in found.items():
            known.setdefault(sha256, []).extend(summarize(sha256, occurrences, number))
    return known


def _repeats(listing: Listing, known: Mapping[str, Sequence[Said]]) -> bool:
    """Whether the source has itself said before, and last, what it says of each known content now."""
    identity = listing.source.identity
    for sha256, claims in listing.claims.items():
        said = known.get(sha256, ())
        mine = [one for one in said if one.source == identity]
        others = any(one.claims - {UNCLAIMED} for one in said if one.source != identity)
        if said and (others or not mine or not claims <= mine[-1].claims):
            return False
    return True
