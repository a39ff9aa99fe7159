"""What the latest run was expected to cost and what it did cost: ``.simclr/costs.json``, outside every DVC output.

How far a stage was off is remembered, and corrects the next expectation.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from deploy.artifact import write_atomically
from pipeline.costs.model import REST, Cost, total

FILE = Path(".simclr") / "costs.json"
LEAST_FACTOR, MOST_FACTOR = 0.2, 5.0  # a stage that was stopped or had to wait says little


@dataclass(frozen=True)
class Record:
    """One run; ``expected`` is empty where nothing was measured beforehand. ``factors`` are those of ``expected``, by
    which the model was corrected."""

    run: str
    expected: dict[str, Cost] = field(default_factory=dict)
    actual: dict[str, Cost] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    @property
    def compared(self) -> dict[str, tuple[Cost, Cost]]:
        """Of each stage that was expected and that ran, what was expected and what it was."""
        return {name: (cost, self.actual[name]) for name, cost in self.expected.items() if name in self.actual}


def begin(root: Path, run: str, expected: Mapping[str, Cost]) -> None:
    """Remember what is expected of a run that starts now; what the one before has shown is kept as factors."""
    _write(root, Record(run, dict(expected), {}, factors(root)))


def note(root: Path, run: str, stage: str, cost: Cost) -> None:
    """Remember what a stage has cost, if the run is the one that began last."""
    record = latest(root)
    if record is not None and record.run == run:
        _write(root, replace(record, actual=record.actual | {stage: cost}))


def end(root: Path, run: str, whole: Cost) -> None:
    """Remember what of the cost of a whole run belongs to none of its stages, as REST."""
    record = latest(root)
    if record is not None and record.run == run:
        stages = total(cost for name, cost in record.actual.items() if name != REST)
        seconds, disk = whole.seconds - stages.seconds, whole.disk_bytes - stages.disk_bytes
        note(root, run, REST, Cost(max(0.0, seconds), 0.0, disk))


def latest(root: Path) -> Record | None:
    """None where nothing is recorded, or it cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        stored = json.loads((root / FILE).read_text(encoding="utf-8"))
        expected, actual = (
            {str(name): _cost(one) for name, one in stored[part].items()} for part in ("expected", "actual")
        )
        return Record(str(stored["run"]), expected, actual, {k: float(v) for k, v in stored["factors"].items()})
    return None


def factors(root: Path) -> dict[str, float]:
    """By stage, the seconds that it took over those that the model gave for it, when it last ran."""
    record = latest(root)
    if record is None:
        return {}
    found = dict(record.factors)
    for name, (expected, actual) in record.compared.items():
        if expected.seconds > 0 and actual.seconds > 0:
            modeled = expected.seconds / record.factors.get(name, 1.0)
            found[name] = min(MOST_FACTOR, max(LEAST_FACTOR, actual.seconds / modeled))
    return found


def _cost(stored: Mapping[str, float]) -> Cost:
    cost = Cost(**{name: float(value) for name, value in stored.items()})
    if not all(map(math.isfinite, (cost.seconds, cost.memory_bytes, cost.disk_bytes))):
        raise ValueError("not finite")
    return cost


def _write(root: Path, record: Record) -> None:
    write_atomically(root / FILE, json.dumps(asdict(record), indent=2) + "\n")
