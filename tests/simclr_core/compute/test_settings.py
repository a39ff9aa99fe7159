from pathlib import Path

import pytest

from simclr_core.compute.settings import STAGES, VARIABLE, Compute, Where, file_of, read_compute, where
from simclr_core.errors import ConfigError


def write(workspace: Path, text: str) -> Path:
    path = file_of(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return workspace


def test_without_a_file_every_stage_runs_here(tmp_path: Path) -> None:
    assert read_compute(tmp_path) == Compute()
    assert {where(tmp_path, stage) for stage in (*STAGES, "export")} == {Where()}


@pytest.mark.parametrize("text", ["", "# pretrain: {engine: ray, workers: 2}\n"])
def test_a_file_of_comments_is_like_none(tmp_path: Path, text: str) -> None:
    assert read_compute(write(tmp_path, text)) == Compute()


def test_each_stage_has_its_place(tmp_path: Path) -> None:
    write(tmp_path, "validate: {engine: ray, address: 'a:1'}\npretrain: {engine: ray, workers: 2, data: remote}\n")
    assert read_compute(tmp_path).probing.address == "a:1"
    assert where(tmp_path, "pretrain") == Where(engine="ray", workers=2, data="remote")
    assert where(tmp_path, "finetune") == Where()


def test_another_file_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "pretrain: {engine: ray, workers: 2}\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other.yaml"))
    with pytest.raises(ConfigError, match=r"other\.yaml: no such file; leave SIMCLR_COMPUTE out"):
        where(tmp_path, "pretrain")
    write(tmp_path, "finetune: {engine: ray, workers: 3}\n")
    assert (where(tmp_path, "pretrain"), where(tmp_path, "finetune").workers) == (Where(), 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pretain: {}", "pretain: unknown key; did you mean pretrain"),
        ("pretrain: {engin: ray}", "pretrain.engin: unknown key; did you mean engine"),
        ("pretrain: {engine: dask}", "pretrain.engine: given 'dask', allowed: 'local', 'ray' or 'torchrun'"),
        ("pretrain: {engine: ray}", "must have workers, with engine ray"),
        ("pretrain: {engine: ray, workers: 0}", "pretrain.workers: given 0, allowed: greater than or equal to 1"),
        ("pretrain: {engine: ray, workers: 2, nodes: 3}", "no nodes, since with engine ray it changes nothing"),
        ("pretrain: {engine: ray, workers: 2, least_workers: 3}", "least_workers of at most workers"),
        ("pretrain: {workers: 2}", "no workers, since with engine local it changes nothing"),
        ("pretrain: {engine: torchrun}", "must have nodes and address"),
        ("pretrain: {engine: torchrun, nodes: 2, address: a:1, data: remote}", "no data, since with engine torchrun"),
        ("validate: {engine: torchrun}", "validate.engine: given 'torchrun', allowed: 'local' or 'ray'"),
        ("pretrain: {engine: torchrun, nodes: 2, address: a}", "must have a host and a port as its address"),
        ("validate: {engine: ray, workers: 2}", "validate.workers: unknown key; allowed: engine, address"),
        ("validates: {engine: ray}", "validates: unknown key; did you mean validate"),
        ("validate: {address: a:1}", "no address, since with engine local"),
        ("- pretrain", "must map stages to parameters"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        read_compute(write(tmp_path, text))
    assert len(refused.value.faults) == 1
