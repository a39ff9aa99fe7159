"""After the clock was set back, Dagster has records of the future, and would wait until then."""

import time

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from pipeline.runs.clock import FUTURE_SECONDS, forget_the_future
from pipeline.runs.dagster_internals import ScheduleInstigatorData, SensorInstigatorData

REPOSITORY = RemoteRepositoryOrigin(
    InProcessCodeLocationOrigin(LoadableTargetOrigin(python_file="definitions.py")), "__repository__"
)


def state(name: str, data: SensorInstigatorData | ScheduleInstigatorData) -> InstigatorState:
    kind = InstigatorType.SENSOR if isinstance(data, SensorInstigatorData) else InstigatorType.SCHEDULE
    return InstigatorState(RemoteInstigatorOrigin(REPOSITORY, name), kind, InstigatorStatus.RUNNING, data)


@pytest.mark.seconds
def test_ticks_in_the_future_are_forgotten_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    sensor = {"last_run_key": "key", "min_interval": 60, "cursor": "cursor", "last_sensor_start_timestamp": now - 9e6}
    later, a_moment_ago = now + 86_400, now - 30
    before = {
        "new_images": SensorInstigatorData(
            last_tick_timestamp=later, last_tick_start_timestamp=later, last_tick_success_timestamp=None, **sensor
        ),
        "fine": SensorInstigatorData(
            last_tick_timestamp=now + FUTURE_SECONDS - 1, last_tick_start_timestamp=a_moment_ago
        ),
        "scheduled": ScheduleInstigatorData("0 3 * * *", now - 9e6, later),
        "fine too": ScheduleInstigatorData("0 3 * * *", now - 9e6, a_moment_ago),
    }
    with dg.instance_for_test() as instance:
        for name, data in before.items():
            instance.add_instigator_state(state(name, data))
        assert sorted(forget_the_future(instance)) == ["new_images", "scheduled"]
        after = {one.instigator_name: one.instigator_data for one in instance.all_instigator_state()}
        assert after == before | {
            "new_images": SensorInstigatorData(last_tick_timestamp=now, last_tick_start_timestamp=now, **sensor),
            "scheduled": ScheduleInstigatorData("0 3 * * *", now - 9e6, now),
        }
        assert forget_the_future(instance) == []
