"""Processes with their own disks train the same thing, from the same step, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy.failpoint
from simclr_core.errors import SimclrError
from simclr_core.pretraining import pretrain
from tests.conftest import write_prepared
from tests.simclr_core.conftest import configure, put_in_group, results, runs


def pretrain_on(rank: int, workspaces: tuple[Path, Path], place: str = "") -> str:
    """Pretraining as this rank of two, in its own workspace; what it raises. ``place`` is a failpoint."""
    deploy.failpoint._reached.clear()
    with pytest.MonkeyPatch.context() as patch:
        put_in_group(patch, rank, 2)
        patch.setenv("SIMCLR_FAILPOINT", place)
        try:
            pretrain.run(workspaces[rank])
        except (SimclrError, RuntimeError) as error:
            return str(error)
    return ""


@pytest.fixture
def disks(prepared: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two machines with the same files and no common disk."""
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns("first", "second"))
    return folders


@pytest.mark.seconds
def test_other_images_of_equal_count_are_refused_before_the_first_step(
    disks: tuple[Path, Path], on_ranks: Callable[..., list[Any]]
) -> None:
    prepared = disks[1] / "data" / "prepared"
    index = np.load(prepared / "train" / "index.npy")
    index[[0, 1]] = index[[1, 0]]
    np.save(prepared / "train" / "index.npy", index)
    first, second = on_ranks(2, pretrain_on, disks)
    assert first == second
    assert "data/prepared is " in first
    assert " on rank 0 (" in first
    assert " on rank 1 (" in first
    assert runs(disks[0]) == []
    assert results(disks[0]) == {}


@pytest.mark.seconds
def test_a_rank_with_fewer_images_does_not_hang_the_others(
    disks: tuple[Path, Path], on_ranks: Callable[..., list[Any]]
) -> None:
    shutil.rmtree(disks[1] / "data")
    write_prepared(disks[1], train=8, test=8)  # fewer than a batch, which that rank alone would refuse
    assert all("data/prepared is " in said for said in on_ranks(2, pretrain_on, disks))


@pytest.mark.seconds
def test_other_parameters_are_named_with_both_values(
    disks: tuple[Path, Path], on_ranks: Callable[..., list[Any]]
) -> None:
    configure(disks[1], learning_rate=0.3, batch_size=32)
    for said in on_ranks(2, pretrain_on, disks):
        assert "pretrain.learning_rate is 0.1 on rank 0" in said
        assert "0.3 on rank 1" in said
        assert "pretrain.batch_size is 16 on rank 0" in said
        assert "data/prepared" not in said.partition(";")[0]


@pytest.mark.slow
def test_the_furthest_checkpoint_of_any_disk_is_what_all_continue_from(
    disks: tuple[Path, Path], prepared: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    assert on_ranks(2, pretrain_on, (prepared, prepared)) == ["", ""]  # a common disk, undisturbed
    assert all("failpoint" in said for said in on_ranks_again(on_ranks, disks, "pretrain.step:raise@8"))
    assert runs(disks[0]) == ["step-00000004", "step-00000006"]
    assert runs(disks[1]) == []
    swapped = disks[::-1]
    assert all("failpoint" in said for said in on_ranks_again(on_ranks, swapped, "pretrain.step:raise@4"))
    assert runs(disks[1]) == ["step-00000006", "step-00000008"]  # the one that was first has up to step 6 alone
    assert on_ranks_again(on_ranks, disks) == ["", ""]
    assert results(disks[0]) == results(prepared)
    assert results(disks[1]) == {}
    assert json.loads((disks[0] / "reports" / "pretrain.json").read_text())["steps"] == 12


def on_ranks_again(on_ranks: Callable[..., list[Any]], *arguments: object) -> list[Any]:
    """``on_ranks`` keeps a folder for each function that it runs."""
    for folder in arguments[0][0].parent.glob("pretrain_on-*"):  # type: ignore[index]
        shutil.rmtree(folder)
    return on_ranks(2, pretrain_on, *arguments)
