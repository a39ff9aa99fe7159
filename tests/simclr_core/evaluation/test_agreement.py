"""Evaluation by processes with their own disks: all of them have the same model, images, labels and parameters."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from deploy.artifact import publish
from simclr_core.errors import GroupError
from simclr_core.evaluation import finetune, linear_eval
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import save_model
from tests.sentences import assert_plain
from tests.simclr_core.conftest import CARD, put_in_group, relabel, results


def refused(stage: str, rank: int, workspaces: tuple[Path, Path]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        put_in_group(patch, rank, 2)
        with pytest.raises(GroupError) as caught:
            linear_eval.run(workspaces[rank]) if stage == "linear_eval" else finetune.run(workspaces[rank], "0.5")
    return str(caught.value)


def evaluate_on(rank: int, workspaces: tuple[Path, Path]) -> list[str]:
    """Both stages, each in the process's own workspace: what it raises."""
    return [refused(stage, rank, workspaces) for stage in ("linear_eval", "finetune")]


def exchange_labels(workspace: Path) -> None:
    labels = np.load(workspace / "data" / "prepared" / "train" / "index.npy")["label"]
    relabel(workspace, "train", np.where(labels == 0, 1, np.where(labels == 1, 0, labels)))


def put_other_model(workspace: Path) -> None:
    torch.manual_seed(8)
    with publish(workspace / "models" / "pretrained", replace=True) as work:
        save_model(work, build_encoder("resnet10", 0.125, "compact"), {}, CARD)


def change(workspace: Path, block: str, **values: object) -> None:
    path = workspace / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params[block] |= values
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.mark.seconds
def test_other_labels_another_model_and_another_rate_are_refused_on_every_process(
    pretrained: Path, tmp_path: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    """Also where one could share its batch and the other could not, so that they would wait for each other."""
    other = Path(shutil.copytree(pretrained, tmp_path / "other"))
    exchange_labels(other)
    put_other_model(other)
    change(other, "linear_eval", l2_count=4)
    change(other, "finetune", batch_size=7)
    before = [results(one) for one in (pretrained, other)]
    first, second = on_ranks(2, evaluate_on, (pretrained, other))
    assert first == second
    for said, key in zip(first, ("linear_eval.l2_count", "finetune.batch_size"), strict=True):
        assert said.startswith("the 2 processes would not work on the same thing: data/prepared is ")
        assert "; models/pretrained is " in said
        assert f"; {key} is " in said
        assert_plain(said)
    assert [results(one) for one in (pretrained, other)] == before


def test_every_input_of_the_stages_is_a_fact(pretrained: Path) -> None:
    def found() -> dict[str, object]:
        return {
            **linear_eval.read_inputs(pretrained).facts,
            **finetune.read_inputs(pretrained, "0.5").facts,
        }

    def changed() -> set[str]:
        nonlocal known
        before, known = known, found()
        return {name for name in before | known if before.get(name) != known.get(name)}

    known = found()
    sources = {name.partition(".")[0] for name in known}
    assert sources == {"data/prepared", "models/pretrained", "linear_eval", "finetune"}
    exchange_labels(pretrained)
    assert changed() == {"data/prepared"}
    relabel(pretrained, "test", np.array(-1))
    assert changed() == {"data/prepared"}
    put_other_model(pretrained)
    assert changed() == {"models/pretrained"}
    change(pretrained, "finetune", learning_rate=0.5)
    assert changed() == {"finetune.learning_rate"}
    change(pretrained, "linear_eval", sgd={"epochs": 3})
    assert "linear_eval.sgd.epochs" in changed()
