"""The CPU seconds of a tick of the sensor, in a process that has ticked before, as Dagster's code server has.

python -m benchmarks.pipeline.tick WORKSPACE
"""

import sys
from pathlib import Path

import dagster as dg

from benchmarks.measure import cpu_seconds
from pipeline.defs import build_definitions
from pipeline.runs.instance import opened
from pipeline.workspace import Workspace

TICKS = 3


def main() -> None:
    workspace = Workspace(Path(sys.argv[1]).resolve())
    definitions = build_definitions(workspace)
    sensor, cursor, taken = definitions.resolve_sensor_def("new_images"), None, 0.0
    with opened(workspace.root) as instance:
        for _ in range(TICKS):
            began = cpu_seconds()
            context = dg.build_sensor_context(instance, cursor=cursor, definitions=definitions)
            cursor = sensor.evaluate_tick(context).cursor
            taken = cpu_seconds() - began
    print(f"{taken:.4f}")


if __name__ == "__main__":
    main()
