import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.validation.probe.facts import SKETCH_BYTES, Facts
from pipeline.validation.tables import JUDGMENTS
from pipeline.validation.verdict import copies
from pipeline.validation.verdict.copies import PLACEHOLDER_ENTROPY
from pipeline.validation.verdict.near_duplicates import near_pairs
from simclr_core.data import label_sets
from tests.pipeline.validation.corpus.contents import SKETCH, File, crowd, image, reasons, seen, verdicts
from tests.pipeline.validation.verdict.copies_oracle import oracle
from tests.repetitions import repeated, repetitions


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # unlabeled in one place, labeled in another: kept once, with its label
        ([seen("a.png"), seen("labeled/cat/a.png", label="cat")], ["exact_duplicate", None]),
        ([seen("a.png"), seen("b.png")], [None, "exact_duplicate"]),
        ([seen("b.png", batch="0001"), seen("a.png", batch="0002")], [None, "exact_duplicate"]),
        # the test image stays, its training copy goes
        ([seen("a.png"), seen("t.png", split="test", label="cat")], ["test_leak", None]),
        ([seen("a.png", label="cat"), seen("t.png", split="test", label="cat")], ["test_leak", None]),
        ([seen("s.png", split="test"), seen("t.png", split="test", label="cat")], ["exact_duplicate", None]),
        # two labels for one image: neither can be believed
        ([seen("a.png", label="cat"), seen("b.png", label="dog")], ["label_conflict", "label_conflict"]),
        ([seen("a.png", label="cat"), seen("b.png"), seen("c.png", label="dog")], ["label_conflict"] * 3),
        ([seen("a.png", label="cat"), seen("t.png", split="test", label="dog")], ["label_conflict"] * 2),
        # unless a later batch says so: a label corrected; but not that of a test image from the training side
        ([seen("a.png", label="cat"), seen("a.png", label="dog", batch="0002")], ["exact_duplicate", None]),
        ([seen("a.png", label="cat", batch="0002"), seen("a.png", label="dog")], [None, "exact_duplicate"]),
        (
            [seen("a.png", label="cat", batch="9999"), seen("a.png", label="dog", batch="10000")],
            ["exact_duplicate", None],
        ),
        (
            [seen("t.png", split="test", label="cat"), seen("a.png", label="dog", batch="0002")],
            ["label_conflict", "label_conflict"],
        ),
    ],
)
def test_exact_copies_get_their_reasons(files: list[File], expected: list[str | None]) -> None:
    assert reasons(files, [image()]) == [(reason,) if reason else () for reason in expected]


def test_other_sets_of_labels_contradict_each_other_and_are_named_as_people_write_them() -> None:
    """Also where one is part of the other: a class that is not in a set is absent."""
    both, none = label_sets.join(["dog", "cat"]), label_sets.NONE_OF_THEM
    files = [seen("a.png", label=both), seen("b.png", label="cat"), seen("c.png", label=none)]
    found = verdicts(files, [image()])
    assert [one["reasons"] for one in found] == [["label_conflict"]] * 3
    assert {one["message"] for one in found} == {"labeled - and cat and cat|dog"}
    assert reasons([seen("a.png", label=both), seen("b.png", label=both)], [image()]) == [(), ("exact_duplicate",)]


def test_the_same_pixels_in_other_bytes() -> None:
    files = [seen("a.png", "1"), seen("b.bmp", "2"), seen("c.bmp", "2"), seen("d.png", "1"), seen("e.png", "3")]
    found = verdicts(files, [image("1"), image("2"), image("3", pixels="q")])
    assert [one["reasons"] for one in found] == [
        [],
        ["pixel_duplicate"],
        ["exact_duplicate"],
        ["exact_duplicate"],
        [],
    ]
    assert [one["message"] for one in found] == [
        "",
        "the same pixels as a.png",
        "the same pixels as a.png",
        "the same bytes as a.png",
        "",
    ]
    assert [one["copy_of"] for one in found] == [None, "1", "1", "1", None]


def test_a_refused_file_does_not_exclude_its_copies() -> None:
    files = [seen("../a.png"), seen("b.png"), seen("c.png", label="dog"), seen("/d.png", label="cat")]
    assert reasons(files, [image()]) == [("unsafe_path",), ("exact_duplicate",), (), ("unsafe_path",)]


def test_contradicting_labels_are_named() -> None:
    files = [seen(f"{label}.png", label=label) for label in ("dog", "cat", "<b>")]
    assert {one["message"] for one in verdicts(files, [image()])} == {"labeled <b> and cat and dog"}


def test_a_near_copy_of_a_test_image_is_a_leak() -> None:
    files = [seen("a.png", "1"), seen("t.png", "2", split="test"), seen("b.png", "3"), seen("c.png", "4")]
    contents = [image("1", "p", phash=0b1), image("2", "q", phash=0), image("3", "r", phash=0b1111)]
    found = verdicts(files, [*contents, image("4", "s", phash=0b1111111)])
    assert [one["reasons"] for one in found] == [["test_leak"], [], ["test_leak"], ["test_leak"]]
    assert [one["message"] for one in found] == [
        "nearly the same picture as t.png of the test set, 1 of 64 bits differ, at most 3 may",
        "",
        "in a chain of near copies with t.png of the test set: "
        "nearly the same picture as a.png, 3 of 64 bits differ, at most 3 may",
        "in a chain of near copies with t.png of the test set: "
        "nearly the same picture as b.png, 3 of 64 bits differ, at most 3 may",
    ]
    assert {one["copy_of"] for one in found} == {None, "2"}
    assert {(one["near_group"], one["near_group_size"]) for one in found} == {("1", 4)}
    assert not any(one["warnings"] for one in found)


def test_the_nearest_of_several_test_images_is_named() -> None:
    files = [seen("a.png", "1"), *(seen(f"{name}.png", name, split="test") for name in ("2", "3", "4"))]
    contents = [image("1", "p", phash=0), image("2", "q", phash=0b11), image("3", "r", phash=0b100)]
    found = verdicts(files, [*contents, image("4", "s", phash=0b1000)])
    assert [one["reasons"] for one in found] == [["test_leak"], [], [], []]
    assert (found[0]["copy_of"], found[0]["message"].split()[5]) == ("3", "3.png")
    assert all(one["warnings"] == ["near_duplicate"] for one in found[1:])


NEAR = [image(name, f"p{name}", phash=3 >> int(name)) for name in "012"]


def test_near_copies_within_a_split_are_named_and_kept() -> None:
    for split in ("train", "test"):
        found = verdicts([seen(f"{name}.png", name, split=split) for name in "012"], NEAR)
        assert [(one["reasons"], one["warnings"], one["near_group_size"]) for one in found] == [
            ([], ["near_duplicate"], 3)
        ] * 3


def test_near_copies_in_the_training_set_can_be_quarantined_but_one() -> None:
    files = [seen("0.png", "0"), seen("1.png", "1", label="cat"), seen("2.png", "2")]
    found = verdicts(files, NEAR, quarantine_near_copies=True)
    assert [one["reasons"] for one in found] == [["near_duplicate"], [], ["near_duplicate"]]
    assert [one["copy_of"] for one in found] == ["1", None, "1"]
    assert found[0]["message"] == "nearly the same picture as 1.png, 1 of 64 bits differ, at most 3 may"
    assert not any(one["warnings"] for one in found)
    tests = [file | {"split": "test"} for file in files]
    assert reasons(tests, NEAR, quarantine_near_copies=True) == [(), (), ()]


def test_near_copies_with_different_labels_are_named_in_both_splits() -> None:
    labels = ("cat", "dog", None)
    files = [seen(f"{name}.png", name, label=label) for name, label in zip("012", labels, strict=True)]
    conflict = ["near_duplicate", "near_label_conflict"]
    assert [one["warnings"] for one in verdicts(files, NEAR)] == [conflict, conflict, ["near_duplicate"]]
    leaked = verdicts([files[0], files[1] | {"split": "test"}], NEAR)
    assert [(one["reasons"], one["warnings"]) for one in leaked] == [
        (["test_leak"], ["near_label_conflict"]),
        ([], ["near_label_conflict"]),
    ]
    agreed = [file | {"label": "cat"} for file in files]
    assert not any("near_label_conflict" in one["warnings"] for one in verdicts(agreed, NEAR))


@pytest.mark.seconds
def test_pictures_that_differ_in_one_place_are_not_near_copies() -> None:
    files = [seen("0.png", "0", label="a"), seen("1.png", "1", split="test", label="b")]
    levels = bytearray(SKETCH_BYTES)
    levels[100] = 200
    other = base64.b64encode(levels).decode()
    for sketches, leaks in (((SKETCH, other), False), ((other, other), True)):
        contents = [image(name, name, phash=0, sketch=sketch) for name, sketch in zip("01", sketches, strict=True)]
        found = verdicts(files, contents)
        assert (found[0]["reasons"] == ["test_leak"], bool(found[1]["warnings"])) == (leaks, leaks)


def test_the_search_for_near_copies_can_be_switched_off() -> None:
    files = [seen("0.png", "0"), seen("2.png", "2", split="test")]
    found = verdicts(files, NEAR, near_distance=None)
    assert [(one["reasons"], one["near_group"]) for one in found] == [([], None)] * 2
    leaks = [reasons(files, NEAR, near_distance=distance)[0] for distance in range(4)]
    assert leaks == [(), (), ("test_leak",), ("test_leak",)]


def test_untrusted_hashes_are_not_compared() -> None:
    files = [seen("0.png", "0"), seen("1.png", "1", split="test")]
    flat = [image(name, f"p{name}", phash=0, hash_trusted=False) for name in "01"]
    assert reasons(files, flat) == [(), ()]


def test_a_quarantined_file_has_no_near_copies() -> None:
    files = [seen("0.png", "0"), seen("../1.png", "1", split="test"), seen("2.png", "2", split="test")]
    files.append(seen("2 again.png", "2", split="test", label="cat"))
    files.append(seen("2 once more.png", "2", split="test", label="dog"))
    found = verdicts(files, NEAR)
    assert [one["reasons"] for one in found] == [[], ["unsafe_path"], *[["label_conflict"]] * 3]
    assert not any(one["near_group"] for one in found)


def test_a_near_leak_can_be_released_but_an_exact_one_cannot() -> None:
    files = [seen("0.png", "0"), seen("1.png", "1", split="test"), seen("1 again.png", "1")]
    found = verdicts(files, NEAR, allowed=["0", "1"])
    assert [one["reasons"] for one in found] == [[], [], ["test_leak"]]
    assert [one["warnings"] for one in found] == [["released", "near_duplicate"], ["near_duplicate"], []]
    assert found[0]["copy_of"] is None


def test_a_search_that_was_cut_short_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "events"
    monkeypatch.setenv("SIMCLR_EVENTS", str(events))
    files = [seen(f"{name}.png", name) for name in "012"]
    verdicts(files, NEAR)
    assert not events.exists()
    monkeypatch.setattr(copies, "near_pairs", lambda hashes, distance: (near_pairs(hashes, distance)[0], 5))
    verdicts(files, NEAR)
    [event] = events.read_text().splitlines()
    assert json.loads(event)["cut_short"] == 5


def flat(count: int, entropy: float = 2.0, **known: Any) -> list[Facts]:
    return [image(f"{number:02}", f"p{number}", phash=1 << number, entropy=entropy, **known) for number in range(count)]


def shown(contents: Iterable[Facts], times: int = 1) -> list[File]:
    return [seen(f"{one.sha256} {time}.png", one.sha256) for one in contents for time in range(times)]


def test_a_flat_picture_shown_by_very_many_files_is_a_placeholder() -> None:
    contents = flat(20)
    found = verdicts(shown(contents), contents)
    assert all(one["reasons"] == ["placeholder"] for one in found)
    assert "20 files show" in found[0]["message"]
    assert not any(one["warnings"] for one in found)
    assert set(reasons(shown(contents[:19]), contents)) == {()}
    assert set(reasons(shown(contents[:19]), contents, placeholder_copies=19)) == {("placeholder",)}
    lively = flat(20, PLACEHOLDER_ENTROPY)
    assert set(reasons(shown(lively), lively)) == {()}


def test_copies_count_toward_a_placeholder() -> None:
    contents = flat(2)
    found = reasons(shown(contents, 10), contents)
    assert found == [("placeholder",), *[("exact_duplicate",)] * 9] * 2
    alone = [image(entropy=2.0)]
    assert reasons(shown(alone, 20), alone, near_distance=None) == [("placeholder",), *[("exact_duplicate",)] * 19]
    assert reasons(shown(alone, 19), alone) == [(), *[("exact_duplicate",)] * 18]


def test_a_placeholder_is_not_a_leak_and_stays_in_the_test_set() -> None:
    contents = flat(20)
    files = shown(contents)
    files[3]["split"] = "test"
    found = verdicts(files, contents, quarantine_near_copies=True, allowed=["05"])
    others = [one["reasons"] for number, one in enumerate(found) if number not in (3, 5)]
    assert set(map(tuple, others)) == {("placeholder",)}
    assert (found[3]["reasons"], found[3]["warnings"]) == ([], ["near_duplicate"])
    assert (found[5]["reasons"], found[5]["warnings"]) == ([], ["released", "near_duplicate"])


@pytest.mark.seconds
def test_the_order_of_the_files_decides_nothing() -> None:
    for seed in range(10):
        files, contents = crowd(seed)
        forward = verdicts(files, contents, quarantine_near_copies=True)
        assert forward == verdicts(files[::-1], contents[::-1], quarantine_near_copies=True)[::-1]


@pytest.mark.parametrize("seed", range(30))
def test_every_picture_is_used_once_unless_its_labels_contradict(seed: int) -> None:
    files, contents = crowd(seed, files=60)
    pictures = {one.sha256: one.pixel_hash for one in contents}
    groups = defaultdict(list)
    for one in verdicts(files, contents, near_distance=None, placeholder_copies=1000):
        if one["reasons"] != ["unsafe_path"]:
            groups[pictures[one["sha256"]]].append(one)
    for group in groups.values():
        used = [one for one in group if not one["reasons"]]
        if not used:
            assert {tuple(one["reasons"]) for one in group} == {("label_conflict",)}
            assert {one["label"] for one in group} >= {"cat", "dog"}
            continue
        [kept] = used
        assert (kept["split"] == "test") == any(one["split"] == "test" for one in group)
        assert kept["label"] or not any(one["label"] for one in group if one["split"] == kept["split"])
        for one in group:
            assert (one["reasons"] == ["test_leak"]) == (one["split"] != kept["split"])
            assert one is kept or one["copy_of"] == kept["sha256"]


def trial(seed: int) -> tuple[list[File], list[Facts], dict[str, Any]]:
    """Files, contents, and a policy with some releases."""
    files, contents = crowd(seed)
    policy = {
        "near_distance": (None, 0, 3, 3)[seed % 4],
        "quarantine_near_copies": seed // 4 % 2 == 0,
        "placeholder_copies": (3, 6, 20)[seed // 8 % 3],
        "allowed": [one.sha256 for one in contents[::2]] if seed % 3 == 0 else [],
    }
    return files, contents, policy


@repeated
@pytest.mark.parametrize("seed", range(repetitions(96, all=300)))  # each of the 24 policies four times
def test_verdicts_equal_those_of_an_oracle(seed: int) -> None:
    files, contents, policy = trial(seed)
    found = verdicts(files, contents, **policy)
    expected = oracle(files, {one.sha256: one for one in contents}, **policy)
    for file, one, other in zip(files, found, expected, strict=True):
        assert {name: one[name] for name in other} == other, file
        assert set(other) == set(JUDGMENTS) - {"verdict"}


@pytest.mark.seconds
def test_the_random_trials_contain_every_kind_of_copy_often() -> None:
    counts: Counter[str] = Counter()
    for seed in range(300):
        files, contents, policy = trial(seed)
        for one in oracle(files, {each.sha256: each for each in contents}, **policy):
            counts.update([*one["reasons"], *one["warnings"], *one["message"].split()[:1]])
    for name in ("label_conflict", "test_leak", "exact_duplicate", "pixel_duplicate", "placeholder", "released"):
        assert counts[name] > 50, name
    assert counts["near_duplicate"] > 50
    assert counts["nearly"] > 50
    assert counts["near_label_conflict"] > 30
    assert counts["in"] > 10  # a chain of near copies
