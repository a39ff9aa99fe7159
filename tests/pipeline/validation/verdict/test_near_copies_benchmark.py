"""What ``python -m benchmarks.pipeline.near_copies`` counts, on drawings of which it is known by construction."""

import io

import pytest
from PIL import Image, ImageDraw

from benchmarks.pipeline import near_copies
from benchmarks.pipeline.near_copies import CHANGES, Collection, are_one, judged


def drawing(shape: str, shade: str, side: int = 200) -> bytes:
    image = Image.new("RGB", (200, 200), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((20, 100, 180, 180), "#405060")
    pen.polygon([(20, 100), (180, 100), (60, 20)], shade)
    (pen.ellipse if shape == "disk" else pen.rectangle)((70, 110, 120, 160), "#e0e0e0")
    content = io.BytesIO()
    image.resize((side, side)).save(content, "PNG")
    return content.getvalue()


def test_pairs_and_planted_copies_are_counted() -> None:
    """Three drawings, one of them in two sizes: one right pair; a planted copy pairs with all that show the same."""
    contents = {
        "large/one.png": drawing("disk", "tan"),
        "small/one.png": drawing("disk", "tan", 150),
        "two.png": drawing("bar", "navy"),
    }
    changes = {"JPEG": CHANGES["JPEG, quality 75"], "half": CHANGES["half the size"]}
    found = judged(contents, changes, Collection((), same_name=True))
    assert found["pictures"] == 3
    assert (found["pairs"], found["right"]) == (1, 1)
    assert found["pairs_with_copies"] == found["right_with_copies"] == 7, "four of one name, two of the other"
    assert found["recall"] == {"JPEG": 1.0, "half": 1.0}
    assert judged(contents, changes, Collection(()))["right"] == 0


def test_a_pair_of_different_drawings_counts_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "confirm", lambda pairs, _: pairs)
    contents = {"disk.png": drawing("disk", "tan"), "bar.png": drawing("bar", "tan")}
    found = judged(contents, {"JPEG": CHANGES["JPEG, quality 75"]}, Collection(()))
    assert (found["pairs"], found["right"]) == (1, 0)
    monkeypatch.setattr(near_copies, "confirm", lambda pairs, _: pairs.clear())
    assert judged(contents, {"JPEG": CHANGES["JPEG, quality 75"]}, Collection(()))["recall"] == {"JPEG": 0.0}


def test_two_pictures_are_one_drawing_if_a_person_said_so() -> None:
    collection = Collection((), same=(("star", "favorite"),))
    assert are_one("a/star.png", "b/favorite.png", collection)
    assert not are_one("a/star.png", "b/star.png", collection)
    assert are_one("a/star.png", "b/star.png", Collection((), same_name=True))
