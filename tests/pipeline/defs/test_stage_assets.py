"""The assets that come out of a dvc.yaml, and what they tell after a run."""

import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml

from pipeline.defs.stage_assets import ForeseenFailure, dvc_assets, foreseen, numbers
from pipeline.defs.translator import asset_key
from pipeline.dvc.project import CHAMPION, RAW, load
from pipeline.workspace import Workspace
from tests.pipeline.small_graph import GRAPH, fill, write_graph

REPOSITORY = Path(__file__).parents[3]
PREPARED, PRETRAINED = dg.AssetKey(["data", "prepared"]), dg.AssetKey(["models", "pretrained"])


def specs_of(workspace: Workspace) -> dict[dg.AssetKey, dg.AssetSpec]:
    return {spec.key: spec for assets in dvc_assets(workspace) for spec in assets.specs}


def materialize(workspace: Workspace) -> dg.ExecuteInProcessResult:
    return dg.materialize(dvc_assets(workspace), raise_on_error=False)


def reported(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dict[str, object]:
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key == key]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def versions(result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, str]:
    events = result.get_asset_materialization_events()
    return {e.materialization.asset_key: (e.materialization.tags or {})["dagster/data_version"] for e in events}


def locked(workspace: Workspace) -> dict[dg.AssetKey, str]:
    """What dvc.lock says of the same results."""
    stages = yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"]
    outs = [out for stage in stages.values() for out in stage["outs"] if not out["path"].startswith("reports/")]
    return {asset_key(out["path"]): out["md5"] for out in outs}


@dataclass(frozen=True)
class Computed:
    workspace: Workspace
    result: dg.ExecuteInProcessResult


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, empty_workspace: Path) -> Computed:
    """The graph after its first materialization; a test that changes it takes a copy."""
    root = tmp_path_factory.mktemp("computed") / "workspace"
    shutil.copytree(empty_workspace, root, symlinks=True)
    workspace = fill(Workspace(root))
    return Computed(workspace, materialize(workspace))


def copy_of(computed: Computed, folder: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(computed.workspace.root, folder / "copy", symlinks=True)))


def dvc_edges(root: Path) -> set[tuple[str, str]]:
    """What `dvc dag` draws: (source or stage, stage that reads from it)."""
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    drawing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r'^"(.+)" -> "(.+)";$', drawing, re.MULTILINE))


@pytest.mark.seconds
@pytest.mark.parametrize("tracked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_real_graph_has_the_edges_of_dvc_dag(workspace: Workspace, tracked: bool) -> None:
    """Also before the first ingest, when DVC does not know the raw images yet and Dagster already shows them."""
    shutil.copyfile(REPOSITORY / "dvc.yaml", workspace.root / "dvc.yaml")
    if tracked:
        (workspace.root / "data").mkdir()
        (workspace.root / "models").mkdir()
        for source in (RAW, CHAMPION):
            name = Path(source).name
            (workspace.root / f"{source}.dvc").write_text(f"outs: [{{md5: {'0' * 32}.dir, path: {name}}}]\n")
    specs = specs_of(workspace)
    raw, champion = dg.AssetKey("raw_images"), dg.AssetKey("champion")
    makers = {raw: "data/raw.dvc", champion: "models/champion.dvc"} | {
        key: spec.metadata["dvc/stage"] for key, spec in specs.items()
    }
    edges = {(makers[dep.asset_key], makers[key]) for key, spec in specs.items() for dep in spec.deps}
    assert ("data/raw.dvc", "validate") in edges
    known = edges if tracked else {(maker, reader) for maker, reader in edges if not maker.endswith(".dvc")}
    assert known == dvc_edges(workspace.root)


def test_assets_match_the_stages_of_dvc_yaml(graph: Workspace) -> None:
    specs = specs_of(graph)
    assert {key.to_user_string() for key in specs} == {
        "data/prepared",
        "models/pretrained",
        "models/finetuned_1pct",
        "models/finetuned_10pct",
    }
    assert specs[PREPARED].description == "All of them in one."
    assert specs[PRETRAINED].description == "Count letters."
    assert specs[PRETRAINED].group_name == "training"
    assert specs[PRETRAINED].kinds == {"python"}
    assert specs[PRETRAINED].owners == ["team:ml"]
    assert [assets.op.pool for assets in dvc_assets(graph)] == ["dvc"] * 4


def test_the_code_version_is_the_definition_of_the_stage(graph: Workspace) -> None:
    before = specs_of(graph)
    after = specs_of(write_graph(graph, GRAPH.replace("stage.py pretrain", "stage.py pretrain --fast")))
    assert before[PRETRAINED].code_version != after[PRETRAINED].code_version
    assert before[PREPARED].code_version == after[PREPARED].code_version


def test_data_versions_are_the_hashes_of_dvc_lock(computed: Computed) -> None:
    assert versions(computed.result) == locked(computed.workspace)
    (event,) = computed.result.asset_materializations_for_node("pretrain")
    assert event.tags is not None
    assert event.tags["dagster/input_data_version/data/prepared"] == locked(computed.workspace)[PREPARED]


@pytest.mark.seconds
def test_unchanged_stages_are_skipped_and_deleted_outputs_restored_without_training(
    computed: Computed, tmp_path: Path
) -> None:
    copy = copy_of(computed, tmp_path)
    shutil.rmtree(copy.root / "models" / "pretrained")
    again = materialize(copy)
    assert {key.path[-1]: reported(again, key)["dvc/outcome"] for key in versions(again)} == {
        "prepared": "skipped",
        "pretrained": "restored",
        "finetuned_1pct": "skipped",
        "finetuned_10pct": "skipped",
    }
    assert (copy.root / "models" / "pretrained" / "model.txt").read_text() == "3"
    assert versions(again) == versions(computed.result)


@pytest.mark.slow
def test_dvc_repro_alone_gives_the_same_lock(
    computed: Computed, graph: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=graph.root, check=True)
    assert (graph.root / "dvc.lock").read_bytes() == (computed.workspace.root / "dvc.lock").read_bytes()


def test_a_materialization_shows_numbers_timings_and_pictures(computed: Computed) -> None:
    seen = reported(computed.result, PRETRAINED)
    assert seen["dvc/outcome"] == "executed"
    assert seen["letters/count"] == 3
    assert seen["finite"] is True
    assert "letters/mean" not in seen
    assert seen["timing/seconds"] == 1.5
    assert seen["dvc/size"] == 1
    assert next(iter(seen)) == "curves"  # pictures first; an instance without a UI only names them, see test_pages
    assert str(seen["curves"]).endswith("reports/curves.png")


def test_only_the_chosen_numbers_are_drawn_and_others_may_be_added(graph: Workspace) -> None:
    chosen = "pool: dvc, numbers: [size/*, letters/count], facts: [data/card.json]}}\n  finetune"
    write_graph(graph, GRAPH.replace("pool: dvc}}\n  finetune", chosen))
    graph.reports.mkdir()
    (graph.reports / "pretrain.json").write_text('{"finite": true, "letters": {"count": 3, "mean": 2}}')
    (graph.root / "data" / "card.json").write_text('{"size": {"train": 8, "test": 2}, "version": 1}')
    assert list(numbers(graph, load(graph.root).stages[1]).items()) == [
        ("size/train", 8),
        ("size/test", 2),
        ("letters/count", 3),
    ]


def test_an_asset_name_is_clear_without_its_folder() -> None:
    names = ("models/finetuned/0.01", "reports/compare.json", "reports/validation.html", "data/raw", "1.5", "a.b/c.d")
    assert [asset_key(name).to_user_string() for name in names] == [
        "models/finetuned_1pct",
        "reports/compare",
        "reports/validation",
        "raw_images",
        "1_5",
        "a_b/c_d",
    ]


@pytest.mark.parametrize("text", ['{"finite": tr', '{"loss": NaN}', "[1, 2]", '{"loss": null, "name": "x"}', None])
def test_reports_without_usable_numbers_show_none(graph: Workspace, text: str | None) -> None:
    graph.reports.mkdir()
    if text is not None:
        (graph.reports / "pretrain.json").write_text(text)
    assert numbers(graph, load(graph.root).stages[1]) == {}


@pytest.mark.seconds
def test_a_failed_stage_stops_its_dependents(graph: Workspace) -> None:
    (graph.root / "pretrain.fault").write_text("no luck today")
    result = materialize(graph)
    assert not result.success
    assert [event.asset_key for event in result.get_asset_materialization_events()] == [PREPARED]
    (failure,) = result.get_step_failure_events()
    error = failure.step_failure_data.error
    assert error is not None
    assert "Failure: stage pretrain: no luck today" in error.message
    assert error.cause is None  # what the UI would show below it, with a stack of ours


def test_a_full_disk_is_one_line_in_the_ui_and_another_error_keeps_its_traceback() -> None:
    with pytest.raises(ForeseenFailure) as failed, foreseen():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "registry/v0.0.1")
    assert failed.value.description == (
        "registry/v0.0.1: No space left on device; free some space on this disk and run again, nothing is lost"
    )
    with pytest.raises(OSError, match="Bad file descriptor"), foreseen():
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
