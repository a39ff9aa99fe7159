"""What a search found, for a program and for a person. Imports neither torch nor Optuna."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simclr_core.tune.search import Outcome, Tried

PRESENT = "present"


@dataclass(frozen=True)
class Asked:
    """``seconds`` for the whole search, ``trials`` settings in the first rung with the present ones, ``seeds`` of the
    comparison, ``seed`` of what is drawn; ``write`` the winner into params.yaml if it is better."""

    seconds: float
    trials: int = 9
    seeds: int = 3
    seed: int = 0
    write: bool = False


@dataclass(frozen=True)
class Report:
    """``changes`` are the winner's values that differ from params.yaml, as YAML; ``written`` whether they were put
    there."""

    asked: Asked
    judge: str
    images: int
    trust: str
    space: Mapping[str, Any]
    outcome: "Outcome"
    changes: Mapping[str, str]
    written: bool

    @property
    def advice(self) -> str:
        """One sentence: what to do."""
        outcome, compared = self.outcome, self.outcome.comparison
        if outcome.winner is None:
            return "keep what you have: every training failed"
        if outcome.winner == 0:
            return "keep what you have: the present settings came first"
        if compared is None:
            return "keep what you have: a training of the comparison failed"
        shown = (
            f"{compared.difference:+.2f} points ({compared.low:+.2f} to {compared.high:+.2f} with 95 % confidence on "
            f"either side, over {compared.seeds} seeds that the search has not seen)"
        )
        if not compared.better:
            return f"keep what you have: settings {outcome.winner} are not shown to be better, {shown}"
        done = "written into params.yaml" if self.written else "`simclr tune` with --write puts them into params.yaml"
        return f"settings {outcome.winner} are better than the present ones by {shown}; {done}"

    def to_json(self) -> str:
        """Everything that was tried, as in reports/tune.json."""
        found = {
            "judge": {"by": self.judge, "images": self.images, "trust": self.trust},
            "asked": asdict(self.asked),
            "space": {key: asdict(one) for key, one in self.space.items()},
            "settings": {str(number): dict(values) for number, values in self.outcome.values.items()},
            "tried": [asdict(one) for one in self.outcome.tried],
            "winner": self.outcome.winner,
            "comparison": asdict(self.outcome.comparison) if self.outcome.comparison else None,
            "better": self.outcome.better,
            "changes": dict(self.changes),
            "written": self.written,
            "advice": self.advice,
        }
        return json.dumps(found, indent=2)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"judged by {self.judge}, on {self.images:,} training images: {self.trust}"
        yield ""
        yield "settings"
        for number, values in self.outcome.values.items():
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
            yield f"{name_of(number):>8}  {shown}"
        yield ""
        yield "settings  rung  seed  epochs  score              CPU seconds"
        yield from map(describe_tried, self.outcome.tried)
        yield ""
        if self.changes:
            yield f"settings {self.outcome.winner}: " + ", ".join(
                f"{key} {value}" for key, value in self.changes.items()
            )
        yield self.advice


def describe_tried(one: "Tried") -> str:
    """A row of the table."""
    score = f"{one.score:6.2f} ± {one.interval:.2f}" if one.score is not None else f"failed: {one.failure}"
    where = f"{name_of(one.settings):>8}  {one.rung:>4}  {one.seed:>4}  {one.epochs:>6}"
    return f"{where}  {score:<18} {one.cpu_seconds:>10.1f}"


def name_of(number: int) -> str:
    return PRESENT if number == 0 else str(number)
