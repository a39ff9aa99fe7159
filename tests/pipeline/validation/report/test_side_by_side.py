from typing import Any

import numpy as np
import pytest

from pipeline.validation.reasons import REASONS
from pipeline.validation.report.side_by_side import (
    COMPARISONS,
    MOST_GROUPS,
    MOST_PAIRS,
    MOST_PATHS,
    MOST_PICTURES,
    Group,
    duplicate_groups,
    leaks,
)
from tests.pipeline.validation.corpus.manifests import row, table

NEAR = {"near_group": "n", "near_group_size": 2}


def groups(*rows: dict[str, Any]) -> list[Group]:
    return duplicate_groups(table(rows))


def paths(group: Group) -> list[list[str]]:
    return [[file["path"] for file in picture.shown] for picture in group.shown]


def test_files_of_the_same_bytes() -> None:
    [group] = groups(
        row("a.jpg", "exact_duplicate", content="x"),
        row("b.jpg", content="x", label="cat"),
        row("c.jpg", "exact_duplicate", content="x"),
        row("d.jpg"),
    )
    assert (group.kind, group.files, group.used, group.pictures) == ("exact", 3, 1, 1)
    assert paths(group) == [["b.jpg", "a.jpg", "c.jpg"]]
    assert group.shown[0].shown[0] == {"path": "b.jpg", "split": "train", "label": "cat", "used": True}


def test_files_of_the_same_pixels() -> None:
    pixels = {"pixel_hash": "p", "phash": 7}
    exact, pixel = sorted(
        groups(
            row("a.png", "pixel_duplicate", **pixels),
            row("b.png", "test_leak", content="b", **pixels),
            row("c.png", "test_leak", content="b", **pixels),
            row("d.png", split="test", **pixels),
        ),
        key=lambda group: group.kind,
    )
    assert (pixel.kind, pixel.files, pixel.used, pixel.pictures) == ("pixel", 4, 1, 3)
    assert paths(pixel) == [["d.png"], ["a.png"], ["b.png", "c.png"]]
    assert paths(exact) == [["b.png", "c.png"]]


def test_bits_are_counted_from_the_one_that_is_kept() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 4, dtype=np.uint64).tolist()
    rows = [row(f"{number}.jpg", phash=phash, **NEAR) for number, phash in enumerate(hashes)]
    [group] = groups(*rows)
    assert group.kind == "near"
    assert [one.bits for one in group.shown] == [(hashes[0] ^ phash).bit_count() for phash in hashes]


def test_a_near_group_holds_the_copies_of_its_pictures() -> None:
    """The manifest tells the group of one file of each picture."""
    near, exact = groups(
        row("a.jpg", content="x", **NEAR), row("b.jpg", "exact_duplicate", content="x"), row("c.jpg", **NEAR)
    )
    assert (near.files, near.used, near.pictures) == (3, 2, 2)
    assert paths(near) == [["a.jpg", "b.jpg"], ["c.jpg"]]
    assert exact.kind == "exact"


def test_equal_pixels_alone_are_not_near_and_equal_bytes_are_not_two_encodings() -> None:
    same = {"pixel_hash": "p", **NEAR}
    assert [group.kind for group in groups(row("a.jpg", **same), row("b.jpg", "pixel_duplicate", **same))] == ["pixel"]
    bytes_too = row("a.jpg", content="x", **same), row("b.jpg", "exact_duplicate", content="x", **same)
    assert [group.kind for group in groups(*bytes_too)] == ["exact"]


@pytest.mark.parametrize("reason", [reason for reason in REASONS if reason not in COMPARISONS])
def test_unusable_files_form_no_group(reason: str) -> None:
    assert groups(row("a.jpg", reason, content="x"), row("b.jpg", reason, content="x")) == []


def test_the_largest_groups_come_first_and_large_ones_are_cut() -> None:
    rows = [
        row(f"{size:02}/{number:02}.jpg", content=f"{size} {number // (MOST_PATHS + 1)}", pixel_hash=f"{size}")
        for size in range(2, 60, 6)
        for number in range(size)
    ]
    found = {kind: [group for group in groups(*rows) if group.kind == kind] for kind in ("pixel", "exact")}
    assert [group.files for group in found["pixel"]] == [56, 50, 44, 38, 32, 26]
    assert all(len(found[kind]) == MOST_GROUPS[kind] for kind in found)
    largest = found["pixel"][0]
    assert largest.pictures == 12
    assert [len(picture.shown) for picture in largest.shown] == [MOST_PATHS] * MOST_PICTURES
    assert {picture.files for picture in largest.shown} == {MOST_PATHS + 1}


def test_groups_do_not_depend_on_the_order_of_equals() -> None:
    rows = [row(f"{number}.jpg", content=f"{number % 20}") for number in range(40)]
    assert groups(*rows) == groups(*reversed(rows))


def test_leaks_are_paired_with_their_test_image_the_least_alike_first() -> None:
    def test(name: str, **changes: Any) -> dict[str, Any]:
        return row(f"test/{name}.jpg", split="test", content=name, phash=0, **changes)

    def train(path: str, name: str, **changes: Any) -> dict[str, Any]:
        return row(path, "test_leak", copy_of=test(name)["sha256"], **changes)

    found = leaks(
        table(
            [
                test("a"),
                test("b", pixel_hash="p"),
                test("c", label="cat"),
                train("same.jpg", "a", content="a", phash=0, label="dog"),
                train("same again.jpg", "a", content="a", phash=0),
                train("pixels.jpg", "b", pixel_hash="p", phash=0),
                train("one bit.jpg", "c", phash=4),
                train("three bits.jpg", "c", phash=7),
            ]
        )
    )
    assert [(one.alike, one.bits, one.train["path"], one.test["path"]) for one in found] == [
        ("near", 3, "three bits.jpg", "test/c.jpg"),
        ("near", 1, "one bit.jpg", "test/c.jpg"),
        ("pixel", 0, "pixels.jpg", "test/b.jpg"),
        ("exact", 0, "same again.jpg", "test/a.jpg"),
    ]
    assert [one.train["files"] for one in found] == [1, 1, 1, 2]
    assert found[0].test["label"] == "cat"


def test_the_number_of_shown_leaks_is_limited() -> None:
    test = row("test.jpg", split="test")
    rows = [row(f"{number}.jpg", "test_leak", copy_of=test["sha256"]) for number in range(MOST_PAIRS + 5)]
    assert len(leaks(table([test, *rows]))) == MOST_PAIRS
    assert leaks(table([test])) == []
