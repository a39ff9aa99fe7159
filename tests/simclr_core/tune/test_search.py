"""The search with stand-ins for trainings: it continues to the same table, and finds no winner in noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deploy.failpoint
from simclr_core.config import PretrainConfig
from simclr_core.errors import CollapseError
from simclr_core.tune.halving import plan
from simclr_core.tune.judge import Score
from simclr_core.tune.search import Outcome, Search
from simclr_core.tune.space import describe_space

pytest.importorskip("optuna")
CONFIG = PretrainConfig.model_validate(
    {"encoder": {"name": "resnet10", "width": 0.5}, "temperature": 0.5, "epochs": 10}
)
PLAN = plan(1000.0, 9, 3)


class Imagined:
    """Trainings that take no time: a score of the settings and noise of the seed; ``collapse`` names runs that fail."""

    def __init__(self, gain: float, noise: float, collapse: tuple[str, ...] = ()) -> None:
        self.gain, self.noise, self.collapse = gain, noise, collapse
        self.trained: list[tuple[str, int, int]] = []

    def epoch_seconds(self, config: PretrainConfig) -> float:
        return config.encoder.width

    def train(self, name: str, config: PretrainConfig) -> Score:
        self.trained.append((name, config.epochs, config.seed))
        if name in self.collapse:
            raise CollapseError(1, {"effective_rank": 1.0}, 1)
        key = [config.seed, round(1000 * config.temperature), round(1e6 * config.learning_rate), config.epochs]
        noise = np.random.default_rng(key).normal(0, self.noise)
        return Score(70 + self.gain * (config.temperature < 0.4) + noise, 1.0)

    def forget(self, name: str) -> None:
        pass


def search(folder: Path, training: Imagined, seed: int = 0) -> Outcome:
    return Search(folder, CONFIG, describe_space(CONFIG, 8000), training, seed).run(PLAN, 3)


def table(outcome: Outcome) -> list[object]:
    return [replace(one, cpu_seconds=0.0) for one in outcome.tried]


@pytest.mark.seconds
def test_a_real_gain_is_found_on_seeds_that_the_search_has_not_seen(tmp_path: Path) -> None:
    training = Imagined(gain=5.0, noise=0.3)
    found = search(tmp_path, training)
    assert found.better
    assert found.comparison is not None
    assert 4 < found.comparison.difference < 6
    assert found.winner is not None
    assert float(found.values[found.winner]["temperature"]) < 0.4
    searched = {seed for name, _, seed in training.trained if name.split("-")[1] in "01"}
    assert searched.isdisjoint({seed for name, _, seed in training.trained if name.split("-")[1] == "2"})
    width = found.values[found.winner]["encoder.width"]
    assert found.epochs == max(1, round(10 * 0.5 / float(width)))


@pytest.mark.seconds
def test_every_setting_of_a_rung_gets_the_same_time(tmp_path: Path) -> None:
    found = search(tmp_path, Imagined(gain=1.0, noise=0.1))
    for one in found.tried:
        seconds = one.epochs * float(found.values[one.settings]["encoder.width"])
        wanted = [*(rung.seconds for rung in PLAN.rungs), PLAN.final_seconds][one.rung]
        assert seconds == pytest.approx(wanted, abs=0.6)


@pytest.mark.seconds
def test_no_winner_comes_from_noise(tmp_path: Path) -> None:
    found = [search(tmp_path / str(seed), Imagined(gain=0.0, noise=2.0 + seed / 100), seed) for seed in range(3)]
    assert sum(one.better for one in found) <= 1  # one in twenty is expected; test_comparison counts them


@pytest.mark.seconds
@pytest.mark.parametrize("turn", [1, 8, 25])
def test_after_a_kill_it_continues_to_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    whole = search(tmp_path / "whole", Imagined(gain=1.0, noise=0.5, collapse=("3-0-0",)))
    deploy.failpoint._reached.clear()
    monkeypatch.setenv(deploy.failpoint.VARIABLE, f"tune.noted:raise@{turn}")
    with pytest.raises(RuntimeError, match="failpoint"):
        search(tmp_path / "cut", Imagined(gain=1.0, noise=0.5, collapse=("3-0-0",)))
    monkeypatch.delenv(deploy.failpoint.VARIABLE)
    again = Imagined(gain=1.0, noise=0.5, collapse=("3-0-0",))
    continued = search(tmp_path / "cut", again)
    assert table(continued) == table(whole)
    assert continued.values == whole.values
    assert continued.comparison == whole.comparison
    assert len(again.trained) <= len(whole.tried) - turn // 3


@pytest.mark.seconds
def test_a_failed_training_is_a_result(tmp_path: Path) -> None:
    found = search(tmp_path, Imagined(gain=1.0, noise=0.1, collapse=("0-0-0", "2-0-0")))
    failed = [one for one in found.tried if one.failure]
    assert [(one.settings, one.score) for one in failed] == [(0, None), (2, None)]
    assert "collapsed" in failed[0].failure
    assert found.winner not in (None, 0, 2)


def test_where_all_fail_there_is_no_winner(tmp_path: Path) -> None:
    found = search(tmp_path, Imagined(1.0, 0.1, tuple(f"{number}-0-0" for number in range(9))))
    assert (found.winner, found.comparison, len(found.tried)) == (None, None, 9)
