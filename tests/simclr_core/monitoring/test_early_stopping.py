"""Training that ends before its last epoch, and the epoch that is kept: by the history alone, so also after a kill."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from simclr_core.errors import CheckpointError, ConfigError
from simclr_core.launch import Member
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import pretrain, training
from simclr_core.pretraining.checkpoint import TrainingState
from simclr_core.pretraining.early_stopping import EarlyStopping, count_in_a_row
from tests.simclr_core.conftest import configure, interrupt, metrics_of, relabel, results, runs

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

ALONE = Member(0, 1, torch.device("cpu"))
ACCURACIES = (
    50.0,
    70.0,
    60.0,
    70.0,
    90.0,
    95.0,
)  # of epochs; a patience of 2 ends after four
STEPS = 6  # of an epoch


def history(values: Sequence[float | None], measure: str = "knn_top1") -> list[Any]:
    return [{"epoch": number, measure: value} for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "expected"), [((), 0), ((1,), 0), ((-1,), 1), ((-1, 1), 0), ((1, -1, -1), 2), ((-1, 1, -1), 1)]
)
def test_bad_records_are_counted_from_the_end(values: tuple[float, ...], expected: int) -> None:
    assert count_in_a_row(history(values), lambda record: (record["knn_top1"] or 0) < 0) == expected


@pytest.mark.parametrize(
    ("values", "ends", "best"),
    [
        ((), False, None),
        ((50,), False, 1),
        ((50, 40), False, 1),
        ((50, 40, 49), True, 1),
        ((50, 40, 51), False, 3),
        ((50, 40, 50), True, 1),  # not higher
        ((50, 60, 55, 58), True, 2),
        ((None, None, None), False, None),  # no labels
    ],
)
def test_it_ends_when_enough_epochs_in_a_row_are_not_above_the_best(
    values: tuple[float | None, ...], ends: bool, best: int | None
) -> None:
    for measure in ("knn_top1", "probe_top1", "effective_rank"):
        stopping, records = EarlyStopping(measure, 2, None), history(values, measure)
        assert stopping.judge(TrainingState(9, {}, {}, records, []), ALONE) == ends
        found = stopping.best_record(records)
        assert (found and found["epoch"]) == best
        assert not EarlyStopping(measure, None, None).judge(TrainingState(9, {}, {}, records, []), ALONE)
        assert stopping.best_checkpoint(records, STEPS) is None, "nothing is kept"


def test_the_history_of_the_first_process_decides_for_all() -> None:
    class Second(Member):
        def from_first(self, value: Any) -> Any:
            assert value is False, "it has no history"
            return True

    assert EarlyStopping("knn_top1", 2, None).judge(TrainingState(9, {}, {}, [], []), Second(1, 2, ALONE.device))


@pytest.fixture
def scripted(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose training is as accurate in each epoch as ACCURACIES say."""
    record = training.record

    def as_scripted(epoch: int, *others: Any) -> Any:
        return {**record(epoch, *others), "knn_top1": ACCURACIES[epoch - 1]}

    monkeypatch.setattr(training, "record", as_scripted)
    configure(prepared, epochs=len(ACCURACIES), early_stopping={"patience": 2, "keep": "best"})
    return prepared


@pytest.mark.seconds
def test_it_ends_early_keeps_the_best_and_a_kill_changes_no_byte(
    scripted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(scripted, average_decay=0.5)
    states: list[dict[str, torch.Tensor]] = []
    update = training.update

    def noted(learner: training.Learner, *others: Any) -> None:
        update(learner, *others)
        states.append({name: value.clone() for name, value in learner.result[0].state_dict().items()})

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", noted)
        pretrain.run(scripted)
    assert len(states) == 4 * STEPS
    undisturbed, metrics = results(scripted), metrics_of(scripted)
    assert {name: metrics[name] for name in ("epochs", "steps", "kept_epoch", "knn_top1")} == {
        "epochs": 4,
        "steps": 4 * STEPS,
        "kept_epoch": 2,
        "knn_top1": 70.0,
    }
    published = load_model(scripted / "models" / "pretrained").encoder.state_dict()
    assert all(torch.equal(value, states[2 * STEPS - 1][name]) for name, value in published.items())
    for place in ("pretrain.step:raise@15", "pretrain.step:raise@4", "pretrain.trained:raise@1"):
        interrupt(scripted, monkeypatch, place)
    pretrain.run(scripted)
    assert results(scripted) == undisturbed
    assert runs(scripted) == []


@pytest.mark.seconds
def test_a_damaged_best_epoch_is_not_replaced_by_another(scripted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(scripted, monkeypatch, "pretrain.trained:raise@1")
    (best,) = (scripted / ".simclr" / "runs").glob("*/best/step-00000012/network.safetensors")
    os.truncate(best, 1000)
    with pytest.raises(CheckpointError, match=r"the best epoch, 2, was kept in .*step-00000012, which cannot be used"):
        pretrain.run(scripted)
    assert not (scripted / "models" / "pretrained").exists()


@pytest.mark.seconds
def test_without_labels_it_says_that_nothing_ends_it(prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    relabel(prepared, "train", np.full(96, -1))
    configure(prepared, epochs=1, early_stopping={"patience": 1, "keep": "best"})
    pretrain.run(prepared)
    assert "early_stopping.measure is knn_top1, and no training image has a label" in caplog.text
    assert metrics_of(prepared)["kept_epoch"] == 1


def test_keeping_the_best_and_rolling_back_exclude_each_other(prepared: Path) -> None:
    params = yaml.safe_load((prepared / "params.yaml").read_text(encoding="utf-8"))
    params["pretrain"] |= {"on_collapse": {"action": "roll_back"}, "early_stopping": {"keep": "best"}}
    (prepared / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"early_stopping\.keep: last with on_collapse\.action roll_back"):
        pretrain.run(prepared)
