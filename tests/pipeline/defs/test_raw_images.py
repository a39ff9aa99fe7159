"""The ingest as an asset."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

from deploy.artifact import identity, publish
from pipeline import alerts
from pipeline.defs.approval import RELEASED
from pipeline.defs.raw_images import RawImagesConfig, raw_images
from pipeline.defs.retraining import DATA
from pipeline.dvc import client
from pipeline.ingest import unfinished
from pipeline.ingest.ingest import ingest
from pipeline.maintenance.state import unkept
from pipeline.params import read
from pipeline.retraining.inbox import survey
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.workspace import Workspace
from simclr_core.data.shards import DatasetCard, write_card
from simclr_core.pretraining.unfinished import run_folders, run_key
from tests.conftest import draw, encode
from tests.pipeline.conftest import put


def materialize(
    workspace: Workspace, instance: dg.DagsterInstance | None = None, **config: object
) -> dg.AssetMaterialization:
    run_config = dg.RunConfig(ops={"raw_images": RawImagesConfig(**config)})
    resources = {"workspace": workspace}
    result = dg.materialize([raw_images], resources=resources, run_config=run_config, instance=instance)
    (materialization,) = result.asset_materializations_for_node("raw_images")
    return materialization


def reported(materialization: dg.AssetMaterialization) -> dict[str, object]:
    return {name: value.value for name, value in materialization.metadata.items()}


def version(materialization: dg.AssetMaterialization) -> str:
    assert materialization.tags is not None
    return materialization.tags["dagster/data_version"]


@pytest.mark.seconds
def test_its_data_version_is_the_hash_that_dvc_tracks(filled: Workspace) -> None:
    first = materialize(filled)
    tracked = yaml.safe_load((filled.root / "data" / "raw.dvc").read_text())["outs"][0]
    assert version(first) == tracked["md5"]
    assert reported(first)["new_images"] == 40
    again = materialize(filled)
    assert version(again) == version(first)
    assert (reported(again)["new_images"], reported(again)["batch"]) == (0, "nothing new")


@pytest.mark.seconds
def test_an_empty_inbox_is_unchanged_after_the_first_ingest_and_an_error_before(filled: Workspace) -> None:
    with pytest.raises(dg.Failure, match="nothing to ingest"):
        materialize(filled, sources=["inbox/nothing-here/*"])
    first = materialize(filled)
    for file in filled.inbox.rglob("*.png"):
        file.unlink()
    assert version(materialize(filled)) == version(first)


@pytest.mark.seconds
def test_settings_from_the_launchpad_are_written_before_anything_runs(filled: Workspace) -> None:
    changes = {"pretrain": {"temperature": 0.2}, "overrides": {"pretrain.epochs": "7"}}
    materialize(filled, sources=["inbox/labeled"], **changes)
    written = yaml.safe_load(filled.params.read_text())["pretrain"]
    assert (written["epochs"], written["temperature"]) == (7, 0.2)
    before = filled.params.read_bytes()
    for fault in ({"overrides": {"pretrain.epochs": "many"}}, {"pretrain": {"epochs": 0}}):
        with pytest.raises(dg.Failure, match="epochs"):
            materialize(filled, **fault)
    assert filled.params.read_bytes() == before


def test_a_run_does_not_start_on_a_disk_that_is_nearly_full(filled: Workspace) -> None:
    with pytest.raises(dg.Failure, match="simclr gc"):
        materialize(filled, overrides={"storage.min_free_gigabytes": "1000000000"})
    assert not filled.raw.exists()


@pytest.mark.seconds
def test_new_images_are_in_the_remote_before_anything_is_computed(filled: Workspace, tmp_path: Path) -> None:
    client.execute(filled.root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    digest = version(materialize(filled))
    assert (tmp_path / "store" / "files" / "md5" / digest[:2] / digest[2:]).is_file()
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", git_run(filled)], cwd=filled.root, capture_output=True, text=True
    )
    assert {"data/raw.dvc", "params.yaml", "overrides.csv"} <= set(listed.stdout.splitlines())


@pytest.mark.seconds
def test_a_remote_that_is_away_is_reported_once_and_stops_nothing(
    filled: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").write_text("not a folder")
    client.execute(filled.root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    sent: list[str] = []
    monkeypatch.setattr(alerts, "send", lambda _, event, title, text: sent.append(f"{event}: {title}: {text}") or ())
    materialize(filled)
    (reported_once,) = sent
    assert re.match(
        "not_kept: .*: the state of a run is not in the remote: the state of runs since .* is on this disk alone: ",
        reported_once,
    )
    (tmp_path / "store").unlink()
    materialize(filled)
    assert len(sent) == 1
    assert unkept(filled) is None


def git_run(workspace: Workspace) -> str:
    command = ["git", "for-each-ref", "--format=%(refname)", "refs/heads/runs"]
    (name,) = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=True).stdout.split()
    return name


@pytest.mark.seconds
def test_without_sources_the_sources_of_the_triggers_are_used(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["retraining"]["sources"] = ["inbox/labeled", "inbox/test"]
    filled.params.write_text(yaml.safe_dump(params))
    assert reported(materialize(filled))["new_images"] == 16


@pytest.mark.seconds
def test_a_run_is_tagged_with_the_digest_of_its_images(filled: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        materialize(filled, instance)
        (run,) = instance.get_runs()
        assert run.tags[DATA] == survey(filled, ["inbox"]).digest
        put(filled, "unlabeled/later.png", b"x")
        assert run.tags[DATA] != survey(filled, ["inbox"]).digest


@pytest.mark.seconds
def test_a_run_on_another_source_does_not_need_those_of_the_triggers(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["retraining"]["sources"] = ["gone"]
    filled.params.write_text(yaml.safe_dump(params))
    with dg.DagsterInstance.ephemeral() as instance:
        assert reported(materialize(filled, instance, sources=["inbox"]))["new_images"] == 40
        (run,) = instance.get_runs()
        assert DATA not in run.tags


@pytest.mark.seconds
def test_a_run_removes_expired_decisions_and_restores_a_missing_file(filled: Workspace) -> None:
    today = date.today()
    yesterday, tomorrow = today - timedelta(days=1), today + timedelta(days=1)
    expired, holds = (
        Override(digit * 64, "deny", "ada", "embargo", yesterday, expires)
        for digit, expires in (("1", yesterday), ("2", tomorrow))
    )
    overrides.decide(filled.overrides, [expired, holds])
    materialize(filled)
    assert overrides.read(filled.overrides) == (holds,)
    filled.overrides.unlink()
    materialize(filled)
    assert filled.overrides.is_file()  # or DVC would miss an input of the validate stage
    filled.overrides.write_text("sha256\n")
    with pytest.raises(dg.Failure, match="its first line must be sha256,action,who,why,added,expires"):
        materialize(filled)


@pytest.fixture
def interrupted(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that was killed while it pretrained on its first batch, after step 6."""
    materialize(filled)
    filled.prepared.mkdir()
    write_card(filled.prepared, DatasetCard((), (0, 0, 0), (1, 1, 1), 16, 16, {}, "digest"))
    with publish(filled.root / "models" / "initial") as folder:
        (folder / "initial.json").write_text("{}")
    key = run_key(read(filled).pretrain.model_dump(), "digest", identity(filled.root / "models" / "initial"))
    for step in (4, 6):
        (run_folders(filled.root) / key / f"step-{step:08d}").mkdir(parents=True)
    monkeypatch.setattr(unfinished, "changed_stages", lambda *_: {"pretrain": ["data/prepared has changed"]})
    return filled


@pytest.mark.seconds
def test_an_interrupted_pretraining_is_finished_before_new_images_come(
    interrupted: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    tracked = (interrupted.root / "data" / "raw.dvc").read_text()
    put(interrupted, "unlabeled/new.png", encode(draw(0, 999)))
    with dg.DagsterInstance.ephemeral() as instance:
        waiting = materialize(interrupted, instance)
        (run,) = instance.get_runs()
    assert reported(waiting)["batch"] == "waits for the interrupted run"
    assert (interrupted.root / "data" / "raw.dvc").read_text() == tracked
    assert (
        "interrupted in pretraining, at step 6; `simclr run` finishes it first, and takes 1 new image"
        in capfd.readouterr().err
    )
    assert run.tags[DATA] == survey(interrupted, ["inbox"]).digest
    shutil.rmtree(run_folders(interrupted.root))  # as when it is finished
    assert run.tags[DATA] != survey(interrupted, ["inbox"]).digest  # or no sensor would start a run for the new image
    assert reported(materialize(interrupted))["batch"] == "0002"


@pytest.mark.seconds
def test_nothing_waits_that_a_person_wants_now_or_that_begins_again_anyway(
    interrupted: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reported(materialize(interrupted))["batch"] == "nothing new"
    put(interrupted, "unlabeled/new.png", encode(draw(0, 999)))
    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "changed_stages", lambda *_: {"validate": ["data/raw modified"]})
        assert reported(materialize(interrupted))["batch"] == "0002"
    put(interrupted, "unlabeled/another.png", encode(draw(0, 1000)))
    assert reported(materialize(interrupted, restart=True))["batch"] == "0003"
    put(interrupted, "unlabeled/third.png", encode(draw(0, 1001)))
    assert reported(materialize(interrupted, overrides={"pretrain.seed": "5"}))["batch"] == "0004"


@pytest.mark.seconds
def test_a_pretraining_that_never_gets_further_does_not_keep_new_images_away(interrupted: Workspace) -> None:
    put(interrupted, "unlabeled/new.png", encode(draw(0, 999)))
    batches = [reported(materialize(interrupted))["batch"] for _ in range(unfinished.TRIES + 1)]
    assert batches == ["waits for the interrupted run"] * unfinished.TRIES + ["0002"]


@pytest.fixture
def evaluating(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that was killed when its first batch was pretrained on, and not evaluated yet."""
    launch(filled)
    (filled.root / "models" / "pretrained").mkdir(parents=True)
    left_to_do(monkeypatch, filled, "linear_eval", "compare")
    return filled


def left_to_do(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, *stages: str) -> None:
    (workspace.root / "dvc.lock").write_text(f"schema: '2.0'\nstages: {{}}  # up to date, but for {stages}\n")
    monkeypatch.setattr(
        unfinished, "changed_stages", lambda *_: {stage: ["data/prepared has changed"] for stage in stages}
    )


@pytest.mark.seconds
def test_a_run_that_was_interrupted_after_pretraining_is_finished_before_new_images_come(
    evaluating: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(evaluating, "unlabeled/new.png", encode(draw(0, 999)))
    with dg.DagsterInstance.ephemeral() as instance:
        assert reported(materialize(evaluating, instance))["batch"] == "waits for the interrupted run"
        assert (
            "a run was interrupted before compare, linear_eval; `simclr run` finishes it first"
            in capfd.readouterr().err
        )
        left_to_do(monkeypatch, evaluating)
        assert reported(materialize(evaluating, instance))["batch"] == "waits for the interrupted run"
        assert "before the last gates and the release; `simclr run` finishes it first" in capfd.readouterr().err
        waited = {run.tags[DATA] for run in instance.get_runs()}
    assert waited == {survey(evaluating, ["inbox"]).digest}
    unfinished.end(evaluating)  # as when the candidate is released or refused
    assert waited != {survey(evaluating, ["inbox"]).digest}  # or no sensor would start a run for the new image
    assert reported(materialize(evaluating))["batch"] == "0002"


@pytest.mark.seconds
@pytest.mark.parametrize("changed", ["validate", "pretrain"])
def test_nothing_waits_for_a_run_whose_pretraining_begins_again_anyway(
    evaluating: Workspace, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    put(evaluating, "unlabeled/new.png", encode(draw(0, 999)))
    left_to_do(monkeypatch, evaluating, changed, "linear_eval")
    assert reported(materialize(evaluating))["batch"] == "0002"


@pytest.mark.seconds
def test_a_run_of_other_batches_or_one_that_ends_earlier_keeps_no_image_away(evaluating: Workspace) -> None:
    put(evaluating, "unlabeled/new.png", encode(draw(0, 999)))
    ingest(evaluating)  # the batches are no longer those of the run
    put(evaluating, "unlabeled/another.png", encode(draw(0, 1000)))
    assert launch(evaluating, [raw_images.key])["batch"] == "0003"  # as `simclr run --select raw_images` does
    put(evaluating, "unlabeled/third.png", encode(draw(0, 1001)))
    assert reported(materialize(evaluating))["batch"] == "0004"


def launch(workspace: Workspace, selection: Sequence[dg.AssetKey] | None = None) -> dict[str, object]:
    """A run of a job that goes as far as the release, or of some of its assets, and the ingest alone succeeds."""

    @dg.asset(key=RELEASED, deps=[raw_images])
    def release() -> None:
        raise dg.Failure("killed before it")

    job = dg.Definitions(
        [raw_images, release], resources={"workspace": workspace}
    ).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(asset_selection=selection, raise_on_error=False)
    (materialization,) = result.asset_materializations_for_node("raw_images")
    return reported(materialization)


@pytest.mark.seconds
def test_a_run_that_gets_no_further_after_pretraining_keeps_new_images_away_three_times(evaluating: Workspace) -> None:
    put(evaluating, "unlabeled/new.png", encode(draw(0, 999)))
    batches = [reported(materialize(evaluating))["batch"] for _ in range(unfinished.TRIES + 1)]
    assert batches == ["waits for the interrupted run"] * unfinished.TRIES + ["0002"]
