"""What Dagster wrote down before the clock was set back: times of the future, until which it would do nothing."""

import time
from typing import Any

import dagster as dg

from pipeline.runs.dagster_internals import ScheduleInstigatorData, SensorInstigatorData

TIMES: dict[type, tuple[str, ...]] = {
    SensorInstigatorData: ("last_tick_timestamp", "last_tick_start_timestamp", "last_tick_success_timestamp"),
    ScheduleInstigatorData: ("start_timestamp", "last_iteration_timestamp"),
}
FUTURE_SECONDS = 60.0  # clocks of two machines may differ by less


def forget_the_future(instance: dg.DagsterInstance) -> list[str]:
    """Let sensors and schedules with a last tick in the future tick from now on; returns their names.

    Dagster waits until a sensor's interval has passed since its last tick, and looks for the ticks of a schedule after
    its last one.
    """
    now = time.time()
    corrected = []
    for state in instance.all_instigator_state():
        data = state.instigator_data
        times = TIMES.get(type(data), ())
        future = {name: now for name in times if (getattr(data, name) or 0.0) > now + FUTURE_SECONDS}
        if future:
            replaced: Any = data
            instance.update_instigator_state(state.with_data(replaced._replace(**future)))
            corrected.append(state.instigator_name)
    return corrected
