"""Which pretraining was interrupted, found without torch."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simclr_core.config import PretrainConfig
from simclr_core.params import read_block
from simclr_core.pretraining import pretrain, training
from simclr_core.pretraining.unfinished import (
    LATER,
    RECORDER,
    Unfinished,
    find_unfinished,
    remove_recorded,
    run_folders,
    run_key,
)
from tests.simclr_core.conftest import configure, interrupt, results, runs


def found(workspace: Path) -> Unfinished | None:
    return find_unfinished(workspace, read_block(workspace / "params.yaml", "pretrain", PretrainConfig))


@pytest.mark.seconds
def test_it_is_found_until_it_is_finished_and_only_by_its_own_parameters(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(prepared) is None
    interrupt(prepared, monkeypatch, "pretrain.step:raise@8")
    left = found(prepared)
    assert left is not None
    assert (left.step, sorted(path.name for path in left.folder.glob("step-*"))) == (6, runs(prepared))
    configure(prepared, learning_rate=0.3)
    assert found(prepared) is None
    configure(prepared, learning_rate=0.1)
    assert found(prepared) == left
    pretrain.run(prepared)
    assert found(prepared) is None


@pytest.mark.seconds
def test_what_is_published_and_lost_before_it_was_recorded_is_not_trained_again(
    prepared: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv(RECORDER, "a run")
    interrupt(prepared, monkeypatch, "pretrain.set_aside:raise@1")
    left = found(prepared)
    assert left is not None
    shutil.rmtree(prepared / "models" / "pretrained")  # as DVC does
    with monkeypatch.context() as patch:
        patch.setattr(training, "gradients", lambda *_: pytest.fail("trained again"))
        pretrain.run(prepared)
    assert f"continuing at step {left.step} of {left.step}" in caplog.text
    assert results(prepared) == undisturbed
    assert found(prepared) == left
    remove_recorded(prepared)
    assert found(prepared) is None
    assert not any(run_folders(prepared).glob("*/"))


@pytest.mark.seconds
def test_to_look_for_it_loads_no_torch() -> None:
    code = "import sys, simclr_core.pretraining.unfinished; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_key_changes_with_every_parameter_with_the_data_and_with_the_start() -> None:
    config = {"seed": 0, "encoder": {"name": "resnet18"}}
    keys = {
        run_key(config, "a", "scratch"),
        run_key({**config, "seed": 1}, "a", "scratch"),
        run_key({**config, "encoder": {"name": "resnet34"}}, "a", "scratch"),
        run_key(config, "b", "scratch"),
        run_key(config, "a", "champion"),
    }
    assert len(keys) == 5
    on_gpu = {
        run_key({**config, "augmentation": {"mode": mode}}, "a", "scratch", "cuda") for mode in ("exact", "fused")
    }
    on_cpu = {run_key({**config, "augmentation": {"mode": mode}}, "a", "scratch", "cpu") for mode in ("exact", "fused")}
    assert len(on_gpu | on_cpu) == 3  # fused views differ, exact ones do not
    assert run_key(dict(reversed(config.items())), "a", "scratch") in keys


def test_a_run_of_an_earlier_version_keeps_its_key() -> None:
    def config(values: dict[str, object]) -> dict[str, Any]:
        found: dict[str, Any] = {"seed": 0, "augmentation": {"mode": "exact"}}
        for name, value in values.items():
            *parents, key = name.split(".")
            (found[parents[0]] if parents else found)[key] = value
        return found

    before = run_key(config({}), "a", "scratch")
    assert run_key(config(LATER), "a", "scratch") == before
    others = {run_key(config({**LATER, name: "another"}), "a", "scratch") for name in LATER}
    assert len({before, *others}) == 1 + len(LATER)


def test_what_came_later_changes_nothing_by_default() -> None:
    def default(name: str) -> object:
        found: Any = PretrainConfig().model_dump()
        for key in name.split("."):
            found = found[key]
        return found

    assert {name: default(name) for name in LATER} == LATER
