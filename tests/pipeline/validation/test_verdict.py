import random
from collections import defaultdict

import pytest

from pipeline.validation.facts import Facts
from pipeline.validation.probe import probe
from pipeline.validation.verdict import REASONS, WARNINGS, File, Verdict, judge
from tests.pipeline.validation.corpus import Kind, bad_kinds, good_kinds

LIMITS = {"min_side": 8, "max_aspect": 10.0, "min_standard_deviation": 2.0, "allow_animated": False}


def seen(path: str, sha256: str = "0", split: str = "train", label: str | None = None, batch: str = "0001") -> File:
    return File(path, split, label, sha256, "0001", batch)


def image(sha256: str = "0", pixels: str = "p", width: int = 50, height: int = 50, **known: object) -> Facts:
    channels = {"red_std": 40.0, "green_std": 40.0, "blue_std": 40.0, "luma_p05": 20, "luma_p99": 200}
    sides = {"width": width, "height": height, "trailing_bytes": 0, "frames": 1}
    return Facts(sha256, 100, "png", True, pixel_hash=pixels, **{"format": "PNG", **channels, **sides, **known})


def reasons(files: list[File], contents: list[Facts]) -> list[tuple[str, ...]]:
    return [verdict.reasons for verdict in judge(files, {one.sha256: one for one in contents}, **LIMITS)]


def judged(kind: Kind) -> Verdict:
    facts = Facts(**probe(kind.data))
    [verdict] = judge([seen(kind.name, facts.sha256)], {facts.sha256: facts}, **LIMITS)
    return verdict


@pytest.mark.parametrize("kind", good_kinds() + bad_kinds(), ids=lambda kind: kind.name)
def test_every_kind_gets_its_reasons(kind: Kind) -> None:
    verdict = judged(kind)
    assert verdict.reasons == kind.reasons
    assert bool(verdict.message) == bool(kind.reasons)
    assert set(verdict.reasons) <= REASONS.keys()
    if not kind.reasons:
        assert verdict.warnings == kind.warnings
        assert set(verdict.warnings) <= WARNINGS.keys()


@pytest.mark.parametrize(
    ("operations", "verdict"),
    [
        ([], "accept"),
        (["gray_to_rgb"], "accept"),
        (["palette_to_rgb"], "accept"),
        (["cmyk_to_rgb"], "convert"),
        (["uint16_to_uint8", "gray_to_rgb"], "convert"),
        (["exif_transpose"], "convert"),
    ],
)
def test_only_what_changes_pixels_is_a_conversion(operations: list[str], verdict: str) -> None:
    [found] = judge([seen("a.png")], {"0": image(operations=operations)}, **LIMITS)
    assert found.verdict == verdict


def test_limits_are_inclusive() -> None:
    for facts, expected in (
        (image(width=8, height=80), ()),
        (image(width=7, height=70), ("too_small",)),
        (image(width=8, height=81), ("extreme_aspect",)),
        (image(red_std=2.0, green_std=0.0, blue_std=0.0), ()),
        (image(red_std=1.9, green_std=0.0, blue_std=0.0), ("low_information",)),
    ):
        assert reasons([seen("a.png")], [facts]) == [expected]


def test_frames_follow_the_policy() -> None:
    moving, pages = image(frames=3, format="GIF"), image(frames=3, format="TIFF")
    assert reasons([seen("a.gif")], [moving]) == [("animated",)]
    assert reasons([seen("a.tif")], [pages]) == [("multi_page",)]
    [first] = judge([seen("a.gif")], {"0": moving}, **LIMITS | {"allow_animated": True})
    assert first.reasons == ()


@pytest.mark.parametrize("path", ["/etc/passwd.png", "../a.png", "a/../../b.png", "a\0.png"])
def test_paths_that_lead_out_are_unsafe(path: str) -> None:
    assert reasons([seen(path)], [image()]) == [("unsafe_path",)]


@pytest.mark.parametrize("path", ["a..b.png", "a/b c/…/d.png", ".hidden/x.png", "..."])
def test_odd_paths_are_safe(path: str) -> None:
    assert reasons([seen(path)], [image()]) == [()]


def test_a_reason_of_the_name_comes_before_one_of_the_content() -> None:
    assert reasons([seen("../a.png")], [Facts("0", 0, "empty", False, "empty_file", "no bytes")]) == [
        ("unsafe_path", "empty_file")
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # unlabelled in one place, labelled in another: kept once, with its label
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
            [seen("t.png", split="test", label="cat"), seen("a.png", label="dog", batch="0002")],
            ["label_conflict", "label_conflict"],
        ),
    ],
)
def test_copies(files: list[File], expected: list[str | None]) -> None:
    assert reasons(files, [image()]) == [(reason,) if reason else () for reason in expected]


def test_the_same_pixels_in_other_bytes() -> None:
    files = [seen("a.png", "1"), seen("b.bmp", "2"), seen("c.bmp", "2"), seen("d.png", "1"), seen("e.png", "3")]
    contents = [image("1"), image("2"), image("3", pixels="q")]
    assert reasons(files, contents) == [(), ("pixel_duplicate",), ("exact_duplicate",), ("exact_duplicate",), ()]


def test_a_refused_file_keeps_no_copy_out() -> None:
    files = [seen("../a.png"), seen("b.png"), seen("c.png", label="dog"), seen("/d.png", label="cat")]
    assert reasons(files, [image()]) == [("unsafe_path",), ("exact_duplicate",), (), ("unsafe_path",)]


@pytest.mark.parametrize("seed", range(30))
def test_what_holds_for_any_set_of_copies(seed: int) -> None:
    chance = random.Random(seed)
    contents = {str(number): image(str(number), pixels=chance.choice("pqrstu")) for number in range(12)}
    files = [
        seen(
            f"{number}.png",
            chance.choice(list(contents)),
            chance.choice(["train", "train", "test"]),
            chance.choice([None, None, "cat", "dog"] if seed % 2 else [None, "cat"]),
            chance.choice(["0001", "0002"]),
        )
        for number in range(40)
    ]
    groups = defaultdict(list)
    for verdict in judge(files, contents, **LIMITS):
        groups[verdict.facts.pixel_hash].append(verdict)
    for group in groups.values():
        found = {one.file: one.reasons for one in group}
        if ("label_conflict",) in found.values():
            assert set(found.values()) == {("label_conflict",)}
            assert {file.label for file in found} >= {"cat", "dog"}
            continue
        newest = max((file.ingest_batch for file in found if file.label), default="")
        assert len({file.label for file in found if file.label and file.ingest_batch == newest}) <= 1
        [kept] = [file for file, given in found.items() if not given]
        assert (kept.split == "test") == any(file.split == "test" for file in found)
        assert kept.label or not any(file.label for file in found if file.split == kept.split)
        del found[kept]
        for file, given in found.items():
            assert (given == ("test_leak",)) == (file.split != kept.split)
            if file.sha256 == kept.sha256 and file.split == kept.split:
                assert given == ("exact_duplicate",)
        others = {file.sha256 for file in found if file.split == kept.split} - {kept.sha256}
        assert sum(given == ("pixel_duplicate",) for given in found.values()) <= len(others)
    assert judge(files, contents, **LIMITS) == judge(files, contents, **LIMITS)


def test_the_order_of_the_files_decides_nothing() -> None:
    files = [seen(f"{number}.png", str(number % 3), batch=f"000{number % 2}") for number in range(12)]
    contents = {str(number): image(str(number)) for number in range(3)}
    forward = {verdict.file: verdict.reasons for verdict in judge(files, contents, **LIMITS)}
    assert forward == {verdict.file: verdict.reasons for verdict in judge(files[::-1], contents, **LIMITS)}
