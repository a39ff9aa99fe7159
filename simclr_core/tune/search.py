"""The search itself: Optuna draws settings, every training is recorded in its SQLite file, and what is recorded is not
trained again. So a search that was killed continues, to the same table.

The first rung is drawn by Optuna's tree of Parzen estimators: the first half at random, the others from what the
earlier ones gave. Its generator begins again for each setting, from the seed of the search and the setting's number, so
that a kill does not change what comes next.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any, Protocol

from deploy.failpoint import failpoint
from simclr_core.config import PretrainConfig
from simclr_core.tune.comparison import Comparison, compare
from simclr_core.tune.halving import Plan, Rung, promote
from simclr_core.tune.judge import Score
from simclr_core.tune.space import OneOf, Space, Values, present_values, rounded, with_values
from simclr_core.tune.trial import OWN_RESULTS, shortened

STUDY = "pretraining"
PRESENT = 0  # the number of the settings that params.yaml has


class Training(Protocol):
    """What the search needs: ``trial.Trainings``, or a stand-in."""

    def epoch_seconds(self, config: PretrainConfig) -> float: ...
    def train(self, name: str, config: PretrainConfig) -> Score: ...
    def forget(self, name: str) -> None: ...


@dataclass(frozen=True)
class Tried:
    """One training. ``rung`` counts from 0, and the comparison at the end comes after the last one. ``score`` and
    ``interval`` are None where it failed, and ``failure`` says how. ``cpu_seconds`` are of training and judging."""

    settings: int
    rung: int
    seed: int
    epochs: int
    score: float | None
    interval: float | None
    cpu_seconds: float
    failure: str = ""


@dataclass(frozen=True)
class Outcome:
    """Everything that was tried: ``values`` by the number of the settings, 0 the present ones, and the trainings.
    ``winner`` is what the last rung promoted; ``comparison`` is None where that are the present settings, or none was
    left, or a training of the comparison failed. ``epochs`` are those in which the winner takes as long as the present
    settings do."""

    values: Mapping[int, Values]
    tried: Sequence[Tried]
    winner: int | None
    comparison: Comparison | None
    epochs: int | None

    @property
    def better(self) -> bool:
        return self.comparison is not None and self.comparison.better


@dataclass
class Search:
    """A search that records below ``folder``; ``seed`` is that of what is drawn, ``on_result`` gets each training."""

    folder: Path
    config: PretrainConfig
    space: Space
    training: Training
    seed: int = 0
    on_result: Callable[[Tried], None] = lambda _: None
    _study: Any = field(init=False)

    def __post_init__(self) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{self.folder / 'search.sqlite'}"
        self._study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True)

    def run(self, plan: Plan, seeds: int) -> Outcome:
        """Search and compare, or continue.

        Raises:
            SimclrError: what is wrong with the workspace.
            SystemExit: 128 + the signal that asked a training to stop.
        """
        alive: Sequence[int] = range(plan.rungs[0].settings)
        tried: list[Tried] = []
        for number, rung in enumerate(plan.rungs):
            first = number == 0
            results = [
                self._first(one, rung, plan) if first else self._train(one, number, rung.seconds, self.config.seed)
                for one in alive
            ]
            tried += results
            following = plan.rungs[number + 1].settings if number + 1 < len(plan.rungs) else 1
            alive = promote({one.settings: one.score for one in results}, following)
            if not alive:
                return Outcome(self._all_values(), tried, None, None, None)
        winner = alive[0]
        if winner == PRESENT:
            return Outcome(self._all_values(), tried, winner, None, self.config.epochs)
        pairs = [*self._final(winner, len(plan.rungs), plan.final_seconds, seeds)]
        tried += [one for pair in pairs for one in pair]
        scores = [(one.score, other.score) for one, other in pairs]
        kept = [(one, other) for one, other in scores if one is not None and other is not None]
        comparison = compare(*zip(*kept, strict=True)) if len(kept) == seeds else None
        share = self._epoch_seconds(PRESENT) / self._epoch_seconds(winner)
        epochs = max(1, round(self.config.epochs * share))
        return Outcome(self._all_values(), tried, winner, comparison, epochs)

    def present_seconds(self) -> float:
        """Of one epoch with the present settings."""
        if self._noted(f"drawn {PRESENT}") is None:
            self._draw(PRESENT, 1)
        return self._epoch_seconds(PRESENT)

    def _final(self, winner: int, rung: int, seconds: float, seeds: int) -> Iterator[tuple[Tried, Tried]]:
        for seed in range(self.config.seed + 1, self.config.seed + 1 + seeds):
            yield self._train(winner, rung, seconds, seed), self._train(PRESENT, rung, seconds, seed)

    def _first(self, number: int, rung: Rung, plan: Plan) -> Tried:
        """Draw the settings, train them, and let Optuna know the result."""
        from optuna.trial import TrialState

        drawn = self._noted(f"drawn {number}") or self._draw(number, plan.rungs[0].settings)
        result = self._train(number, 0, rung.seconds, self.config.seed)
        if not self._study.trials[drawn["trial"]].state.is_finished():
            if result.score is None:
                self._study.tell(drawn["trial"], state=TrialState.PRUNED)  # without a value: worse than all others
            else:
                self._study.tell(drawn["trial"], result.score)
        return result

    def _draw(self, number: int, settings: int) -> dict[str, Any]:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        for left in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(left.number, state=TrialState.FAIL)  # a kill came before it was noted
        if number == PRESENT and not self._study.get_trials(states=(TrialState.WAITING,)):
            self._study.enqueue_trial(present_values(self.config, self.space))
        startup = max(2, settings // 2)
        self._study.sampler = TPESampler(seed=1000 * self.seed + number, n_startup_trials=startup)
        trial = self._study.ask(_distributions(self.space))
        values = present_values(self.config, self.space) if number == PRESENT else rounded(trial.params)
        return self._note(f"drawn {number}", {"trial": trial.number, "values": values})

    def _train(self, number: int, rung: int, seconds: float, seed: int) -> Tried:
        name = f"{number}-{rung}-{seed}"
        noted = self._noted(name)
        if noted is None:
            noted = self._note(name, asdict(self._tried(name, number, rung, seconds, seed)))
        self.training.forget(name)
        result = Tried(**noted)
        self.on_result(result)
        return result

    def _tried(self, name: str, number: int, rung: int, seconds: float, seed: int) -> Tried:
        began, epochs = process_time(), 0
        try:
            config = self._settings(number)
            epochs = max(1, round(seconds / self._epoch_seconds(number)))
            score = self.training.train(name, shortened(config, epochs, seed))
        except OWN_RESULTS as error:
            said = getattr(error, "what", str(error)).partition("; nothing of it")[0]  # without a path
            return Tried(number, rung, seed, epochs, None, None, round(process_time() - began, 1), said)
        spent = round(process_time() - began, 1)
        return Tried(number, rung, seed, epochs, score.value, score.interval, spent)

    def _epoch_seconds(self, number: int) -> float:
        """As it was measured once, so that a search that continues trains for the same epochs."""
        noted = self._noted(f"cost {number}") or self._note(
            f"cost {number}", {"seconds": self.training.epoch_seconds(self._settings(number))}
        )
        return float(noted["seconds"])

    def _settings(self, number: int) -> PretrainConfig:
        return with_values(self.config, self._values(number))

    def _values(self, number: int) -> Values:
        noted = self._noted(f"drawn {number}")
        assert noted is not None, number
        values: Values = noted["values"]
        return values

    def _all_values(self) -> Mapping[int, Values]:
        notes = self._study.user_attrs
        numbers = sorted(int(name.split()[1]) for name in notes if name.startswith("drawn "))
        return {number: self._values(number) for number in numbers}

    def _noted(self, name: str) -> dict[str, Any] | None:
        text = self._study.user_attrs.get(name)
        return None if text is None else json.loads(text)

    def _note(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        self._study.set_user_attr(name, json.dumps(value))
        failpoint("tune.noted")
        return value


def _distributions(space: Space) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        key: CategoricalDistribution(one.values)
        if isinstance(one, OneOf)
        else FloatDistribution(one.low, one.high, log=one.log)
        for key, one in space.items()
    }
