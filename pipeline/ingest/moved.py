"""Moved: what a source said of files that it has no longer, where another source has the same files now.

A folder that is renamed, or ingested as a glob, is another source, and so is the one that a file is moved to. What such
a source says of the image then counts, not what the one before said, of which ``replaced`` is recorded with it. Absence
alone is not a claim, and a copy takes nothing back. So all of this has to be true:

- what the source says is newer: the file is new in its place, or its claim was ingested later;
- the place says something: a class, the test set, ``unlabeled/``, or a row of labels.csv;
- it is the same file, by its size and the time of its last change, which a plain copy does not keep, or the folder is
  the same, or the source has itself said what the one before said;
- the one before has no such file any more, and is not an empty folder, as that of a disk that is not mounted.

If the source before comes back with the file, it says something else than ``replaced``, and that is news.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.ingest.claims import GONE, Known, Said, find_claimed
from pipeline.ingest.news import Listing
from pipeline.ingest.sources import LOCAL, bases_of
from pipeline.ingest.stamps import Stamps

TOLERANCE_SECONDS = 1e-5  # a glob knows the time of a change as a floating-point number

Place = tuple[str, str]  # base of the source, path relative to it


class Holder(NamedTuple):
    """A source that holds contents of which others have claimed something: SHA-256 → the paths at which it does."""

    listing: Listing
    paths: Mapping[str, Sequence[str]]
    stamps: Stamps

    def said(self, said: Sequence[Said]) -> Said | None:
        """What it has said itself."""
        return next((one for one in said if one.certain and one.source == self.listing.source.identity), None)

    def is_newer(self, sha256: str, own: Said | None, other: Said) -> bool:
        """Whether what it says now is newer than what the other said; what agrees was settled when it was news."""
        claims, base = self.listing.claims[sha256], self.listing.source.base
        if own is None:
            return bool(claims) or any(self.stamps.last(base, path) != sha256 for path in self.paths[sha256])
        return own.claims != claims or (own.batch > other.batch and not other.claims - {GONE} <= claims)

    def speaks(self, sha256: str) -> bool:
        """Whether its place says something of the image, also that it has no label."""
        reading = self.listing.reading
        return bool(self.listing.claims[sha256]) or any(
            path in reading.unlabeled or path in reading.labeled for path in self.paths[sha256]
        )

    def is_silent(self, sha256: str, other: Said) -> bool:
        """Whether it does not speak of the image, or not of the split of what the other held out."""
        held_out = any(split == "test" for split, *_ in other.claims)
        without = held_out and self.listing.reading.unsplit.issuperset(self.paths[sha256])
        return without or sha256 in self.listing.silent

    def has_same_file(self, sha256: str, places: Collection[Place]) -> bool:
        """Whether the file was in one of these places, or its own row in labels.csv says the split."""
        files, split = self.listing.source.files, self.listing.reading.split
        rows = [row for place in places if (row := self.stamps.row(*place)) and row[1] == sha256]
        return any(
            path in split or any(_are_alike(files[path].stamp, stamp) for stamp, _ in rows)
            for path in self.paths[sha256]
        )


def find_moved(listings: Sequence[Listing], known: Known, earlier: Sequence[Path], stamps: Stamps, root: Path) -> None:
    """Note in each listing what other sources claimed of its contents, and do not speak of any more.

    Args:
        stamps: what each source held at its last ingest.
        root: the workspace, which sources in it are relative to.
    """
    holding = {one.source.identity: one.claims.keys() for one in listings}
    listed = {one.source.base: one for one in listings if one.source.whole}
    for listing in listings:
        holder = _hold(listing, known, stamps)
        claimants = defaultdict[str, dict[str, Said]](dict)
        for sha256 in holder.paths:
            own = holder.said(known[sha256])
            for one in _others(known[sha256], listing.source.identity):
                if sha256 not in holding.get(str(one.source), ()) and holder.is_newer(sha256, own, one):
                    claimants[str(one.source)][sha256] = one
        for source, said in claimants.items():
            for sha256, paths in find_claimed(earlier, source, said).items():
                places = {(base, path) for path in paths for base in bases_of(source, path, root)}
                replaced = bool(places) and _counts(holder, sha256, said[sha256], places, known)
                if replaced and all(_is_gone(place, listed) for place in places):
                    listing.moved.setdefault(sha256, {})[source] = paths[0]


def _hold(listing: Listing, known: Known, stamps: Stamps) -> Holder:
    identity = listing.source.identity
    foreign = {said for said in set(known.values()) if any(True for _ in _others(said, identity))}
    paths = defaultdict[str, list[str]](list)
    for path, sha256 in listing.hashes.items() if foreign else ():
        if known.get(sha256) in foreign:
            paths[sha256].append(path)
    return Holder(listing, paths, stamps)


def _others(said: Sequence[Said], source: str) -> Iterator[Said]:
    """What other sources have claimed, as the batches name them."""
    return (one for one in said if one.certain and one.source not in (None, source) and one.claims - {GONE})


def _counts(holder: Holder, sha256: str, other: Said, places: Collection[Place], known: Known) -> bool:
    """Whether what the holder says replaces what the other said, if that has the file no longer."""
    if holder.is_silent(sha256, other):
        return False
    own = holder.said(known[sha256])
    taken_over = own is not None and own.batch > other.batch and other.claims - {GONE} <= own.claims
    same_folder = any(base == holder.listing.source.base for base, _ in places)
    return same_folder or (holder.speaks(sha256) and (taken_over or holder.has_same_file(sha256, places)))


def _is_gone(place: Place, listed: Mapping[str, Listing]) -> bool:
    """Whether a file is certainly not there; of a bucket that was not listed, that is not known."""
    base, path = place
    if not base.startswith(LOCAL):
        there = listed.get(base)
        return bool(there and there.hashes and path not in there.hashes and not there.source.hides(path))
    folder = base.removeprefix(LOCAL)
    return _is_missing(folder) or (not _is_empty(folder) and _is_missing(f"{folder}/{path}"))


def _is_missing(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # it may be there
    return False


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True  # nothing can be seen in it


def _are_alike(one: str, other: str) -> bool:
    """Whether two stamps are of one file: of a folder ``size-nanoseconds``, of a glob ``size-seconds``."""
    first, second = (stamp.partition("-") for stamp in (one, other))
    try:
        near = abs(_seconds(first[2]) - _seconds(second[2])) < TOLERANCE_SECONDS
    except ValueError:
        near = False  # an ETag, say
    return bool(one) and (one == other or (first[0] == second[0] and near))


def _seconds(text: str) -> float:
    return float(text) if "." in text else int(text) / 1e9
