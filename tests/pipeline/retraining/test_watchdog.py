"""What is wrong though nothing fails is reported once, and again after a day."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.retraining.watchdog import Look, Memory, Trigger, judge, load

NOW = datetime(2026, 11, 29, 3, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def look(sources: Mapping[str, int | str] | None = None, *triggers: Trigger, released: datetime | None = None) -> Look:
    return Look(sources or {}, triggers, released, 30 * DAY)


def sensor(*errors: str, ago: timedelta = MINUTE, every_minute: bool = True) -> Trigger:
    return Trigger("new_images", NOW - ago, every_minute, errors)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (look({"inbox": 200}, sensor("", "a", "a"), released=NOW - 30 * DAY), None),
        (look({"inbox": 100}), None),
        (look({"inbox": 99}), "the source inbox has 99 files, and had 200"),
        (look({"inbox": 0}), "the source inbox has 0 files, and had 200"),
        (look({"new": 0, "few": 0}), None),
        (look({"inbox": "inbox: does not exist"}), "the source inbox cannot be listed: inbox: does not exist"),
        (look({}, sensor("no route", "b", "c")), "new_images failed 3 times in a row: no route"),
        (look({}, sensor(ago=16 * MINUTE)), "new_images has not ticked for 16 minutes"),
        (look({}, sensor(ago=16 * MINUTE, every_minute=False)), None),
        (look({}, Trigger("new_images", None, True, ())), None),
        (look({}, released=NOW - 31 * DAY), "released 31 days ago, and retraining.max_age_days is 30"),
    ],
)
def test_each_kind_of_problem(found: Look, problem: str | None) -> None:
    problems, fresh, _ = judge(found, Memory({"inbox": 200, "few": 9}, {}), NOW)
    assert problems == fresh
    assert bool(problems) == (problem is not None)
    assert problem is None or problem in next(iter(problems.values()))


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


def test_a_source_that_was_emptied_on_purpose_is_reported_twice() -> None:
    memory = Memory({"inbox": 200}, {})
    reports = 0
    for hour in range(24 * 7):
        _, fresh, memory = judge(look({"inbox": 0}), memory, NOW + timedelta(hours=hour))
        reports += len(fresh)
    assert (reports, memory.files) == (2, {"inbox": 0})


@pytest.mark.parametrize(
    "text", [None, "", "[]", "null", "{}", '{"files": 3, "reported": {}}', '{"files": {"a": "b"}}']
)
def test_a_damaged_memory_counts_as_none(text: str | None) -> None:
    assert load(text) == Memory()
