"""Near copies among millions of pictures: pairs whose perceptual hashes nearly agree, and the groups that they form.

Two hashes that differ in at most 3 of 64 bits agree in at least one of four blocks of bits, and in at least two of
five (Manku et al. 2007). So, key by key, the rows are sorted by the hash with the blocks of the key in front, and each
row is compared with those behind it as far as these agree. One block of four is a bucket for few rows, two of five for
very many. Portions of rows bound the memory; one thread in a fixed order finds the same pairs everywhere.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Array = np.ndarray[Any, np.dtype[Any]]

BITS = 64
MOST_BITS = 3  # in which two perceptual hashes may differ: with more, no blocks need agree
MANY_ROWS = 5_000_000
"""From here on two of five blocks are in front: 10 sorts and not 4, but buckets of 25 bits and not 16. Random hashes of
100 million rows have 1,700 in the fullest bucket of 16 bits, each compared with all behind it, and 17 in one of 25."""
PORTION = 1 << 22  # rows that are sorted at once
BLOCK = 1 << 16  # rows: their hashes fit into a core's second-level cache
HOT_BUCKET = 2000
"""Rows behind it with which a row is compared for one key, so that time is bounded. Where 100,000 rows share a block of
four, 98 % of pairs that differ in 3 bits are still found and all of those with fewer; where they share two blocks,
87 %, 97 % with 2 bits and all with 1. Equal hashes are side by side."""
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
    colors: tuple[Array, ...]  # the mean of each channel, [n]
    log_aspect: Array  # [n]


class _Key(NamedTuple):
    """Blocks of the hash in the order in which rows are sorted by them, each as (lowest bit, bits); and how many bits
    those in front have, in which two rows have to agree."""

    blocks: tuple[tuple[int, int], ...]
    front: int


def near_pairs(hashes: pl.DataFrame, distance: int = MOST_BITS) -> tuple[pl.DataFrame, int]:
    """The pairs of contents that look nearly alike.

    Args:
        hashes: one row per content without nulls: sha256, phash, dhash, red_mean, green_mean, blue_mean and aspect.
        distance: bits in which two ``phash`` may differ, 0..3.

    Returns:
        PAIRS, first < second, sorted, each once; and the number of contents that HOT_BUCKET or CROWD kept from being
        compared with everything.
    """
    assert 0 <= distance <= MOST_BITS, "with more bits, no blocks need agree"
    hashes = hashes.sort("sha256")
    log_aspect = np.log(hashes["aspect"].to_numpy()) / np.log(ASPECT_RATIO)
    colors = tuple(hashes[f"{channel}_mean"].to_numpy() for channel in ("red", "green", "blue"))
    pictures = _Pictures(hashes["phash"].to_numpy(), hashes["dhash"].to_numpy(), colors, log_aspect)
    by_dhash = np.argsort(pictures.dhash, kind="stable").astype(np.uint32)
    keys = np.empty(0, dtype=np.uint64)
    cut_short = np.zeros(len(hashes), dtype=np.bool_)
    for key in _keys(len(hashes)):
        for turned, order in _portions(pictures.phash, by_dhash, key):
            found = _pairs_of_key(turned, order, key.front, pictures, distance, cut_short)
            keys = _distinct(np.concatenate([keys, *found]))
    first, second = (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(2**32 - 1)).astype(np.int64)
    bits = np.bitwise_count(pictures.phash[first] ^ pictures.phash[second])
    names = hashes["sha256"]
    pairs = pl.DataFrame({"first": names[first], "second": names[second], "distance": bits}, PAIRS)
    return pairs, int(cut_short.sum())


def _keys(rows: int) -> list[_Key]:
    """Of any two hashes that differ in MOST_BITS or fewer, the blocks in front agree for at least one key."""
    widths, leading = ([16] * 4, 1) if rows < MANY_ROWS else ([13, 13, 13, 13, 12], 2)
    ends = np.cumsum(widths).tolist()
    blocks = [(BITS - end, width) for end, width in zip(ends, widths, strict=True)]
    keys = []
    for front in combinations(range(len(blocks)), leading):
        behind = (number % len(blocks) for number in range(front[-1] + 1, front[-1] + len(blocks)))
        order = [*front, *(number for number in behind if number not in front)]
        keys.append(_Key(tuple(blocks[number] for number in order), sum(widths[number] for number in front)))
    return keys


def _portions(phash: Array, by_dhash: Array, key: _Key) -> Iterator[tuple[Array, Array]]:
    """Hashes with the blocks of a key in front, sorted, and the index of each; some buckets after the others.

    Args:
        by_dhash: all indices, in the order that they have in equal hashes: likely copies are side by side.
    """
    turned = np.zeros(len(phash), dtype=np.uint64)
    for lowest, width in key.blocks:
        turned = turned << np.uint64(width) | phash >> np.uint64(lowest) & np.uint64((1 << width) - 1)
    turned = turned[by_dhash]
    bits = min(key.front, (len(phash) // PORTION).bit_length())
    for portion in range(1 << bits):
        rows = np.flatnonzero(turned >> np.uint64(BITS - bits) == portion) if bits else slice(None)
        some = turned[rows]
        order = np.argsort(some, kind="stable")
        yield some[order], by_dhash[rows][order]


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


def _pairs_of_key(
    turned: Array, order: Array, front: int, pictures: _Pictures, distance: int, cut_short: Array
) -> Iterator[Array]:
    """Near copies that agree in the bits in front: two indices as one uint64, the lower one first.

    Args:
        turned: uint64 [n], sorted.
        order: [n], the index of each in ``pictures``.
        front: how many of the highest bits have to agree.
        cut_short: bool, of ``pictures``; is set for those that were not compared with everything.
    """
    bucket = turned >> np.uint64(BITS - front)
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
    near &= np.abs(pictures.log_aspect[one] - pictures.log_aspect[other]) <= 1
    for color in pictures.colors:
        near &= np.abs(color[one] / COLOR_DISTANCE - color[other] / COLOR_DISTANCE) <= 1
    return near


def _distinct(values: Array) -> Array:
    """Sorted. Ten times faster than numpy.unique, which hashes."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])] if values.size else values
