import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from pipeline.validation.config import ValidateConfig
from pipeline.validation.drift import Drift, Shape, Statistic
from pipeline.validation.evaluate import Outcome, evaluate, passed, tables
from pipeline.validation.expectations import PRESENT, expectations
from pipeline.validation.facts import Facts
from pipeline.validation.manifest import manifest
from pipeline.validation.probe import probe
from pipeline.validation.verdict import File, Verdict
from tests.pipeline.validation.corpus import encoded, picture

Frames = dict[str, pd.DataFrame]
CONFIG = ValidateConfig(min_images=20)
NOT_JUDGED = Drift("not judged", "0001", 0, 1, "there is no earlier batch")
ALIKE = Drift(
    "none",
    "0002",
    100,
    50,
    "alike",
    (Statistic("luma_mean", 0.1, 0.1, False), Statistic("saturation", 0.01, 0.1, False)),
    (Shape("0002", "gray", False), Shape("0002", "dark", False)),
)


@pytest.fixture(scope="module")
def sound() -> Frames:
    """The frames of 40 different images: 30 for training, half of them labelled, and 10 for the test."""
    found = []
    for number in range(40):
        facts = Facts(**probe(encoded(picture(number), "PNG")))
        split, label = ("test", "cat") if number >= 30 else ("train", "cat" if number % 2 else None)
        found.append(Verdict(File(f"{number}.png", split, label, facts.sha256, "0001", "0001"), facts, (), (), ""))
    return tables(manifest(found), ALIKE)


def outcomes(frames: Frames, config: ValidateConfig = CONFIG) -> dict[str, Outcome]:
    found = evaluate(expectations(config), frames)
    assert [outcome.name for outcome in found] == [rule.name for rule in expectations(config)]
    json.dumps([asdict(outcome) for outcome in found], allow_nan=False)
    return {outcome.name: outcome for outcome in found}


def spoilt(frames: Frames, table: str, change: Callable[[pd.DataFrame], Any]) -> Frames:
    copies = {name: frame.copy() for name, frame in frames.items()}
    changed = change(copies[table])
    return copies if changed is None else copies | {table: changed}


def test_a_sound_set_passes(sound: Frames) -> None:
    found = outcomes(sound)
    assert {name: outcome.error for name, outcome in found.items() if not outcome.success} == {}
    assert passed(list(found.values()))


def put(column: str, value: object, rows: int = 40) -> Callable[[pd.DataFrame], None]:
    def change(frame: pd.DataFrame) -> None:
        frame[column] = [value if row < rows else old for row, old in enumerate(frame[column])]

    return change


@pytest.mark.parametrize(
    ("name", "table", "change"),
    [
        ("file_id_unique", "manifest", put("file_id", "same", 2)),
        ("split_known", "manifest", put("split", "validation", 1)),
        ("verdict_known", "manifest", put("verdict", "maybe", 1)),
        ("verdict_present", "manifest", put("verdict", None, 1)),
        ("reason_known", "manifest", put("reason", "dislike", 1)),
        ("decodes", "manifest", put("decodes", False, 3)),
        ("decoders_survive", "manifest", put("reason", "worker_crash", 1)),
        ("format_known", "manifest", put("format", "PSD", 3)),
        ("format_present", "manifest", put("format", None, 3)),
        ("short_side", "manifest", put("short_side", 7, 3)),
        ("short_side_present", "manifest", put("short_side", None, 3)),
        ("aspect", "manifest", put("aspect", 10.1, 3)),
        ("quarantine_rate", "manifest", put("quarantined", 1.0, 3)),
        ("quarantined_present", "manifest", put("quarantined", None, 1)),
        ("accepted_columns", "accepted", lambda frame: frame.drop(columns="operations")),
        ("accepted_decodes", "accepted", put("decodes", False, 1)),
        ("accepted_short_side", "accepted", put("short_side", 7, 1)),
        ("accepted_aspect", "accepted", put("aspect", 10.1, 1)),
        ("accepted_bytes_unique", "accepted", put("sha256", "same", 2)),
        ("accepted_pixels_unique", "accepted", put("pixel_hash", "same", 2)),
        ("accepted_pixel_hash_present", "accepted", put("pixel_hash", None, 1)),
        ("no_split_leak", "accepted", put("leaks", True, 1)),
        ("enough_training_images", "train", lambda frame: frame[:19]),
        ("not_broken", "shapes", put("found", True, 1)),
        ("found_present", "shapes", put("found", None, 1)),
    ],
)
def test_each_critical_rule_fails_alone_and_stops_the_pipeline(
    sound: Frames, name: str, table: str, change: Callable[[pd.DataFrame], Any]
) -> None:
    found = outcomes(spoilt(sound, table, change))
    failed = {one.name for one in found.values() if one.severity == "critical" and not one.success}
    assert failed == {name}
    assert found[name].error is None
    assert not passed(list(found.values()))


@pytest.mark.parametrize(
    ("name", "table", "change"),
    [
        ("decodes_almost_always", "manifest", put("decodes", False, 1)),
        ("quarantine_rate_low", "manifest", put("quarantined", 1.0, 1)),
        ("few_bombs", "manifest", put("reason", "bomb", 1)),
        ("has_content", "manifest", put("reason", "low_information", 1)),
        ("extension_matches", "manifest", put("extension_matches", False, 1)),
        ("not_dark", "manifest", put("luma_p99", 10, 3)),
        ("not_light", "manifest", put("luma_p05", 250, 3)),
        ("has_colour", "manifest", put("saturation", 0.0)),
        ("no_trailing_bytes", "manifest", put("trailing_bytes", 9, 1)),
        ("no_gps", "manifest", put("has_gps", True, 1)),
        ("test_labelled", "test", put("label", None, 1)),
        ("no_drift", "drift", put("effect", 0.11, 1)),
        ("test_classes_known", "test", put("class_known", False, 1)),
    ],
)
def test_a_warning_stops_nothing(sound: Frames, name: str, table: str, change: Callable[[pd.DataFrame], Any]) -> None:
    found = outcomes(spoilt(sound, table, change))
    assert [one.name for one in found.values() if not one.success] == [name]
    assert found[name].severity != "critical"
    assert passed(list(found.values()))


def test_what_failed_is_counted_and_named(sound: Frames) -> None:
    found = outcomes(spoilt(sound, "manifest", put("short_side", 7, 15)))["short_side"]
    assert (found.observed, found.unexpected_count, found.threshold) == (0.625, 15, ">= 8 for 95 %")
    assert found.sample_ids == list(sound["manifest"]["file_id"][:10])
    assert outcomes(spoilt(sound, "manifest", put("quarantined", 1.0, 10)))["quarantine_rate"].observed == 0.25


@pytest.mark.parametrize(("column", "name"), [("short_side", "short_side"), ("saturation", "has_colour")])
def test_a_missing_column_is_an_error_and_stops_the_pipeline(sound: Frames, column: str, name: str) -> None:
    found = outcomes(spoilt(sound, "manifest", lambda frame: frame.drop(columns=column)))
    assert column in (found[name].error or "")
    assert (found[name].success, found[name].observed) == (False, None)
    assert not passed([found[name]])
    assert found["aspect"].success


def test_a_result_that_is_missing_is_an_error(sound: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(sound)
    from great_expectations import ValidationDefinition

    monkeypatch.setattr(ValidationDefinition, "run", lambda *_, **__: SimpleNamespace(results=[]))
    found = outcomes(sound)
    assert all(outcome.error and not outcome.success for outcome in found.values())
    assert not passed([found["has_colour"]])


@pytest.mark.parametrize("table", ["accepted", "train", "test"])
def test_an_empty_frame_raises_nothing(sound: Frames, table: str) -> None:
    found = outcomes(spoilt(sound, table, lambda frame: frame[:0]))
    assert not [outcome for outcome in found.values() if outcome.error]
    assert passed(list(found.values())) == (table != "train")


def test_a_set_in_which_nothing_decodes() -> None:
    facts = Facts("0" * 64, 0, "empty", False, "empty_file", "no bytes")
    file = File("a.png", "train", None, facts.sha256, "0001", "0001")
    found = outcomes(tables(manifest([Verdict(file, facts, ("empty_file",), (), "no bytes")]), NOT_JUDGED))
    assert not [outcome for outcome in found.values() if outcome.error]
    failed = {one.name for one in found.values() if one.severity == "critical" and not one.success}
    assert failed >= {"decodes", "format_present", "short_side_present", "quarantine_rate", "enough_training_images"}


def test_leaks_are_found_whatever_the_verdicts_were(sound: Frames) -> None:
    facts = Facts(**probe(encoded(picture(), "PNG")))
    files = [File(f"{split}.png", split, "cat", facts.sha256, "0001", "0001") for split in ("train", "test")]
    frames = tables(manifest([Verdict(file, facts, (), (), "") for file in files]), NOT_JUDGED)
    assert list(frames["accepted"]["leaks"]) == [True, True]
    assert not sound["accepted"]["leaks"].any()


@pytest.mark.parametrize("rate", [0.0, 0.05, 1.0])
def test_each_critical_rule_on_a_column_has_its_twin(rate: float) -> None:
    rules = expectations(ValidateConfig(max_quarantine_rate=rate))
    assert len({rule.name for rule in rules}) == len(rules) < 50  # checks of one asset that Dagster's UI is made for
    for rule in rules:
        if rule.severity == "critical" and "column" in rule.arguments:
            twins = [
                twin
                for twin in rules
                if twin.type == PRESENT
                and (twin.table, twin.severity) == (rule.table, "critical")
                and twin.arguments["column"] == rule.arguments["column"]
                and twin.arguments.get("mostly", 1) >= min(rule.arguments.get("mostly", 1), 1 - rate)
            ]
            assert len(twins) == 1, rule.name


def test_nothing_is_asked_of_the_network(sound: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert passed(evaluate(expectations(CONFIG), sound))


def test_listing_the_rules_imports_nothing_heavy() -> None:
    script = (
        "import sys; from pipeline.validation.config import ValidateConfig; "
        "from pipeline.validation.expectations import expectations; expectations(ValidateConfig()); "
        "import pipeline.validation; "
        "print({'great_expectations', 'pandas', 'pyarrow', 'torch', 'dagster', 'PIL'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
