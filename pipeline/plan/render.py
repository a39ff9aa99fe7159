"""A plan for a terminal and for programs, next to how far the expectation of the latest run was off."""

from dataclasses import asdict
from typing import Any

from deploy.plural import align, duration
from pipeline.costs.comparison import TOTAL, comparison, comparison_rows, over
from pipeline.costs.model import Cost
from pipeline.costs.record import Record
from pipeline.maintenance.disk import size
from pipeline.plan.plan import Plan


def table(plan: Plan, record: Record | None) -> str:
    """What the next run is expected to cost; below it, what the latest one was expected to cost and did."""
    rows = [["stage", "time", "memory", "disk"]]
    rows += [[name, *(_row(cost) if cost else ("unchanged, 0 s", "", ""))] for name, cost in plan.stages.items()]
    rows.append([TOTAL, *_row(plan.total)])
    lines = [*align(rows, numbers=True), *(f"note: {note}" for note in (*plan.notes, *plan.shortages))]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    compared = comparison(record)
    if compared:
        lines += ["", "the latest run, as expected and as it was:", *align([*comparison_rows(compared)], numbers=True)]
    return "\n".join(lines)


def document(plan: Plan, record: Record | None) -> dict[str, Any]:
    """The same as JSON: numbers in seconds and bytes, null for a stage that is unchanged."""
    return {
        "stages": {name: cost and asdict(cost) for name, cost in plan.stages.items()},
        TOTAL: asdict(plan.total),
        "notes": [*plan.notes, *plan.shortages],
        "warnings": [*plan.warnings],
        "latest_run": {
            name: {
                "expected": asdict(expected),
                "actual": asdict(actual),
                "actual_over_expected": {
                    "seconds": over(actual.seconds, expected.seconds),
                    "memory_bytes": over(actual.memory_bytes, expected.memory_bytes),
                    "disk_bytes": over(actual.disk_bytes, expected.disk_bytes),
                },
            }
            for name, (expected, actual) in comparison(record).items()
        },
    }


def _row(cost: Cost) -> tuple[str, str, str]:
    return duration(cost.seconds), size(cost.memory_bytes), size(cost.disk_bytes)
