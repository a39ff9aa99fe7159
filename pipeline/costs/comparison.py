"""How far what was expected of a run is from what it cost, stage by stage."""

from collections.abc import Iterator, Mapping

from deploy.plural import duration
from pipeline.costs.model import Cost, total
from pipeline.costs.record import Record
from pipeline.maintenance.disk import size

TOTAL = "total"


def comparison(record: Record | None) -> dict[str, tuple[Cost, Cost]]:
    """Expected and actual of each stage of a run, and of all together; empty where nothing can be compared."""
    compared = dict(record.compared) if record else {}
    if compared:
        compared[TOTAL] = (total(one for one, _ in compared.values()), total(one for _, one in compared.values()))
    return compared


def comparison_rows(compared: Mapping[str, tuple[Cost, Cost]]) -> Iterator[list[str]]:
    """Texts for a table, its head first."""
    yield ["stage", "time", "was", "ratio", "memory", "was", "disk", "was", "ratio"]
    for name, (expected, actual) in compared.items():
        yield [
            name,
            duration(expected.seconds),
            duration(actual.seconds),
            _ratio(actual.seconds, expected.seconds),
            size(expected.memory_bytes),
            size(actual.memory_bytes) if actual.memory_bytes else "–",
            size(expected.disk_bytes),
            size(actual.disk_bytes),
            _ratio(actual.disk_bytes, expected.disk_bytes),
        ]


def over(actual: float, expected: float) -> float | None:
    """None also where a run has freed what it was to take: then there is no ratio."""
    return round(actual / expected, 3) if expected > 0 <= actual else None


def _ratio(actual: float, expected: float) -> str:
    times = over(actual, expected)
    return "–" if times is None else f"{times:.2f}"
