"""The whole graph with its real stages, on forty tiny images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import deploy
from pipeline.cli import summary
from pipeline.cli.status import look
from pipeline.dvc.client import DVC, Outcome
from pipeline.environment import WORKSPACE
from pipeline.errors import StageFailedError
from pipeline.ingest.raw import batches
from pipeline.params import override, read
from pipeline.run import run
from pipeline.workspace import Workspace
from simclr_core.pretraining.unfinished import find_unfinished, run_folders
from tests.conftest import draw, encode
from tests.pipeline.conftest import PARAMS, fill, put
from tests.pipeline.kept_files import files_without_rule

STAGES = {
    "validate",
    "prepare",
    "embedding_drift",
    "initial",
    "pretrain",
    "linear_eval",
    "finetune@0.01",
    "finetune@0.1",
    "export",
    "compare",
    "explore",
}
MODELS = ("models/initial", "models/pretrained", "models/probe", "models/finetuned", "models/bundle")


def dvc(root: Path, *arguments: str) -> str:
    """`dvc` in the form that starts warm."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [*DVC, *arguments], cwd=root, env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory, empty_workspace: Path) -> Path:
    """A workspace in which every stage ran, and its gates, but the release."""
    root = tmp_path_factory.mktemp("run once") / "my pictures – ähm"
    shutil.copytree(empty_workspace, root, symlinks=True)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(WORKSPACE, raising=False)
        names = sorted({"raw_images", "champion", *(stage.partition("@")[0] for stage in STAGES)})
        first = run(fill(Workspace(root)), names)
    assert {name: result.outcome for name, result in first.stages.items()} == dict.fromkeys(STAGES, Outcome.EXECUTED)
    return root


@pytest.fixture
def trained(run_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv(WORKSPACE, raising=False)
    return Workspace(shutil.copytree(run_once, tmp_path / run_once.name, symlinks=True))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_raw_images_to_served_embeddings(trained: Workspace, tmp_path: Path) -> None:
    untrained = tmp_path / "a copy to train without Dagster"
    encoder = deploy.load(trained.root / "models" / "bundle")
    encoder.verify()
    vectors = encoder.embed(sorted(trained.inbox.glob("test/*/*.png"))).vectors
    assert vectors.shape == (8, encoder.info["dim"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    (prediction,) = encoder.classify(next(trained.inbox.glob("test/*/*.png")))
    assert prediction.labels[0] in {"circle", "cross", "square", "stripes"}

    # Again: nothing to do but the release. Models gone: restored, not computed.
    lock = (trained.root / "dvc.lock").read_text()
    assert {result.outcome for result in run(trained).stages.values()} == {Outcome.SKIPPED}
    for name in MODELS:
        shutil.rmtree(trained.root / name)
    dvc(trained.root, "checkout")
    assert {result.outcome for result in run(trained).stages.values()} == {Outcome.SKIPPED}
    assert (trained.root / "dvc.lock").read_text() == lock

    # DVC without Dagster computes the same bytes from the same raw images.
    shutil.copytree(trained.root, untrained, symlinks=True)
    for name in (*MODELS, "reports", "data/manifest", "data/prepared", "dvc.lock", ".dvc/cache/runs", ".dvc/tmp"):
        path = untrained / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    dvc(untrained, "repro")
    assert yaml.safe_load((untrained / "dvc.lock").read_text()) == yaml.safe_load(lock)

    summary.write(trained)
    written = json.loads((trained.reports / "summary.json").read_text())
    assert written["images"]["accepted"] == 40
    assert written["finetune"].keys() == {"0.01", "0.1"}
    assert written["onnx"]["cosine_min"] > 0.99999
    assert None not in written["seconds"].values()
    assert written["seconds"]["pretrain"] > 0
    assert "stages     all up to date" in str(look(trained))
    metrics = json.loads(dvc(trained.root, "metrics", "show", "--json"))
    assert "reports/linear_eval.json" in metrics[""]["data"]
    dvc(trained.root, "plots", "show", "--out", str(tmp_path / "plots"))
    assert "NT-Xent loss" in (tmp_path / "plots" / "index.html").read_text()
    assert files_without_rule(trained) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_pretraining_is_finished_on_its_images_before_new_ones_come(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = ("raw_images", "champion", "validate", "prepare", "initial", "pretrain")
    override(filled, {"pretrain.epochs": "3"})
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", "pretrain.step:kill@6")
        with pytest.raises(StageFailedError, match="its process was killed by SIGKILL, most often by the kernel when"):
            run(filled, stages)
    left = find_unfinished(filled.root, read(filled).pretrain)
    assert left is not None
    assert f"unfinished a run was interrupted in pretraining, at step {left.step}" in str(look(filled))
    put(filled, "unlabeled/new.png", encode(draw(0, 999)))
    log = filled.scratch / "logs" / "pretrain.log"
    with monkeypatch.context() as patch:
        patch.setenv("SIMCLR_FAILPOINT", "pretrain.set_aside:kill")  # the model is there, and DVC has not recorded it
        with pytest.raises(StageFailedError, match="killed by SIGKILL"):
            run(filled, stages)
    assert f"continuing at step {left.step} of 6" in log.read_text()
    assert run(filled, stages).stages["pretrain"].outcome is Outcome.EXECUTED
    assert [batch.name for batch in batches(filled.raw)] == ["0001"]
    assert "continuing at step 6 of 6" in log.read_text()
    assert not any(run_folders(filled.root).glob("*/"))
    run(filled, ["raw_images"])
    assert [batch.name for batch in batches(filled.raw)] == ["0001", "0002"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_in_its_release_is_finished_on_its_images_before_new_ones_come(trained: Workspace) -> None:
    command = [sys.executable, "-P", "-m", "pipeline", "--workspace", str(trained.root), "run"]
    killed = subprocess.run(command, env=os.environ | {"SIMCLR_FAILPOINT": "release.committed:kill"}, check=False)
    assert killed.returncode == -9
    assert "unfinished a run was interrupted before the last gates and the release" in str(look(trained))
    put(trained, "unlabeled/new.png", encode(draw(0, 999)))
    continued = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "finishes it first, and takes 1 new image or label in the run after it" in continued.stdout
    assert [batch.name for batch in batches(trained.raw)] == ["0001"]
    assert {result.outcome for result in run(trained, ["pretrain", "compare"]).stages.values()} == {Outcome.SKIPPED}
    assert (trained.root / "registry" / "CURRENT").read_text() == "v0.0.1\n"
    run(trained, ["raw_images"])
    assert [batch.name for batch in batches(trained.raw)] == ["0001", "0002"]
    assert files_without_rule(trained) == []
