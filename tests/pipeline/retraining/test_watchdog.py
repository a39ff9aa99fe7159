"""What is wrong though nothing fails is reported once, and again after a day."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.retraining.watchdog import SILENT, Confirmed, Look, Memory, Trigger, judge, load

NOW = datetime(2026, 11, 29, 3, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def look(sources: Mapping[str, int | str] | None = None, *triggers: Trigger, released: datetime | None = None) -> Look:
    return Look(sources or {}, triggers, released, 30 * DAY)


def sensor(*errors: str, ago: timedelta | None = MINUTE) -> Trigger:
    return Trigger("new_images", None if ago is None else NOW - ago, NOW - SILENT, errors)


def schedule(due: timedelta, last: timedelta | None, since: timedelta | None = None) -> Trigger:
    """Of half past two; ``due``, ``last`` and ``since`` are how long ago."""
    ticked, on = (None if ago is None else NOW - ago for ago in (last, since))
    return Trigger("scheduled", ticked, NOW - due, (), "30 2 * * *", on)


HOUR = 60 * MINUTE
LONG_ON = {"new_images ": (NOW - 9 * DAY).timestamp(), "scheduled 30 2 * * *": (NOW - 9 * DAY).timestamp()}
LOOKED = {"looked": (NOW - 5 * MINUTE).timestamp(), "resumed": (NOW - 9 * DAY).timestamp()}
WATCHED = Memory({"inbox": 200, "few": 9}, on=LONG_ON, **LOOKED)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (look({"inbox": 200}, sensor("", "a", "a"), released=NOW - 30 * DAY), None),
        (look({"inbox": 100}), None),
        (look({"inbox": 99}), "the source inbox has 99 files, and had 200"),
        (look({"inbox": 0}), "the source inbox has 0 files, and had 200"),
        (look({"new": 0, "few": 1}), None),
        (look({"few": 0}), "the source few has 0 files, and had 9"),
        (look({"inbox": "inbox: does not exist"}), "the source inbox cannot be listed: inbox: does not exist"),
        (look({}, sensor("no route", "b", "c")), "new_images failed 3 times in a row: no route"),
        (look({}, sensor(ago=14 * MINUTE)), None),
        (look({}, sensor(ago=16 * MINUTE)), "new_images has not ticked for 16 minutes"),
        (look({}, sensor(ago=None)), "new_images has never ticked since it was switched on"),
        (look({}, schedule(due=30 * MINUTE, last=30 * MINUTE)), None),
        (
            look({}, schedule(due=30 * MINUTE, last=DAY + 30 * MINUTE)),
            "scheduled did not tick at 2026-11-29 02:30 UTC, as `30 2 * * *` says; restart `simclr ui`",
        ),
        (look({}, schedule(due=30 * MINUTE, last=None)), "scheduled did not tick at 2026-11-29 02:30 UTC"),
        (look({}, schedule(due=30 * MINUTE, last=None, since=20 * MINUTE)), None),  # switched on after it was due
        (look({}, released=NOW - 31 * DAY), "released 31 days ago, and retraining.max_age_days is 30"),
    ],
)
def test_each_kind_of_problem(found: Look, problem: str | None) -> None:
    problems, fresh, _ = judge(found, WATCHED, NOW)
    assert problems == fresh
    assert bool(problems) == (problem is not None)
    assert problem is None or problem in next(iter(problems.values()))


@pytest.mark.parametrize(
    "memory",
    [
        Memory(on=LONG_ON),  # the first look ever
        replace(WATCHED, looked=(NOW - HOUR).timestamp()),  # the machine was off
        replace(WATCHED, resumed=(NOW - 10 * MINUTE).timestamp()),  # and has just come back
        replace(WATCHED, on={}),  # they have just been switched on
    ],
)
def test_no_tick_is_missed_while_the_machine_was_off_or_before_a_trigger_was_on(memory: Memory) -> None:
    late = look({}, sensor(ago=HOUR), schedule(due=30 * MINUTE, last=None))
    assert list(judge(late, WATCHED, NOW)[0]) == ["new_images", "scheduled"]
    problems, _, memory = judge(late, memory, NOW)
    assert problems == {}
    for minutes in (5, 10, 15, 20):
        now = NOW + minutes * MINUTE
        still = look({}, replace(sensor(ago=HOUR), due=now - SILENT))
        problems, _, memory = judge(still, load(memory.dump()), now)
    assert list(problems) == ["new_images"]  # it has not come back with the machine


def test_another_rhythm_has_not_missed_the_ticks_of_the_one_before() -> None:
    before = replace(WATCHED, on={"scheduled 0 1 * * *": 0.0})
    assert judge(look({}, schedule(due=30 * MINUTE, last=None)), before, NOW)[0] == {}


def test_a_problem_is_reported_once_a_day_and_again_when_it_comes_back() -> None:
    gone = look({"inbox": "not there"})
    problems, fresh, memory = judge(gone, Memory(), NOW)
    assert problems == fresh
    problems, fresh, memory = judge(gone, load(memory.dump()), NOW + MINUTE)
    assert (len(problems), fresh) == (1, {})
    assert judge(gone, memory, NOW + DAY)[1] == problems
    _, _, memory = judge(look({"inbox": 5}), memory, NOW + 2 * MINUTE)
    assert judge(gone, memory, NOW + 3 * MINUTE)[1] == problems


def test_a_report_from_before_the_clock_was_set_back_counts_as_none() -> None:
    gone = look({"inbox": "not there"})
    _, _, memory = judge(gone, Memory(), NOW + 40 * DAY)
    problems, fresh, memory = judge(gone, memory, NOW)
    assert problems == fresh
    assert judge(gone, memory, NOW + MINUTE)[1] == {}


def test_a_source_that_is_gone_never_becomes_well_by_waiting() -> None:
    """It is reported every day; until a person confirms it or the files are back, no look finds that all is well."""
    memory = Memory({"inbox": 1000})
    reports = 0
    for hour in range(24 * 30):
        problems, fresh, memory = judge(look({"inbox": 0}), load(memory.dump()), NOW + timedelta(hours=hour))
        assert list(problems) == ["inbox"]
        reports += len(fresh)
    assert (reports, memory.files) == (30, {"inbox": 1000})
    assert judge(look({"inbox": 900}), memory, NOW + 30 * DAY)[0] == {}


def test_a_source_that_loses_a_few_files_at_each_look_is_a_problem_at_half() -> None:
    memory, alarmed = Memory(), []
    for left in range(1000, 0, -50):
        problems, _, memory = judge(look({"inbox": left}), memory, NOW)
        alarmed += [left] if problems else []
    assert alarmed[0] == 450
    assert alarmed == list(range(450, 0, -50))


def test_what_a_person_confirms_is_what_the_source_is_compared_with_from_then_on() -> None:
    def asked(files: int, said: Confirmed | None, memory: Memory) -> tuple[bool, Memory]:
        found = replace(look({"inbox": files}), confirmed={"inbox": said} if said else {})
        problems, _, after = judge(found, load(memory.dump()), NOW)
        return not problems, after

    well, memory = asked(30, None, Memory({"inbox": 1000}))
    assert not well
    said = Confirmed(30, NOW.timestamp())
    for files, right in ((30, True), (400, True), (30, False), (0, False)):
        well, memory = asked(files, said, memory)
        assert well == right, files  # the same confirmation counts once
    well, memory = asked(0, Confirmed(0, NOW.timestamp() - 3600), memory)  # a later one, by a clock that was set back
    assert well


def test_a_source_that_is_seen_for_the_first_time_is_compared_with_what_was_ingested_from_it() -> None:
    found = look({"inbox": 0, "never filled": 0})
    assert judge(found, Memory(), NOW)[0] == {}
    problems, _, memory = judge(replace(found, ingested={"inbox": 50, "never filled": 0}), Memory(), NOW)
    assert list(problems) == list(judge(found, memory, NOW)[0]) == ["inbox"]


def test_a_source_that_is_emptied_on_purpose_has_not_lost_its_files() -> None:
    found = replace(look({"inbox": 0, "mounted": 0}), emptied=("inbox",))
    assert list(judge(found, Memory({"inbox": 200, "mounted": 200}), NOW)[0]) == ["mounted"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "null",
        "{}",
        '{"files": 3, "reported": {}}',
        '{"files": {"a": "b"}}',
        '{"files": {}, "reported": {}, "on": 3}',
        '{"files": {}, "reported": {}, "looked": null}',
    ],
)
def test_a_damaged_memory_counts_as_none(text: str | None) -> None:
    assert load(text) == Memory()


def test_the_memory_of_an_earlier_version_counts() -> None:
    assert load('{"files": {"inbox": 200}, "reported": {"inbox": 1.5}}') == Memory({"inbox": 200}, {"inbox": 1.5})
