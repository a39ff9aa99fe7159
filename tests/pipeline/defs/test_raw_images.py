"""The ingest as an asset."""

import re
import subprocess
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipeline import alerts
from pipeline.defs.raw_images import RawImagesConfig, raw_images
from pipeline.defs.retraining import DATA
from pipeline.dvc import client
from pipeline.maintenance.state import unkept
from pipeline.retraining.inbox import survey
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.workspace import Workspace
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


def test_its_data_version_is_the_hash_that_dvc_tracks(filled: Workspace) -> None:
    first = materialize(filled)
    tracked = yaml.safe_load((filled.root / "data" / "raw.dvc").read_text())["outs"][0]
    assert version(first) == tracked["md5"]
    assert reported(first)["new_images"] == 40
    again = materialize(filled)
    assert version(again) == version(first)
    assert (reported(again)["new_images"], reported(again)["batch"]) == (0, "nothing new")


def test_an_empty_inbox_is_unchanged_after_the_first_ingest_and_an_error_before(filled: Workspace) -> None:
    with pytest.raises(dg.Failure, match="nothing to ingest"):
        materialize(filled, sources=["inbox/nothing-here/*"])
    first = materialize(filled)
    for file in filled.inbox.rglob("*.png"):
        file.unlink()
    assert version(materialize(filled)) == version(first)


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


def test_new_images_are_in_the_remote_before_anything_is_computed(filled: Workspace, tmp_path: Path) -> None:
    client.execute(filled.root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    digest = version(materialize(filled))
    assert (tmp_path / "store" / "files" / "md5" / digest[:2] / digest[2:]).is_file()
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", git_run(filled)], cwd=filled.root, capture_output=True, text=True
    )
    assert {"data/raw.dvc", "params.yaml", "overrides.csv"} <= set(listed.stdout.splitlines())


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


def test_without_sources_the_sources_of_the_triggers_are_used(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["retraining"]["sources"] = ["inbox/labeled", "inbox/test"]
    filled.params.write_text(yaml.safe_dump(params))
    assert reported(materialize(filled))["new_images"] == 16


def test_a_run_is_tagged_with_the_digest_of_its_images(filled: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        materialize(filled, instance)
        (run,) = instance.get_runs()
        assert run.tags[DATA] == survey(filled, ["inbox"]).digest
        put(filled, "unlabeled/later.png", b"x")
        assert run.tags[DATA] != survey(filled, ["inbox"]).digest


def test_a_run_on_another_source_does_not_need_those_of_the_triggers(filled: Workspace) -> None:
    params = yaml.safe_load(filled.params.read_text())
    params["retraining"]["sources"] = ["gone"]
    filled.params.write_text(yaml.safe_dump(params))
    with dg.DagsterInstance.ephemeral() as instance:
        assert reported(materialize(filled, instance, sources=["inbox"]))["new_images"] == 40
        (run,) = instance.get_runs()
        assert DATA not in run.tags


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
