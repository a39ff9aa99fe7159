"""The assets and jobs of a release, as Dagster runs them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from deploy.artifact import identity
from pipeline import waiting
from pipeline.defs.approval import RELEASED
from pipeline.defs.release import (
    JOBS,
    PromoteConfig,
    RollbackConfig,
    champion,
    record_decision,
    released_encoder,
)
from pipeline.defs.translator import asset_key
from pipeline.dvc.project import read_tracked
from pipeline.gates import all_gates
from pipeline.params import override
from pipeline.release.approval import approve, reject
from pipeline.release.registry import open_registry
from pipeline.runs.instance import opened
from pipeline.workspace import Workspace
from tests.pipeline.release.conftest import git, tags

pytestmark = pytest.mark.slow  # they begin with a workspace that has a release

CANDIDATE = [dg.AssetSpec(asset_key(path)) for path in ("models/bundle", "reports/compare.json")]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def gate(verdict: bool, name: str = "representation") -> dg.AssetChecksDefinition:
    @dg.asset_check(name=name, asset=asset_key("reports/compare.json"), blocking=True)
    def check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=verdict)

    return check


def materialize(
    workspace: Workspace, instance: dg.DagsterInstance, *gates: dg.AssetChecksDefinition
) -> list[dg.AssetMaterialization]:
    @dg.multi_asset(specs=CANDIDATE)
    def stages() -> Iterator[dg.MaterializeResult[Any]]:
        for spec in CANDIDATE:
            yield dg.MaterializeResult(asset_key=spec.key)

    result = dg.materialize(
        [stages, released_encoder, *gates], instance=instance, resources={"workspace": workspace}, raise_on_error=False
    )
    return result.asset_materializations_for_node("released_encoder") if result.success else []


def run(workspace: Workspace, instance: dg.DagsterInstance, name: str, config: dg.RunConfig | None = None) -> Any:
    definitions = dg.Definitions(jobs=list(JOBS), resources={"workspace": workspace})
    job = definitions.resolve_job_def(name)
    result = job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    causes = [error.cause or error for error in errors if error]
    return result, "\n".join(cause.message for cause in causes)


def reported(materialization: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in materialization.metadata.items()}


def test_the_champion_is_versioned_by_dvc(computed: Workspace) -> None:
    result = dg.materialize([champion], resources={"workspace": computed})
    (materialization,) = result.asset_materializations_for_node("champion")
    assert (materialization.tags or {})["dagster/data_version"] == read_tracked(computed.root, "models/champion").md5
    assert reported(materialization)["version"] == "none yet"


@pytest.mark.slow
def test_each_change_of_the_served_encoder_is_materialized(third: Workspace, instance: dg.DagsterInstance) -> None:
    (first,) = materialize(third, instance)
    shown = reported(first)
    assert (shown["version"], shown["before"]) == ("v0.0.3", "v0.0.2")
    assert (shown["images"], shown["knn_top1"]) == (300, 73.0)  # numbers, which the UI draws over time
    assert "| knn | 70.0 | 69.0 | 2 | 1 |" in shown["candidate and champion"]
    assert "simclr release rollback" in shown["roll back with"]
    assert (first.tags or {})["dagster/data_version"] == identity(third.root / "models" / "bundle")
    assert materialize(third, instance) == []

    result, _ = run(third, instance, "rollback")
    assert result.success
    latest = instance.get_latest_materialization_event(RELEASED)
    assert latest is not None
    assert latest.asset_materialization is not None
    assert reported(latest.asset_materialization)["version"] == "v0.0.2"
    assert materialize(third, instance) == []  # a run with nothing new leaves the rollback as it is
    assert open_registry(third).current() == "v0.0.2"

    result, _ = run(third, instance, "promote", dg.RunConfig({"promote_version": PromoteConfig(version="v0.0.1")}))
    assert result.success
    assert open_registry(third).current() == "v0.0.1"
    for name, config in (("release_list", None), ("release_diff", {"one": "v0.0.1", "other": "v0.0.3"})):
        result, _ = run(third, instance, name, config and dg.RunConfig({"diff_releases": {"config": config}}))
        assert result.success


def test_a_release_whose_last_step_was_not_recorded_is_shown_by_the_next_run(
    released: Workspace, instance: dg.DagsterInstance
) -> None:
    (only,) = materialize(released, instance)
    assert reported(only)["version"] == "v0.0.2"
    assert materialize(released, instance) == []


def test_a_failed_gate_blocks_the_release_until_it_passes(computed: Workspace, instance: dg.DagsterInstance) -> None:
    assert materialize(computed, instance, gate(False)) == []
    assert tags(computed) == []
    candidate = identity(computed.root / "models" / "pretrained")[:12]
    open_registry(computed).reject(candidate, "representation", "worse", "run 1", {})
    assert materialize(computed, instance) == []  # going around the gate
    assert materialize(computed, instance, gate(True, "another")) == []
    assert tags(computed) == []
    (materialization,) = materialize(computed, instance, gate(True))
    assert reported(materialization)["version"] == "v0.0.1"


def test_a_release_records_what_each_gate_said(computed: Workspace, instance: dg.DagsterInstance) -> None:
    assert materialize(computed, instance, gate(False, "size_budget")) == []
    open_registry(computed).reject(rejected_name(computed), "size_budget", "9 MB, over the limit", "run", {})
    (released,) = materialize(computed, instance, gate(True, "size_budget"))
    message = git(computed.root, "log", "-1", "--format=%B", reported(released)["commit"])
    card = (open_registry(computed).root / "releases" / "v0.0.1.md").read_text()
    facts = json.loads((open_registry(computed).root / "releases" / "v0.0.1.json").read_text())
    assert facts["gates"].keys() == {gate.__name__ for gate in all_gates.GATES} | {"size_budget, before"}
    assert facts["gates"]["size_budget"] == "passed"
    assert facts["gates"]["low_label"].startswith("not judged: ")  # these stages write no reports of fine-tuning
    assert facts["gates"]["data_contract"].startswith(("passed: ", "not applicable: "))
    for name, said in facts["gates"].items():
        assert f"Gate {name}: {said}\n" in message
        assert f"- {name}: {said}\n" in card
        assert reported(released)[f"gates/{name}"] == said
    assert "- size_budget, before: refused, overridden since: 9 MB, over the limit" in card


def test_a_candidate_that_waits_is_a_warning_of_the_asset_until_a_person_decides(
    third: Workspace, instance: dg.DagsterInstance
) -> None:
    override(third, {"gates.approval": "required"})
    assert materialize(third, instance, gate(True)) == []
    (waits,) = evaluations(instance)
    assert (waits.passed, waits.severity, waits.blocking) == (False, dg.AssetCheckSeverity.WARN, False)
    (candidate,) = waiting.waiting(third.root / "registry")
    assert f"candidate {candidate.name} waits for a person until" in str(waits.description)
    assert "What the gates say" in waiting.candidate_page(third.root, candidate.name).read_text()
    assert waits.metadata["look and decide"].value == f"[candidate and champion](/candidates/{candidate.name})"
    done = approve(third, candidate.name, "Ada", "looks good")
    record_decision(third, done)
    with opened(third.root) as own:
        (decided,) = evaluations(own)
        latest = own.get_latest_materialization_event(RELEASED)
    assert decided.passed
    assert str(decided.description).startswith("v0.0.3 serves; approved by Ada at ")
    assert latest is not None
    assert latest.asset_materialization is not None
    assert reported(latest.asset_materialization)["version"] == "v0.0.3"
    materialize(third, instance)
    assert evaluations(instance)[-1].passed


def test_a_rejection_is_a_warning_too(third: Workspace, instance: dg.DagsterInstance) -> None:
    override(third, {"gates.approval": "required"})
    materialize(third, instance)
    (candidate,) = waiting.waiting(third.root / "registry")
    record_decision(third, reject(third, candidate.name, "Ada", "a broken lens"))
    with opened(third.root) as own:
        (decided,) = evaluations(own)
    assert not decided.passed
    assert "rejected by Ada" in str(decided.description)
    assert materialize(third, instance) == []
    assert "a broken lens; it is not released" in str(evaluations(instance)[-1].description)


def evaluations(instance: dg.DagsterInstance) -> list[Any]:
    """Of the check ``approved``, the oldest first."""
    key = dg.AssetCheckKey(RELEASED, "approved")
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    events = [record.event.get_dagster_event() for record in reversed(records) if record.event]
    return [event.asset_check_evaluation_data for event in events if event]


def rejected_name(workspace: Workspace) -> str:
    return identity(workspace.root / "models" / "pretrained")[:12]


def test_wrong_input_of_a_job_is_refused_with_the_allowed_values(
    released: Workspace, instance: dg.DagsterInstance
) -> None:
    config = dg.RunConfig({"promote_version": PromoteConfig(version="v7.0.0")})
    result, messages = run(released, instance, "promote", config)
    assert not result.success
    assert "choose from: v0.0.1, v0.0.2" in messages
    result, _ = run(released, instance, "rollback", dg.RunConfig({"roll_back": RollbackConfig(version="v0.0.1")}))
    assert result.success
    with pytest.raises(dg.DagsterInvalidConfigError):
        run(released, instance, "promote")


def test_a_switch_does_not_wait_for_a_training() -> None:
    pools = {
        node.definition.pool for job in JOBS for node in job.graph.nodes if isinstance(node.definition, dg.OpDefinition)
    }
    assert pools == {None}
    assert champion.op.pool == released_encoder.op.pool == "dvc"
    assert all(job.description for job in JOBS)
    assert {job.name for job in JOBS} == {"promote", "rollback", "release_list", "release_diff"}


def test_importing_the_definitions_loads_no_heavy_library() -> None:
    code = "import sys, pipeline.defs.release; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"torch", "onnxruntime", "pandas", "pyarrow", "dvc", "great_expectations"} & set(done.stdout.split())
