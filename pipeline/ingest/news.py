"""News: what the sources hold now that no batch holds, or of which a source says something else than before."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deploy.folders.files import NO_IMAGE
from deploy.images.signatures import is_array, is_image
from pipeline.errors import IngestError
from pipeline.ingest.claims import (
    GONE,
    UNCLAIMED,
    Claim,
    Known,
    Said,
    claims_of,
    describe,
    describe_absent,
    describe_images,
    find_claimed,
    is_news,
    judge,
)
from pipeline.ingest.layout import Place, Reading, hold_out
from pipeline.ingest.raw import REPLACED, Occurrence
from pipeline.ingest.sources import Source
from pipeline.ingest.stamps import Key, Stamps
from pipeline.ingest.undo import KeptOut

ARRAY = "is an array, an image only with prepare.channels"
NOT_AN_IMAGE = "not an image"  # in place of a SHA-256 among the stamps: such a file is not read again


@dataclass
class Content:
    """Bytes with news in this ingest: where to read them, and every place they are in now."""

    source: Source
    path: str
    occurrences: list[Occurrence]


@dataclass
class Listing:
    """What a source holds now: path → SHA-256, path → what is said of it, and SHA-256 → what is claimed of it.

    Of contents that batches hold: ``silent`` are those of which it claims nothing now, and takes nothing back;
    ``returned`` those that it claims again what it claimed before it lost them; ``replaced`` tells the path of those
    that were overwritten; ``reused`` those whose path has other contents now, in a folder that was filled again;
    ``unclaimed`` tells the path of those that had no label, and are nowhere in the source since they were overwritten;
    ``unsplit`` are those that stay in the test set, where labels.csv put them before and does not say now,
    ``kept_groups`` those that stay in their group likewise, and ``recalled`` those that are taken again as labels.csv
    had them. ``freed`` tells the path of those that an undone batch held out, and that are training images now.
    ``moved`` tells of those that it took over from other sources their path there, by source (see
    ``pipeline.ingest.moved``).
    """

    source: Source
    hashes: dict[str, str]
    reading: Reading
    claims: dict[str, frozenset[Claim]]
    silent: set[str] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    unclaimed: dict[str, str] = field(default_factory=dict)
    unsplit: set[str] = field(default_factory=set)
    kept_groups: set[str] = field(default_factory=set)
    recalled: set[str] = field(default_factory=set)
    freed: dict[str, str] = field(default_factory=dict)
    moved: dict[str, dict[str, str]] = field(default_factory=dict)


def read_source(
    source: Source,
    reading: Reading,
    held_out: float,
    known: Known,
    stamps: Stamps | None,
    stamped: dict[Key, tuple[str, str]],
    kept_out: KeptOut,
) -> Listing:
    """What the source holds and was neither purged nor undone; adds the stamps, empty if a next change may not show.

    Args:
        stamps: None: all files are new.
    """
    listing = Listing(source, {}, reading, {})
    tables = source.labels.items()
    stamped.update({(source.base, path): (table.stamp, "") for path, table in tables if source.settled(table)})
    later = (*source.left_out, *source.unsettled, *source.writing)
    rows = {(source.base, path): stamps.row(source.base, path) for path in later if stamps}
    stamped.update({key: row for key, row in rows.items() if row})  # taken again one day, it is not read again
    for path, sha256 in identify(source, known, stamps, kept_out).items():
        if isinstance(sha256, IngestError):  # only this file is affected
            source.passed_over[path] = str(sha256).removeprefix(f"{path!r} ")
            source.unseen.add(path)
            continue
        file = source.files[path]
        # A folder and a glob of it have the same files, and their stamps differ: as in a survey, the first one counts.
        stamped.setdefault((source.base, path), (file.stamp if source.settled(file) else "", sha256))
        if sha256 == NOT_AN_IMAGE:
            source.passed_over[path] = why_no_image(path)
            continue
        place = reading.places[path]
        if path not in reading.named and (group := _kept_group(place, known.get(sha256, ()), source.identity)):
            place = place._replace(group=group)
            listing.kept_groups.add(sha256)
        asked, place = place, kept_out.recall(sha256, source, path, place, reading)
        reading.places[path] = hold_out(place, sha256, held_out)
        if reason := kept_out.reason(sha256, source, reading.places[path]):
            source.passed_over[path] = reason
            continue
        if place != asked:
            (listing.unsplit if asked.label == place.label else listing.recalled).add(sha256)
        if kept_out.held_out(sha256):
            listing.freed[sha256] = path
        listing.hashes[path] = sha256
        claims = listing.claims.get(sha256, frozenset())
        listing.claims[sha256] = claims | ({reading.places[path]} - {UNCLAIMED})
    return listing


def why_no_image(path: str) -> str:
    """Why a file is passed over whose bytes are not those of an image."""
    return ARRAY if is_array(path) else NO_IMAGE


def identify(source: Source, known: Known, stamps: Stamps | None, kept_out: KeptOut) -> dict[str, str | IngestError]:
    """The SHA-256 of each file, NOT_AN_IMAGE, or why it cannot be read; reads those whose stamps are not known."""
    found: dict[str, str | IngestError] = {}
    unread = []
    for path, file in source.files.items():
        sha256 = stamps.find(source.base, path, file.stamp) if stamps and file.certain else None
        if sha256 == NOT_AN_IMAGE and source.arrays and is_array(path):
            sha256 = None  # it is one since prepare.channels was set
        # Not known also when the batches are not those that the stamps were taken with.
        if sha256 is None or not (sha256 == NOT_AN_IMAGE or sha256 in known or sha256 in kept_out):
            unread.append(path)
        found[path] = sha256 or ""
    for path, data in source.read_all(unread):
        if isinstance(data, IngestError):
            found[path] = data
        elif not is_image(path, data, source.arrays):
            found[path] = NOT_AN_IMAGE
        else:
            found[path] = sha256 = hashlib.sha256(data).hexdigest()
            if sha256 not in known:
                source.keep(path, data)
    return found


def compare(
    listing: Listing,
    known: Known,
    said: Known,
    earlier: Sequence[Path],
    stamps: Stamps | None,
    find_unused: Callable[[], set[str] | None],
) -> None:
    """Complete the listing with what has become of the contents that the source had before.

    Args:
        said: like ``known``, also of contents whose bytes are lost with an earlier batch.
        stamps: what the source held at its last ingest; None if that is not known.
        find_unused: what validation does not use of all batches; None: not all of them are validated.
    """
    unsplit = find_unsplit(listing, said, earlier)
    listing.unsplit |= unsplit
    for path in listing.reading.unsplit if unsplit else ():
        sha256 = listing.hashes.get(path)
        if sha256 in unsplit:
            before = listing.reading.places[path]
            held = listing.reading.places[path] = before._replace(split="test")
            listing.claims[sha256] = listing.claims[sha256] - {before} | {held}
    listing.silent = find_silent(listing, known, earlier)
    listing.returned = find_returned(listing, known, stamps) if stamps else set()
    # Meanwhile a copy with other bytes may have been labeled otherwise, which only validation sees.
    unused = find_unused() if listing.returned else None
    listing.returned &= listing.returned if unused is None else unused
    overwritten = dict(find_overwritten(listing, known, earlier, stamps))
    edited = find_edited(listing, known, set(overwritten.values()))
    listing.replaced = {sha256: path for sha256, path in overwritten.items() if path in edited}
    listing.reused = overwritten.keys() - listing.replaced.keys()
    listing.unclaimed = find_unclaimed(listing, known, stamps) if stamps else {}


def find_unsplit(listing: Listing, known: Known, earlier: Sequence[Path]) -> set[str]:
    """Contents that labels.csv held out, in the same place, and of which it does not say the split any more: its column
    was lost or has another name. Silence puts nothing that was held out into the training set."""
    identity, named = listing.source.identity, listing.reading.unsplit & listing.hashes.keys()
    held = {listing.hashes[path] for path in named}
    held = {one for one in held if any(split == "test" for split, *_ in claims_of(known.get(one, ()), identity))}
    return {
        sha256
        for sha256, paths in find_claimed(earlier, identity, held).items()
        for path in paths
        if path in named and listing.hashes[path] == sha256
    }


def _kept_group(place: Place, said: Iterable[Said], source: str) -> str | None:
    """The group that labels.csv gave before, of a file that it does not name any more, and of which the folder says a
    label or the split. Of other files nothing is said now, and what was said holds as a whole."""
    groups = {group for one in said for *_, group in claims_of((one,), source) if group is not None}
    return min(groups) if groups and place.group is None and place != UNCLAIMED else None


def find_silent(listing: Listing, known: Known, earlier: Sequence[Path]) -> set[str]:
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


def find_returned(listing: Listing, known: Known, stamps: Stamps) -> set[str]:
    """Contents of which the source claims what it claimed before it lost them."""
    source, held = listing.source, stamps.held(listing.source.base)
    if held is None:
        return set()
    candidates = {sha256 for sha256, claims in listing.claims.items() if claims and sha256 in known} - held
    for path, sha256 in listing.hashes.items() if candidates else ():
        if stamps.find(source.base, path, source.files[path].stamp):  # it was there, whatever is noted of it
            candidates.discard(sha256)
    return {one for one in candidates if claims_of(known[one], source.identity) == listing.claims[one]}


def find_overwritten(
    listing: Listing, known: Known, earlier: Sequence[Path], stamps: Stamps | None
) -> Iterator[tuple[str, str]]:
    """SHA-256 and path of each content that the source labels or holds out, and has no longer since this ingest,
    because its file has other contents."""
    source, now = listing.source, listing.hashes
    last = {path: stamps.last(source.base, path) for path in now} if stamps else {}
    if all(sha256 in known and last.get(path) in (sha256, None) for path, sha256 in now.items()):
        return
    absent = {one for one, said in known.items() if one not in listing.claims and claims_of(said, source.identity)}
    for sha256, paths in find_claimed(earlier, source.identity, absent).items():
        taken = [path for path in paths if path in now and (now[path] not in known or last.get(path) == sha256)]
        if taken and not any(map(source.hides, paths)):
            yield sha256, taken[0]


def find_unclaimed(listing: Listing, known: Known, stamps: Stamps) -> dict[str, str]:
    """SHA-256 → path of each unlabeled content that the source had at its last ingest, in place of which its file has
    others now. It stays in use: absence is not a claim."""
    source, present = listing.source, set(listing.hashes.values())
    last = {stamps.last(source.base, path): path for path in listing.hashes}
    return {
        sha256: path
        for sha256, path in last.items()
        if sha256 in known and sha256 not in present and not claims_of(known[sha256], source.identity)
    }


def find_edited(listing: Listing, known: Known, paths: Collection[str]) -> set[str]:
    """Those of the paths around which other files have stayed. If none has, the folder was emptied and filled with
    files of the same names, and what it held before is still right."""
    files, stayed = Counter[str](), Counter[str]()
    for path, sha256 in listing.hashes.items() if paths else ():
        for folder in _folders(path):
            files[folder] += 1
            stayed[folder] += sha256 in known
    return {path for path in paths if stayed[next((one for one in _folders(path) if files[one] > 1), "")]}


def _folders(path: str) -> list[str]:
    """The folders that a file is in, from the inside; the source itself only if there is no other."""
    return [one.as_posix() for one in PurePosixPath(path).parents][:-1] or ["."]


def find_new(listings: Sequence[Listing], known: Known) -> dict[str, Content]:
    """The contents that no batch holds, or of which a source says something else than before."""
    news = [
        {
            sha256
            for sha256, claims in listing.claims.items()
            if sha256 not in known
            or sha256 in listing.returned
            or sha256 in listing.moved
            or (sha256 not in listing.silent and is_news(known[sha256], listing.source.identity, claims))
        }
        for listing in listings
    ]
    # The first source that says something of a content replaces all that earlier versions have recorded without one.
    repeated = {sha256 for found in news for sha256 in found if not all(one.certain for one in known.get(sha256, ()))}
    new: dict[str, Content] = {}
    for listing, found in zip(listings, news, strict=True):
        source = listing.source
        seen = [
            (sha256, _occurrence(path, listing.reading.places[path], source.identity))
            for path, sha256 in listing.hashes.items()
            if sha256 in found or sha256 in repeated
        ]
        seen += [
            (sha256, Occurrence(path, REPLACED, None, source.identity)) for sha256, path in listing.replaced.items()
        ]
        seen += [
            (sha256, Occurrence(path, REPLACED, None, other))
            for sha256, before in listing.moved.items()
            for other, path in before.items()
        ]
        for sha256, occurrence in seen:
            new.setdefault(sha256, Content(source, occurrence.path, [])).occurrences.append(occurrence)
    return new


def _occurrence(path: str, place: Place, source: str) -> Occurrence:
    return Occurrence(path, place.split, place.label, source, place.group)


def describe_news(
    listings: Sequence[Listing], before: Known, after: Known, new: Mapping[str, Content]
) -> Iterator[str]:
    """How the verdicts on known images have changed, and what the sources do not say any more."""
    returned = {sha256 for listing in listings for sha256 in listing.returned}
    replaced = {sha256: path for listing in listings for sha256, path in listing.replaced.items()}
    unused = {one: path for one, path in replaced.items() if all(said.claims == {GONE} for said in after[one])}
    yield from describe(before, after, [one for one in new if one in before and one not in returned | unused.keys()])
    if unsplit := {sha256 for listing in listings for sha256 in listing.unsplit}:
        yield (
            f"{describe_images(len(unsplit))} held out as before, although labels.csv does not say the split any more "
            "(a row with the split train moves one)"
        )
    if recalled := {sha256 for listing in listings for sha256 in listing.recalled}:
        yield (
            f"{describe_images(len(recalled))} taken again with the label and split that labels.csv gave before "
            "(a row with a blank label removes the label)"
        )
    freed = {sha256: path for listing in listings for sha256, path in listing.freed.items() if sha256 in new}
    freed = {sha256: path for sha256, path in freed.items() if judge(after[sha256]).split == "train"}
    if freed:
        yield (
            f"{describe_images(len(freed))} moved from test to train, such as {next(iter(freed.values()))!r}: an "
            "undone batch held out what is trained on now (the split test in labels.csv, or test/, holds it out)"
        )
    ungrouped = {sha256 for listing in listings for sha256 in listing.kept_groups}
    ungrouped |= {one for listing in listings for one in listing.silent if _has_group_alone(before[one])}
    if ungrouped:
        yield (
            f"{describe_images(len(ungrouped))} kept in the group that labels.csv gave before "
            "(a row with a blank group removes it)"
        )
    if returned:
        yield f"{describe_images(len(returned))} put back, and labeled as before"
    if unused:
        yield f"{describe_images(len(unused))} overwritten and no longer used, such as {next(iter(unused.values()))!r}"
    if reused := {sha256 for listing in listings for sha256 in listing.reused}:
        yield f"{describe_images(len(reused))} kept with the label from before, although a file has the name now"
    if unclaimed := {sha256: path for listing in listings for sha256, path in listing.unclaimed.items()}:
        sha256, path = next(iter(unclaimed.items()))
        yield (
            f"{describe_images(len(unclaimed), 'unlabeled ')} overwritten, such as {path!r}, which was {sha256[:12]}: "
            "the new and the old contents are used, until `simclr quarantine deny` excludes the old ones"
        )
    complete = [one for one in listings if not one.source.unsettled and not one.source.unseen]
    claims = {listing.source.identity: listing.claims for listing in complete}
    silent = [one for listing in complete for one in listing.silent if not _has_group_alone(before[one])]
    yield from describe_absent(after, claims, len(silent))


def _has_group_alone(said: Iterable[Said]) -> bool:
    claims = [claim for one in said for claim in one.claims]
    return any(group for *_, group in claims) and not any(label for _, label, _ in claims)
