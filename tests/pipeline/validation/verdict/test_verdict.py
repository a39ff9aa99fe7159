import random
from pathlib import PurePosixPath
from typing import Any

import pytest

from pipeline.validation.probe.container import EXTENSIONS
from pipeline.validation.probe.facts import Facts
from pipeline.validation.probe.probe import probe
from pipeline.validation.reasons import REASONS, RELEASABLE, WARNINGS
from pipeline.validation.tables import JUDGED
from pipeline.validation.verdict.verdict import Policy, judge
from tests.pipeline.validation.corpus.contents import POLICY, crowd, image, reasons, seen, tables, verdicts
from tests.pipeline.validation.corpus.corpus import Kind, bad_kinds, good_kinds


def only(path: str, facts: Facts, **given: Any) -> dict[str, Any]:
    [found] = verdicts([seen(path, facts.sha256)], [facts], **given)
    return found


@pytest.mark.seconds
@pytest.mark.parametrize("kind", good_kinds() + bad_kinds(), ids=lambda kind: kind.name)
def test_every_kind_gets_its_reasons(kind: Kind) -> None:
    verdict = only(kind.name, Facts(**probe(kind.data)))
    assert tuple(verdict["reasons"]) == kind.reasons
    assert bool(verdict["message"]) == bool(kind.reasons)
    assert set(verdict["reasons"]) <= REASONS.keys()
    if not kind.reasons:
        assert tuple(verdict["warnings"]) == kind.warnings
        assert set(verdict["warnings"]) <= WARNINGS.keys()


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("operations", "verdict"),
    [
        ([], "accept"),
        (["gray_to_rgb"], "accept"),
        (["palette_to_rgb"], "accept"),
        (["cmyk_to_rgb"], "convert"),
        (["uint16_to_uint8", "gray_to_rgb"], "convert"),
        (["exif_transpose"], "convert"),
        (["bands_dropped"], "convert"),
        (["icc_ignored", "gray_to_rgb"], "accept"),
    ],
)
def test_only_what_changes_pixels_is_a_conversion(operations: list[str], verdict: str) -> None:
    assert only("a.png", image(operations=operations))["verdict"] == verdict
    assert only("../a.png", image(operations=operations))["verdict"] == "quarantine"


@pytest.mark.seconds
def test_limits_are_inclusive() -> None:
    for facts, expected in (
        (image(width=8, height=80), ()),
        (image(width=7, height=70), ("too_small",)),
        (image(width=8, height=81), ("extreme_aspect",)),
        (image(width=300, height=4), ("too_small", "extreme_aspect")),
        (image(red_std=2.0, green_std=0.0, blue_std=0.0), ()),
        (image(red_std=1.9, green_std=0.0, blue_std=0.0), ("low_information",)),
        (image(flat_tail=0.0999), ()),
        (image(flat_tail=0.1), ("suspect_stream",)),
    ):
        assert reasons([seen("a.png")], [facts]) == [expected]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (image(width=300, height=4), "300 x 4 pixels; validate.min_side is 8"),
        (image(width=300, height=12), "300 x 12 pixels; validate.max_aspect is 10"),
        (
            image(red_std=1.234, green_std=0.0, blue_std=0.0),
            "standard deviation 1.23 in its most varied channel; validate.min_standard_deviation is 2",
        ),
        (image(frames=3), "3 frames; set validate.animated to first_frame to use the first of them"),
        (Facts("0", 0, "empty", False, "empty_file", "no bytes"), "no bytes"),
    ],
)
def test_the_message_has_the_found_and_the_allowed_value(facts: Facts, message: str) -> None:
    assert only("a.png", facts)["message"] == message


def test_frames_follow_the_policy() -> None:
    moving, pages = image(frames=3, format="GIF"), image(frames=3, format="TIFF")
    assert reasons([seen("a.gif")], [moving]) == [("animated",)]
    assert reasons([seen("a.tif")], [pages]) == [("multi_page",)]
    assert reasons([seen("a.gif")], [moving], allow_animated=True) == [()]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (image(stream_fault="Corrupt JPEG data"), "Corrupt JPEG data"),
        (image(flat_tail=0.338), "the lower 34 % is one gray"),
        (image(stream_fault="Corrupt JPEG data", flat_tail=0.5), "Corrupt JPEG data"),
    ],
)
def test_a_suspect_stream_follows_the_policy(facts: Facts, words: str) -> None:
    refused = only("a.png", facts)
    assert refused["reasons"] == ["suspect_stream"]
    assert words in refused["message"]
    assert "suspect_streams" in refused["message"]
    assert refused["warnings"] == []
    kept = only("a.png", facts, keep_suspect_streams=True)
    assert (kept["verdict"], kept["reasons"], kept["message"]) == ("accept", [], "")
    assert kept["warnings"] == ["suspect_stream"]


@pytest.mark.parametrize("path", ["/etc/passwd.png", "../a.png", "a/../../b.png", "a\0.png", "a/..", ".."])
def test_paths_that_lead_out_are_unsafe(path: str) -> None:
    assert reasons([seen(path)], [image()]) == [("unsafe_path",)]


@pytest.mark.parametrize("path", ["a..b.png", "a/b c/…/d.png", ".hidden/x.png", "...", "..\n", "a/..b", "a\n../b"])
def test_odd_paths_are_safe(path: str) -> None:
    assert reasons([seen(path)], [image()]) == [()]


def test_paths_are_read_as_python_reads_them() -> None:
    chance = random.Random(0)
    paths = sorted({"".join(chance.choices("./aJ\n", k=chance.randint(1, 7))) + chance.choice(["", ".PNG", ".jpg", "."])
                    for _ in range(3000)})  # fmt: skip
    files = [seen(path, str(number)) for number, path in enumerate(paths)]
    contents = [image(str(number), str(number)) for number in range(len(paths))]
    for found in verdicts(files, contents):
        path = PurePosixPath(found["path"])
        assert (found["reasons"] == ["unsafe_path"]) == (path.is_absolute() or ".." in path.parts), path
        if "/." not in found["path"] and not found["path"].endswith("/"):  # Python drops these before it looks
            extension = path.suffix[1:].lower()
            assert ("extension_mismatch" in found["warnings"]) == (extension not in ("", *EXTENSIONS["png"])), path


def test_a_reason_of_the_name_comes_before_one_of_the_content() -> None:
    contents = [Facts("0", 0, "empty", False, "empty_file", "no bytes")]
    [found] = verdicts([seen("../a.png")], contents)
    assert found["reasons"] == ["unsafe_path", "empty_file"]
    assert "'..'" in found["message"]


@pytest.mark.parametrize(
    ("facts", "warning"),
    [
        (image(trailing_bytes=3), "trailing_bytes"),
        (image(trailing_bytes=None), "unterminated"),
        (image(exif_unreadable=True), "exif_unreadable"),
        (image(has_gps=True), "gps_present"),
        (image(width=41, height=10), "elongated"),
        (image(luma_p99=81), "dark"),
        (image(operations=["uint16_to_uint8", "uses_14_of_16_bits", "gray_to_rgb"]), "narrow_range"),
        (image(operations=["bands_dropped"]), "bands_dropped"),
        (image(operations=["icc_ignored", "gray_to_rgb"]), "icc_ignored"),
        (image(luma_p05=243), "light"),
    ],
)
def test_warnings(facts: Facts, warning: str) -> None:
    assert only("a.png", facts)["warnings"] == [warning]
    assert only("a.jpg", facts)["warnings"] == sorted(["extension_mismatch", warning], key=list(WARNINGS).index)


def test_values_within_the_limits_give_no_warning() -> None:
    for facts in (image(width=40, height=10), image(luma_p99=82), image(luma_p05=242)):
        assert only("a.png", facts)["warnings"] == []


def test_an_undecodable_file_gives_no_warning() -> None:
    assert only("a.jpg", Facts("0", 9, "png", False, "corrupt", "x", has_gps=True))["warnings"] == []


def test_denied_is_the_first_reason_and_covers_equal_pixels() -> None:
    files = [seen("a.png", "1"), seen("b.bmp", "2"), seen("../c.png", "1"), seen("d.png", "3"), seen("e.png", "4")]
    contents = [image("1"), image("2"), image("3", "q", width=4), image("4", "r")]
    found = verdicts(files, contents, denied={"1": "by ada: hers", "3": "by ada: not hers"}, allowed=["1", "2", "3"])
    assert [one["reasons"][:2] for one in found] == [["denied"], ["denied"], ["denied", "unsafe_path"], ["denied"], []]
    messages = ["by ada: hers", "by ada: hers", "by ada: hers", "by ada: not hers", ""]
    assert [one["message"] for one in found] == messages


def test_denying_an_undecodable_file_denies_nothing_else() -> None:
    damaged = [Facts(name, 9, "png", False, "corrupt", "x") for name in ("1", "2")]
    found = verdicts([seen("a.png", "1"), seen("b.png", "2")], damaged, denied={"1": "hers"})
    assert [one["reasons"] for one in found] == [["denied", "corrupt"], ["corrupt"]]


OWN_FAULTS = {
    "suspect_stream": {"flat_tail": 0.5},
    "animated": {"frames": 2},
    "multi_page": {"frames": 2, "format": "TIFF"},
    "too_small": {"width": 7, "height": 7},
    "extreme_aspect": {"width": 8, "height": 100},
    "narrow_range": {"operations": ["uint16_to_uint8", "uses_12_of_16_bits"]},
    "low_information": {"red_std": 0.0, "green_std": 0.0, "blue_std": 0.0},
}


@pytest.mark.parametrize("reason", OWN_FAULTS)
def test_a_released_image_is_used(reason: str) -> None:
    facts = image(**OWN_FAULTS[reason])
    assert reason in RELEASABLE
    assert only("a.png", facts)["reasons"] == [reason]
    released = only("a.png", facts, allowed=["0"])
    assert (released["reasons"], released["message"]) == ([], "")
    assert released["warnings"][0] == "released"
    assert only("a.png", facts, allowed=["1"])["reasons"] == [reason]


def test_a_release_is_reported_once_whatever_it_overrules() -> None:
    thread = image(width=300, height=4)
    assert only("a.png", thread)["reasons"] == ["too_small", "extreme_aspect"]
    released = only("a.png", thread, allowed=["0"])
    assert (released["verdict"], released["warnings"]) == ("accept", ["released", "elongated"])


def test_only_reasons_that_applied_are_reported_as_released() -> None:
    assert only("a.png", image(), allowed=["0"])["warnings"] == []


@pytest.mark.parametrize(
    ("path", "facts", "reason"),
    [
        ("../a.png", image(width=4), "unsafe_path"),
        ("a.png", Facts("0", 0, "empty", False, "empty_file", "no bytes"), "empty_file"),
        ("a.png", Facts("0", 0, "jpeg", False, "worker_crash", "killed"), "worker_crash"),
    ],
)
def test_reasons_that_cannot_be_released(path: str, facts: Facts, reason: str) -> None:
    assert only(path, facts, allowed=["0"])["reasons"] == [reason]


def test_a_release_covers_every_file_of_the_content_but_no_copy() -> None:
    files = [seen("a.png"), seen("b.png"), seen("c.png", "1")]
    found = verdicts(files, [image(width=7), image("1", width=7)], allowed=["0"])
    assert [one["reasons"] for one in found] == [[], ["exact_duplicate"], ["too_small"]]
    assert ["released" in one["warnings"] for one in found] == [True, True, False]


@pytest.mark.parametrize("seed", range(5))
def test_one_verdict_for_each_file_in_their_order(seed: int) -> None:
    files, contents = crowd(seed, files=200)
    found = judge(*tables(files, contents), Policy(**POLICY), allowed=[], denied={})
    assert found.schema == JUDGED
    assert found["path"].to_list() == [file["path"] for file in files]
    by_verdict = found.select((found["verdict"] == "quarantine") == (found["reasons"].list.len() > 0))
    assert by_verdict.to_series().all()
    assert found.filter((found["message"] == "") != (found["reasons"].list.len() == 0)).is_empty()


def test_no_files() -> None:
    assert judge(*tables([], []), Policy(**POLICY), allowed=[], denied={}).schema == JUDGED


def test_a_file_without_facts_is_not_skipped() -> None:
    with pytest.raises(AssertionError):
        verdicts([seen("a.png", "0"), seen("b.png", "1")], [image("0")])
    with pytest.raises(AssertionError):
        verdicts([seen("a.png", "0")], [image("0"), image("0")])
