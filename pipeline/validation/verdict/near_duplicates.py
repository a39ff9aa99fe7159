"""Near copies among millions of pictures: pairs whose perceptual hashes nearly agree, and the groups that they form.

Two hashes that differ in at most 3 of 64 bits agree in at least one of four 16-bit bands. So, band by band, the rows
are sorted by the hash turned until that band leads, and each row is compared with those behind it as far as the band
reaches. Blocks of rows bound the memory; one thread in a fixed order finds the same pairs everywhere.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Array = np.ndarray[Any, np.dtype[Any]]

BANDS, BAND_BITS = 4, 16
MOST_BITS = BANDS - 1  # in which two perceptual hashes may differ: with more, no band need agree
BLOCK = 1 << 16  # rows: their hashes fit into a core's second-level cache
HOT_BUCKET = 2000
"""Rows behind it with which a row is compared in one band, so that time is bounded. Ten million random hashes have 210
in a bucket at most. Where 100,000 rows share a band, 98 % of pairs that differ in 3 bits are still found and all of
those with fewer; where they share two bands, 87 %, 97 % with 2 bits and all with 1. Equal hashes are side by side."""
CROWD = 32
"""Near copies that one row is paired with in one band, so that memory is bounded: of larger crowds not all pairs are
reported, but enough to make them one group."""

# Measured on 2,645 crops with a trusted hash of 93 photographs and drawings (Debian's wallpapers), and on copies of
# 543. Found are 97 % of the copies as JPEG of quality 40; 98 to 100 % of those of quality 60 to 95, as WebP, at 50 to
# 200 % of the size or 5 % brighter or darker; 94 % of those 10 % brighter; but only 53 to 68 % of those that lack 2 %
# of a side. Of 3.5 million pairs of different crops, 35 have perceptual hashes within 3 bits, and 3 are taken for
# copies, all of drawings; of photographs alone, a million pairs, 3 and none.
DHASH_DISTANCE = 12  # bits of 64; 99 % of the copies differ in at most 8
COLOR_DISTANCE = 26.0  # levels of 255, in each channel: ten percent of white
ASPECT_RATIO = 1.05

PAIRS = pl.Schema({"first": pl.String(), "second": pl.String(), "distance": pl.UInt8()})
GROUPS = pl.Schema({"sha256": pl.String(), "near_group": pl.String(), "near_group_size": pl.Int32()})


class _Pictures(NamedTuple):
    """Sorted by sha256, so that an index says which of two comes first."""

    phash: Array  # uint64 [n]
    dhash: Array  # uint64 [n]
    scales: Array  # float64 [n, 4]: colors and the logarithm of aspect, in units of what two near copies may differ


def near_pairs(hashes: pl.DataFrame, distance: int = 3) -> tuple[pl.DataFrame, int]:
    """The pairs of contents that look nearly alike.

    Args:
        hashes: one row per content without nulls: sha256, phash, dhash, red_mean, green_mean, blue_mean and aspect.
        distance: bits in which two ``phash`` may differ, 0..3.

    Returns:
        PAIRS, first < second, sorted, each once; and the number of contents that HOT_BUCKET or CROWD kept from being
        compared with everything.
    """
    assert 0 <= distance < BANDS, "with more bits, no band need agree"
    hashes = hashes.sort("sha256")
    colors = hashes.select(f"{channel}_mean" for channel in ("red", "green", "blue")).to_numpy() / COLOR_DISTANCE
    log_aspect = np.log(hashes["aspect"].to_numpy()) / np.log(ASPECT_RATIO)
    scales = np.column_stack([colors, log_aspect])
    pictures = _Pictures(hashes["phash"].to_numpy(), hashes["dhash"].to_numpy(), scales)
    by_dhash = np.argsort(pictures.dhash, kind="stable")
    keys = np.empty(0, dtype=np.uint64)
    cut_short = np.zeros(len(hashes), dtype=np.bool_)
    for band in range(BANDS):
        turned = _rotate_left(pictures.phash, band * BAND_BITS)
        order = by_dhash[np.argsort(turned[by_dhash], kind="stable")]  # likely copies side by side in equal hashes
        keys = _distinct(np.concatenate([keys, *_pairs_of_band(turned[order], order, pictures, distance, cut_short)]))
    first, second = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(2**32 - 1)).astype(np.int64)
    bits = np.bitwise_count(pictures.phash[first] ^ pictures.phash[second])
    names = hashes["sha256"]
    pairs = pl.DataFrame({"first": names[first], "second": names[second], "distance": bits}, PAIRS)
    return pairs, int(cut_short.sum())


def near_groups(pairs: pl.DataFrame) -> pl.DataFrame:
    """The connected components of PAIRS as GROUPS, sorted by sha256; the smallest sha256 names the group."""
    ends = pl.concat([pairs["first"], pairs["second"]])
    nodes = ends.unique().sort()
    first, second = np.split(ends.rank("dense").to_numpy().astype(np.int64) - 1, 2)
    edges = coo_array((np.ones(len(first), dtype=np.bool_), (first, second)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(edges, directed=False)
    groups = pl.DataFrame({"sha256": nodes, "component": component}).select(
        "sha256",
        near_group=pl.col("sha256").min().over("component"),
        near_group_size=pl.len().over("component"),
    )
    return groups.cast(GROUPS)


def _pairs_of_band(
    turned: Array, order: Array, pictures: _Pictures, distance: int, cut_short: Array
) -> Iterator[Array]:
    """Near copies that agree in one band, and some that need not: two indices as one uint64, the lower one first.

    Args:
        turned: uint64 [n], sorted; the band is in the highest bits.
        order: [n], the index of each in ``pictures``.
        cut_short: bool [n], of ``pictures``; is set for those that were not compared with everything.
    """
    bucket = turned >> np.uint64(64 - BAND_BITS)
    behind = np.searchsorted(bucket, bucket, "right") - np.arange(len(bucket)) - 1
    cut_short[order[behind > HOT_BUCKET]] = True
    for start in range(0, len(turned), BLOCK):
        stop = min(start + BLOCK, len(turned))
        copies = np.zeros(stop - start, dtype=np.uint8)
        for offset in range(1, min(int(behind[start:stop].max()), HOT_BUCKET) + 1):
            end = min(stop, len(turned) - offset)
            close = np.bitwise_count(turned[start:end] ^ turned[start + offset : end + offset]) <= distance
            if close.any():
                rows = np.flatnonzero(close & (copies[: end - start] < CROWD))
                pair = order[np.stack([rows + start, rows + start + offset])]
                alike = _alike(pictures, *pair)
                copies[rows[alike]] += 1
                first, second = np.sort(pair[:, alike].astype(np.uint64), axis=0)
                yield first << np.uint64(32) | second
        cut_short[order[start:stop][copies == CROWD]] = True


def _alike(pictures: _Pictures, one: Array, other: Array) -> Array:
    near = np.bitwise_count(pictures.dhash[one] ^ pictures.dhash[other]) <= DHASH_DISTANCE
    near &= (np.abs(pictures.scales[one] - pictures.scales[other]) <= 1).all(axis=1)
    return near


def _distinct(values: Array) -> Array:
    """Sorted. Ten times faster than numpy.unique, which hashes."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])] if values.size else values


def _rotate_left(values: Array, bits: int) -> Array:
    return values << np.uint64(bits) | values >> np.uint64((64 - bits) % 64)
