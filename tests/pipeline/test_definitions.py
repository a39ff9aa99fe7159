"""The code location: it loads fast, in any workspace, and is complete."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import dagster as dg
import pytest

from pipeline.config import ValidateConfig
from pipeline.defs import build_definitions
from pipeline.defs.raw_images import RawImagesConfig
from pipeline.defs.retraining import freshness
from pipeline.environment import WORKSPACE
from pipeline.errors import WorkspaceError
from pipeline.validation.expectations import expectations
from pipeline.workspace import Workspace, executable

REPOSITORY = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "torchvision",
    "great_expectations",
    "onnxruntime",
    "onnx",
    "pandas",
    "pyarrow",
    "matplotlib",
    "optuna",
}


def measured(code: str, folder: Path) -> tuple[str, float]:
    """What it printed in a new process, and the processor seconds that this took."""
    before = os.times()
    said = load_in_a_new_process(code, folder)
    after = os.times()
    return said, after.children_user + after.children_system - before.children_user - before.children_system


def load_in_a_new_process(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.seconds
def test_the_code_location_loads_no_heavy_library(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Two to three times what Dagster alone takes, whatever the machine and what else it does."""
    monkeypatch.setenv(WORKSPACE, str(workspace.root))
    _, dagster = measured("import dagster", workspace.root)
    code = "import sys, pipeline.definitions; print(*{name.partition('.')[0] for name in sys.modules})"
    said, seconds = measured(code, workspace.root)
    record_property("over Dagster alone", round(seconds / dagster, 2))
    assert "dagster" in said.split()
    assert not set(said.split()) & HEAVY
    assert seconds < 4 * dagster


@pytest.mark.slow
def test_the_nearest_parent_workspace_is_used_unless_the_variable_is_set(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import pipeline.definitions as d; print(d.defs.resources['workspace'].root)"
    assert load_in_a_new_process(code, workspace.inbox) == str(workspace.root)
    other = Path(shutil.copytree(workspace.root, tmp_path / "other", symlinks=True))
    monkeypatch.setenv(WORKSPACE, str(other))
    assert load_in_a_new_process(code, workspace.inbox) == str(other)


def test_outside_a_workspace_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkspaceError, match="simclr init"):
        import pipeline.definitions  # noqa: F401


def test_a_new_workspace_loads_before_its_first_ingest(workspace: Workspace) -> None:
    assert not (workspace.root / "data" / "raw.dvc").exists()
    definitions = build_definitions(workspace)
    dg.Definitions.validate_loadable(definitions)
    keys = {spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()}
    assert {"raw_images", "data/manifest", "data/prepared", "models/pretrained", "models/bundle"} <= keys


def test_every_definition_has_a_description(workspace: Workspace) -> None:
    definitions = build_definitions(workspace)
    for spec in definitions.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.group_name not in (None, "default"), spec.key
        assert spec.kinds, spec.key
        assert spec.owners, spec.key


def test_no_group_is_before_and_after_another(workspace: Workspace) -> None:
    """The first view of the graph shows groups alone: with a cycle, its arrows lead backwards."""
    specs = {spec.key: spec for spec in build_definitions(workspace).resolve_all_asset_specs()}
    after: dict[str, set[str]] = {str(spec.group_name): set() for spec in specs.values()}
    for spec in specs.values():
        after[str(spec.group_name)] |= {
            str(specs[dep.asset_key].group_name) for dep in spec.deps if dep.asset_key in specs
        }
    order = TopologicalSorter({group: before - {group} for group, before in after.items()}).static_order()
    steps = [group for group in order if group in ("data", "encoder", "evaluation", "release")]
    assert steps == ["data", "encoder", "evaluation", "release"]


def test_every_asset_takes_the_pool(workspace: Workspace) -> None:
    """Its single slot, held for whole runs (dagster.yaml), is what keeps two runs out of one workspace."""
    job = build_definitions(workspace).resolve_job_def("retrain")
    pools = {
        node.name: node.definition.pool for node in job.graph.nodes if isinstance(node.definition, dg.OpDefinition)
    }
    computing = {name for name in pools if pools[name] == "dvc"}
    assert {"raw_images", "validate", "pretrain", "finetune_0_01", "finetune_0_1", "export"} <= computing


@pytest.mark.seconds
def test_no_asset_starts_alone_and_none_can_be_backfilled(workspace: Workspace) -> None:
    """One decision starts a run of all of them; the tutorial says so."""
    nodes = build_definitions(workspace).resolve_asset_graph().asset_nodes
    assert nodes
    assert [node.key for node in nodes if node.automation_condition or node.is_partitioned] == []


def test_every_gate_blocks(workspace: Workspace) -> None:
    definitions = build_definitions(workspace)
    graph = definitions.resolve_asset_graph()
    checks = {key.name: graph.get_check_spec(key) for key in graph.asset_check_keys}
    suites = {f"expectations_{rule.suite}": False for rule in expectations(ValidateConfig())}
    for rule in expectations(ValidateConfig()):
        suites[f"expectations_{rule.suite}"] |= rule.severity == "critical"
    gates = checks.keys() - suites.keys() - {"approved", "embedding_drift"}
    assert gates == {
        "data_contract",
        "not_collapsed",
        "beats_baselines",
        "onnx_parity",
        "representation",
        "low_label",
        "latency_budget",
        "size_budget",
        "old_index",
    }
    blocking = gates | {name for name, blocks in suites.items() if blocks}
    assert {name for name, check in checks.items() if check.blocking} == blocking
    assert all(check.description for check in checks.values())


def test_retrain_covers_every_asset_and_takes_its_configuration(workspace: Workspace) -> None:
    definitions = build_definitions(workspace)
    job = definitions.resolve_job_def("retrain")
    everything = {spec.key for spec in definitions.resolve_all_asset_specs()}
    assert job.asset_layer.selected_asset_keys == everything
    config = RawImagesConfig(sources=["s3://bucket/new"], overrides={"pretrain.epochs": "100"})
    dg.validate_run_config(job, dg.RunConfig(ops={"raw_images": config}))
    dg.validate_run_config(job)
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job, {"ops": {"raw_images": {"config": {"source": "inbox"}}}})


def test_a_search_takes_the_pool_and_a_small_configuration(workspace: Workspace) -> None:
    job = build_definitions(workspace).resolve_job_def("tune")
    assert [node.definition.pool for node in job.graph.nodes if isinstance(node.definition, dg.OpDefinition)] == ["dvc"]
    config = {"ops": {"search_settings": {"config": {"budget": "10m", "trials": 6, "write": True}}}}
    dg.validate_run_config(job, config)
    dg.validate_run_config(job)
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(job, {"ops": {"search_settings": {"config": {"trial": 6}}}})


def test_string_selections_parse() -> None:
    """Hydra, which DVC brings, asks for an antlr4 with which they all fail, and `pip check` sees nothing.

    All but "*", for which Dagster has a way around its parser.
    """
    selection = dg.AssetSelection.from_string('kind:"pytorch" or key:"raw_images"+')
    assert isinstance(selection, dg.AssetSelection)


def test_dagster_yaml_gives_one_run_at_a_time_and_no_telemetry(workspace: Workspace) -> None:
    with dg.DagsterInstance.from_config(str(workspace.root)) as instance:
        pools = instance.get_concurrency_config().pool_config
        assert (pools.pool_granularity.value, pools.default_pool_limit) == ("run", 1)
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled


@pytest.mark.slow
def test_dg_checks_a_new_workspace(workspace: Workspace) -> None:
    environment = os.environ | {"DAGSTER_HOME": str(workspace.root)}
    done = subprocess.run(
        [executable("dg"), "check", "defs"],
        cwd=workspace.root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All definitions loaded successfully" in done.stdout


def test_a_released_encoder_becomes_overdue(workspace: Workspace) -> None:
    specs = {spec.key.to_user_string(): spec for spec in build_definitions(workspace).resolve_all_asset_specs()}
    assert specs["released_encoder"].freshness_policy == freshness(workspace)
