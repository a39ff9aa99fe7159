"""The contract held against manifests whose numbers can be counted by hand, or by a slow and obvious oracle."""

import json
import random
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from typing import Any

import polars as pl
import pytest

from pipeline.config import ValidateConfig
from pipeline.reports import Outcome
from pipeline.validation.contract import advice, sentence
from pipeline.validation.counts import Counts
from pipeline.validation.drift.drift import Drift, Shape
from pipeline.validation.evaluate import evaluate, passed, tables
from pipeline.validation.expectations import expectations
from pipeline.validation.tables import MANIFEST
from simclr_core.data import label_sets
from tests.pipeline.validation.contract_oracle import oracle
from tests.pipeline.validation.corpus.manifests import row, statistic, table
from tests.repetitions import repeated, repetitions
from tests.sentences import assert_plain

Tables = dict[str, pl.LazyFrame]
Change = Callable[[pl.DataFrame], pl.DataFrame]
CONFIG = ValidateConfig(min_images=20)
NOT_JUDGED = Drift("not judged", "0001", 0, 1, "there is no earlier batch")
ALIKE = Drift(
    "none",
    "0002",
    100,
    50,
    "alike",
    (statistic("luma_mean", 0.1), statistic("saturation", 0.01)),
    (Shape("0002", "gray", False), Shape("0002", "dark", False)),
)


def files(count: int = 40, first: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """Different images; of forty, 30 for training, half of them labeled, and 10 for the test."""
    found = []
    for number in range(first, first + count):
        split, label = ("test", "cat") if number % 40 >= 30 else ("train", "cat" if number % 2 else None)
        found.append(row(f"{number:04d}.jpg", **{"split": split, "label": label} | changes))
    return found


def judged(*rows: dict[str, Any]) -> Tables:
    return tables(table(rows), ALIKE)


@pytest.fixture(scope="module")
def sound() -> Tables:
    return judged(*files(), *(one | {"ingest_batch": "0002"} for one in files(1, first=40)))


def outcomes(frames: Tables, *names: str, columns: AbstractSet[str] | None = None) -> dict[str, Outcome]:
    """Of all rules, or of those about the named tables, or of those that look into one of the columns or into none."""
    rules = [rule for rule in expectations(CONFIG) if not names or rule.table in names]
    if columns is not None:
        rules = [rule for rule in rules if not rule.columns or not columns.isdisjoint(rule.columns)]
    found = evaluate(rules, frames).outcomes
    assert [outcome.name for outcome in found] == [rule.name for rule in rules]
    json.dumps([asdict(outcome) for outcome in found], allow_nan=False)
    for outcome in found:
        assert_plain(f"{sentence(outcome)}; {advice(outcome)}")
    return {outcome.name: outcome for outcome in found}


def spoiled(frames: Tables, name: str, change: Change) -> Tables:
    return frames | {name: change(frames[name].collect()).lazy()}


def spoiled_outcomes(frames: Tables, name: str, change: Change) -> dict[str, Outcome]:
    """Of the rules about the table that look into what the change changed: no other rule can tell the difference."""
    frame = frames[name].collect()
    changed = change(frame)
    alike = frame.height == changed.height
    columns = {one for one in frame.columns if not (alike and one in changed and frame[one].equals(changed[one]))}
    return outcomes(frames | {name: changed.lazy()}, name, columns=columns)


def put(column: str, value: object, rows: int = 41) -> Change:
    """The value in the first rows of a table."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        first = pl.int_range(pl.len()) < rows
        kind = frame.schema[column]
        return frame.with_columns(pl.when(first).then(pl.lit(value, kind)).otherwise(column).alias(column))

    return change


def failed(found: dict[str, Outcome], *severities: str) -> set[str]:
    return {one.name for one in found.values() if one.severity in severities and not one.success}


@pytest.mark.seconds
def test_a_clean_set_passes(sound: Tables) -> None:
    found = outcomes(sound)
    assert {name: outcome.error for name, outcome in found.items() if not outcome.success} == {}
    assert passed(list(found.values()))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("name", "where", "change"),
    [
        ("manifest_columns", "columns", lambda frame: frame.drop("operations")),
        ("manifest_columns", "columns", lambda frame: frame.with_columns(new=1)),
        ("not_empty", "manifest", lambda frame: frame.clear()),
        ("file_id_unique", "manifest", put("file_id", "same", 2)),
        ("split_known", "manifest", put("split", "validation", 1)),
        ("verdict_known", "manifest", put("verdict", "maybe", 1)),
        ("verdict_present", "manifest", put("verdict", None, 1)),
        ("reason_known", "manifest", put("reason", "dislike", 1)),
        ("decodes", "contents", put("decodes", False, 3)),
        ("decoders_survive", "contents", put("fault", "worker_crash", 1)),
        ("decoders_survive", "contents", put("fault", "timeout", 1)),
        ("format_known", "contents", put("format", "PSD", 3)),
        ("format_present", "contents", put("format", None, 3)),
        ("mode_known", "contents", put("mode", "F", 3)),
        ("mode_present", "contents", put("mode", None, 3)),
        ("short_side", "contents", put("short_side", 7, 3)),
        ("short_side_present", "contents", put("short_side", None, 3)),
        ("aspect", "contents", put("aspect", 10.1, 3)),
        ("quarantine_rate", "contents", put("quarantined", True, 3)),
        ("quarantined_present", "contents", put("quarantined", None, 1)),
        ("accepted_decodes", "accepted", put("decodes", False, 1)),
        ("accepted_short_side", "unreleased", put("short_side", 7, 1)),
        ("accepted_aspect", "unreleased", put("aspect", 10.1, 1)),
        ("accepted_bytes_unique", "accepted", put("sha256", "same", 2)),
        ("accepted_pixels_unique", "accepted", put("pixel_hash", "same", 2)),
        ("accepted_pixel_hash_present", "accepted", put("pixel_hash", None, 1)),
        ("no_split_leak", "accepted", put("leaks", True, 1)),
        ("accepted_leaks_present", "accepted", put("leaks", None, 1)),
        ("enough_training_images", "train", lambda frame: frame[:19]),
        ("not_broken", "shapes", put("found", True, 1)),
        ("found_present", "shapes", put("found", None, 1)),
    ],
)
def test_each_critical_rule_fails_alone_and_stops_the_pipeline(
    sound: Tables, name: str, where: str, change: Change
) -> None:
    found = spoiled_outcomes(sound, where, change)
    assert failed(found, "critical") == {name}
    assert found[name].error is None
    assert not passed(list(found.values()))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("names", "where", "change"),
    [
        ("decodes_almost_always", "contents", put("decodes", False, 1)),
        ("quarantine_rate_low", "contents", put("quarantined", True, 1)),
        ("few_bombs", "contents", put("fault", "bomb", 1)),
        ("bytes_at_hand", "contents", put("fault", "io_error", 1)),
        ("has_content", "contents", put("fault", "placeholder", 1)),
        ("streams_intact", "contents", put("stream_intact", False, 1)),
        ("bit_depth_known", "contents", put("bit_depth", 12, 3)),
        ("not_animated", "contents", put("frames", 2, 1)),
        ("exif_readable", "contents", put("exif_unreadable", True, 1)),
        ("extension_matches", "manifest", put("extension_matches", False, 1)),
        ("not_dark", "contents", put("luma_p99", 10, 3)),
        ("not_light", "contents", put("luma_p05", 250, 3)),
        ("not_blurred", "contents", put("edge_energy", 1.0, 5)),
        ("brightness", "contents", put("luma_mean", 10.0)),
        ("has_colour", "contents", put("saturation", 0.0)),
        ("no_trailing_bytes", "contents", put("trailing_bytes", 9, 1)),
        ("no_icc_profile", "contents", put("has_icc_profile", True, 1)),
        ("no_gps", "contents", put("has_gps", True, 1)),
        ("near_copies_few", "train", put("near_copies", 2, 4)),
        ("near_copies_few near_group_small", "train", put("near_copies", 51)),
        ("no_near_leak", "accepted", put("nearly_leaks", True, 1)),
        ("has_test_images", "test", lambda frame: frame.clear()),
        ("test_labelled", "test", put("label", None, 1)),
        ("test_classes_known", "test", put("class_known", False, 1)),
        ("labels_agree", "manifest", put("reason", "label_conflict", 1)),
        ("near_labels_agree", "manifest", put("near_labels_agree", False, 1)),
        ("no_drift", "drift", put("effect", 0.11, 1)),
    ],
)
def test_a_warning_does_not_stop_the_pipeline(sound: Tables, names: str, where: str, change: Change) -> None:
    found = spoiled_outcomes(sound, where, change)
    assert failed(found, "critical", "warning", "info") == set(names.split())
    assert passed(list(found.values()))


@pytest.mark.seconds
def test_failures_are_counted_and_named(sound: Tables) -> None:
    found = outcomes(spoiled(sound, "contents", put("short_side", 7, 15)), "contents")["short_side"]
    assert (found.observed, found.unexpected_count, found.threshold) == (0.634146, 15, ">= 8 for 95 %")
    assert found.sample_ids == sound["contents"].collect()["file_id"].to_list()[:10]
    refused = outcomes(spoiled(sound, "contents", put("quarantined", True, 41)), "contents")
    assert refused["quarantine_rate"].observed == 1.0
    training = outcomes(spoiled(sound, "train", put("near_copies", 73, 40)), "train")
    assert (training["near_group_small"].observed, training["enough_training_images"].observed) == (73.0, 31.0)


@pytest.mark.seconds
@pytest.mark.parametrize(("column", "name"), [("short_side", "short_side"), ("saturation", "has_colour")])
def test_a_missing_column_is_an_error_and_stops_the_pipeline(sound: Tables, column: str, name: str) -> None:
    found = outcomes(spoiled(sound, "contents", lambda frame: frame.drop(column)), "contents")
    assert column in (found[name].error or "")
    assert (found[name].success, found[name].observed) == (False, None)
    assert not passed([found[name]])
    assert found["aspect"].success


@pytest.mark.seconds
def test_a_metric_that_is_not_counted_is_an_error(sound: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, asked = Counts.metric, "column.mean"  # as if a version of Great Expectations asked for something new
    monkeypatch.setattr(Counts, "metric", lambda self, name: {}[name] if name == asked else metric(self, name))
    found = outcomes(sound, "contents")
    failed = {name for name, outcome in found.items() if outcome.error}
    assert failed == {"quarantine_rate", "quarantine_rate_low", "brightness", "has_colour"}
    assert asked in str(found["has_colour"].error)
    assert not passed([found["has_colour"]])


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["accepted", "unreleased", "train", "test", "batches", "drift", "shapes"])
def test_an_empty_table_raises_no_error(sound: Tables, name: str) -> None:
    found = outcomes(spoiled(sound, name, lambda frame: frame.clear()), name)
    assert not [outcome for outcome in found.values() if outcome.error]
    assert passed(list(found.values())) == (name != "train")


@pytest.mark.seconds
def test_a_set_without_decodable_images_is_evaluated() -> None:
    unknown = dict.fromkeys(name for name in MANIFEST if name.startswith(("luma", "red", "green", "blue")))
    unknown |= dict.fromkeys(("format", "mode", "width", "short_side", "aspect", "pixel_hash", "has_gps", "frames"))
    found = outcomes(tables(table([row("a.png", "empty_file", decodes=False, **unknown)]), NOT_JUDGED))
    assert not [outcome for outcome in found.values() if outcome.error]
    assert failed(found, "critical") >= {
        "decodes",
        "format_present",
        "short_side_present",
        "quarantine_rate",
        "enough_training_images",
    }


def counted(frames: Tables, name: str, column: str) -> list[Any]:
    return frames[name].collect()[column].to_list()


@pytest.mark.seconds
def test_a_content_counts_as_quarantined_when_none_of_its_files_is_used() -> None:
    relabeled = row("a.png", "exact_duplicate", content="a"), row("a.png", content="a", ingest_batch="0002")
    copied = row("b.png", content="b"), row("c.png", "exact_duplicate", content="b")
    lost = row("d.png", "truncated", content="d"), row("e.png", "truncated", content="d")
    frames = judged(*relabeled, *copied, *lost)
    assert counted(frames, "contents", "quarantined") == [False, False, True]
    assert counted(frames, "contents", "fault") == ["none", "none", "truncated"]
    assert counted(frames, "manifest", "reason").count("exact_duplicate") == 2
    assert outcomes(frames, "contents")["quarantine_rate"].observed == 0.333333


def test_leaks_are_found_whatever_the_verdicts_were(sound: Tables) -> None:
    same = [row(f"{split}.png", split=split, content="a") for split in ("train", "test")]
    near = [row(f"near {split}.png", split=split, near_group="g") for split in ("train", "test")]
    apart = [row("1.png", near_group="h"), row("2.png", near_group="h"), row("3.png", "test_leak", content="a")]
    frames = judged(*same, *near, *apart)
    leaking = frames["accepted"].filter("leaks").collect()["path"].to_list()
    assert leaking == ["test.png", "train.png"]
    assert frames["accepted"].filter("nearly_leaks").collect()["path"].to_list() == ["near test.png", "near train.png"]
    assert not sound["accepted"].collect().select(pl.any_horizontal("leaks", "nearly_leaks").any()).item()


@pytest.mark.seconds
def test_unknown_pixels_do_not_count_as_no_leak() -> None:
    found = outcomes(judged(*files(), row("strange.png", pixel_hash=None)))
    assert failed(found, "critical") == {"accepted_pixel_hash_present", "accepted_leaks_present"}


def test_near_copies_are_counted_among_the_training_images_that_are_used() -> None:
    group = [row(f"{number}.png", near_group="g", near_group_size=5) for number in range(3)]
    refused = row("copy.png", "near_duplicate", near_group="g"), row("test.png", split="test", near_group="g")
    alone = row("remaining.png", near_group="h"), row("other.png"), row("another.png")
    frames = judged(*group, *refused, *alone)
    assert dict(zip(counted(frames, "train", "path"), counted(frames, "train", "near_copies"), strict=True)) == {
        **{f"{number}.png": 3 for number in range(3)},
        **dict.fromkeys(("remaining.png", "other.png", "another.png"), 1),
    }


@pytest.mark.seconds
def test_a_released_image_may_be_small_and_elongated() -> None:
    small: dict[str, Any] = {"short_side": 2, "aspect": 50.0}
    found = outcomes(judged(*files(120), row("released.png", warnings=["released"], **small)))
    assert not failed(found, "critical")
    found = outcomes(judged(*files(120), row("slipped through.png", **small)), "accepted", "unreleased")
    assert failed(found, "critical") == {"accepted_short_side", "accepted_aspect"}


@pytest.mark.parametrize(("sizes", "times"), [((4, 8, 6, 3), [0.5]), ((4, 8, 6, 13), [13 / 6]), ((4, 8, 6), [])])
def test_a_batch_is_compared_with_the_earlier_ones(sizes: tuple[int, ...], times: list[float]) -> None:
    rows = [
        row(f"{batch}/{number}.png", ingest_batch=f"{batch:04d}")
        for batch, size in enumerate(sizes)
        for number in range(size)
    ]
    frames = judged(*rows)
    assert counted(frames, "batches", "times_usual") == times
    assert outcomes(frames, "batches")["batch_size_usual"].success == (not times or times[0] <= 2)


@repeated
@pytest.mark.seconds
@pytest.mark.parametrize("seed", range(repetitions(1, all=3)))
def test_the_outcomes_are_those_of_a_slow_count_also_with_values_missing(seed: int) -> None:
    chance = random.Random(seed)
    spoil: dict[str, list[Any]] = {
        "split": ["train", "test", "test"],
        "verdict": ["accept", "convert", "quarantine"],
        "label": ["cat", "dog", None],
        "near_group": ["g", "h", None, None],
        "format": ["JPEG", "PNG", "PSD"],
        "mode": ["RGB", "I", "L"],
        "bit_depth": [8, 12],
        "pixel_hash": [f"{number}" for number in range(100)],
        "short_side": [4, 8, 100],
        "aspect": [1.0, 10.0, 11.0],
        "frames": [1, 1, 3],
        "trailing_bytes": [0, 0, 2**40],
        "luma_p99": [80, 82, 250],
        "luma_mean": [1.0, 100.0, 255.0],
        **{name: [True, False] for name in ("decodes", "has_gps", "has_icc_profile", "exif_unreadable")},
    }
    rows = [
        row(f"{number}.png")
        | {name: chance.choice([*values, None] if chance.random() < 0.3 else values) for name, values in spoil.items()}
        | {"reasons": chance.choice([[], ["truncated"], ["timeout", "bomb"], ["label_conflict"]])}
        | {"warnings": chance.choice([[], ["released"], ["extension_mismatch"]])}
        for number in range(300)
    ]
    rows += [chance.choice(rows) | {"file_id": f"again {number}"} for number in range(30)]
    frames = tables(table(rows), ALIKE)
    found = outcomes(frames)
    lists = {name: frame.collect().to_dicts() for name, frame in frames.items()}
    for rule in expectations(CONFIG):
        one = found[rule.name]
        expected = oracle(rule, lists[rule.table])
        assert (one.success, one.unexpected_count, one.sample_ids) == expected, rule.name
    assert not all(one.success for one in found.values())


def test_each_label_of_a_set_has_to_occur_in_training() -> None:
    train = [label_sets.join("ab"), "c", None]
    asked = ["a", label_sets.join("bc"), label_sets.NONE_OF_THEM, label_sets.join("ad"), "d", None]
    rows = [row(f"{number}.jpg", split="train", label=label) for number, label in enumerate(train)]
    rows += [row(f"t{number}.jpg", split="test", label=label) for number, label in enumerate(asked)]
    found = judged(*rows)["test"].sort("path").collect()
    assert found["class_known"].to_list() == [True, True, True, False, False, True]
