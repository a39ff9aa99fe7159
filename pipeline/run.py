"""Bring a workspace up to date through Dagster, in this process: what ``simclr run`` does.

The run is recorded in the workspace (its folder is DAGSTER_HOME), so the UI shows it with its logs. On the terminal
there is a line for each stage and gate, one for each epoch of a training, and a bar while a stage works.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

from deploy.plural import listed
from pipeline.costs import record
from pipeline.costs.model import Cost
from pipeline.defs import build_definitions
from pipeline.defs.expectations import MANIFEST
from pipeline.defs.failures import ADVICE, SHOWN_GATES, GateFailure
from pipeline.defs.raw_images import RawImagesConfig
from pipeline.defs.stage_assets import ForeseenFailure
from pipeline.defs.translator import RAW_IMAGES, SOURCES, asset_key
from pipeline.dvc.client import Outcome
from pipeline.dvc.project import CHAMPION, load
from pipeline.environment import RUN
from pipeline.errors import BusyError, StageFailedError
from pipeline.gates.data_contract import data_contract
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import judge
from pipeline.maintenance import disk
from pipeline.run_report import page
from pipeline.runs.dagster_internals import MAX_RETRIES_TAG
from pipeline.runs.instance import opened
from pipeline.runs.launcher import PROCESS, alive, identify, process_of, reap
from pipeline.runs.terminal import Terminal, terminal
from pipeline.workspace import Workspace

RAW_STAGE = "raw_images"
SOURCE_STAGES = {RAW_STAGE: RAW_IMAGES, "champion": SOURCES[CHAMPION]}  # no command of dvc.yaml makes them
CONTRACT = "data/manifest did not pass"


@dataclass(frozen=True)
class StageResult:
    """How one stage came to its results, and the seconds that took now."""

    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class RunOutcome:
    """A run in which every stage and gate passed; ``stages`` in the order in which they ended."""

    run_id: str
    stages: dict[str, StageResult]


def run(
    workspace: Workspace,
    stages: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    restart: bool = False,
) -> RunOutcome:
    """Ingest the sources and bring every stage up to date, or only the given stages with their gates.

    Args:
        stages: names from dvc.yaml, ``finetune`` meaning all of its matrix; ``raw_images`` is the ingest, ``champion``
            pins what is released.
        sources: what to ingest, if that is part of the run; None: what ``params.yaml`` says.
        restart: ingest what is new also if a run was interrupted, which then begins again. Otherwise it is finished
            first, and what is new comes with the next run.

    Raises:
        DvcError: an unknown stage, or a fault in dvc.yaml.
        StageFailedError: a stage failed, or a gate did not pass; what depends on it did not run.
        ServiceError: Dagster's records cannot be reached or read.
        PipelineError: the ingest failed, or another run is in progress, or another process holds the workspace.
        KeyboardInterrupt: on SIGINT and SIGTERM, when every process of the stage has ended.
    """
    selection = None if stages is None else select(workspace, stages)
    began, occupied = time.monotonic(), disk.measure_occupied(workspace)
    with opened(workspace.root) as instance, terminal() as shown:
        reap(instance)
        _refuse_second(workspace, instance)
        loggers = dg.Definitions(loggers={"terminal": _log(shown)})
        job = dg.Definitions.merge(build_definitions(workspace), loggers).resolve_job_def("retrain")
        config: dict[str, dict[str, Any]] = {"loggers": {"terminal": {}}}
        if selection is None or RAW_IMAGES in selection:
            given = RawImagesConfig(sources=None if sources is None else list(sources), restart=restart)
            config["ops"] = {RAW_STAGE: {"config": given.model_dump()}}
        run_id = str(uuid.uuid4())
        try:
            tags = {PROCESS: identify(os.getpid()), MAX_RETRIES_TAG: "0"}  # who started it here starts it again
            with _marked(run_id):
                result = job.execute_in_process(config, instance, asset_selection=selection, run_id=run_id, tags=tags)
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        except ForeseenFailure as failure:
            raise failure.error from None
        except (dg.DagsterError, GateFailure):
            failed = _failed_gates(workspace, instance, run_id)
            if not failed:
                raise
            _finish(workspace, run_id, began, occupied)
            # A broken data contract has advice in its sentence.
            more = "" if failed[-1].startswith(CONTRACT) else f"; {ADVICE}"
            raise StageFailedError(listed(failed, SHOWN_GATES, "; ") + more) from None
        _finish(workspace, run_id, began, occupied)
    return RunOutcome(run_id, dict(_results(result)))


def _refuse_second(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    """A run holds the workspace in each of its stages, and not between two of them: there, a second one would ingest
    images or change parameters under the first."""
    statuses = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    for run in filter(alive, instance.get_runs(dg.RunsFilter(statuses=statuses))):
        pid = process_of(run).pid
        raise BusyError(
            f"{workspace.root}: run {run.run_id[:8]} is in progress in process {pid}; wait until it ends, or stop it "
            f"with `kill -INT {pid}`"
        )


def _finish(workspace: Workspace, run_id: str, began: float, occupied: int) -> None:
    """Record what the whole run has cost, also one that a gate has stopped, and write its page."""
    whole = Cost(time.monotonic() - began, 0.0, disk.measure_occupied(workspace) - occupied)
    record.end(workspace.root, run_id, whole)
    page.write(workspace)


def select(workspace: Workspace, names: Sequence[str]) -> list[dg.AssetKey]:
    """The results of these stages.

    Raises:
        DvcError: there is no such stage, or dvc.yaml has a fault.
    """
    project = load(workspace.root)
    keys = []
    for name in names:
        if name in SOURCE_STAGES:
            keys.append(SOURCE_STAGES[name])
        else:
            keys += [asset_key(out.path) for stage in project.select(name) for out in stage.data]
    return keys


def _results(result: dg.ExecuteInProcessResult) -> Iterator[tuple[str, StageResult]]:
    for event in result.get_asset_materialization_events():
        metadata: dict[str, Any] = {name: value.value for name, value in event.materialization.metadata.items()}
        if "dvc/stage" in metadata:
            yield metadata["dvc/stage"], StageResult(Outcome(metadata["dvc/outcome"]), metadata["dvc/seconds"])


def _failed_gates(workspace: Workspace, instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """A sentence for each gate that did not pass. The data contract is one, however many of its checks failed."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    checks = [entry.get_dagster_event().asset_check_evaluation_data for entry in entries]
    stops = dg.AssetCheckSeverity.ERROR
    failed = [check for check in checks if check.blocking and not check.passed and check.severity == stops]
    others = [check for check in failed if check.asset_key != MANIFEST]
    said = [
        f"{check.asset_key.to_user_string()} did not pass {check.check_name}: {check.description}" for check in others
    ]
    if len(others) < len(failed):
        contract = judge(data_contract, Evidence(workspace))
        if contract.passed:  # a check of it could not be evaluated
            return [f"{CONTRACT} {one.check_name}: {one.description}" for one in failed]
        said.append(f"{CONTRACT} data_contract: {contract.description}")
    return said


def _log(shown: Terminal) -> dg.LoggerDefinition:
    """What assets and gates say with ``context.log``, without Dagster's own events."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            meta = record.__dict__.get("dagster_meta", {})
            if not meta.get("dagster_event"):
                line = meta.get("orig_message", record.getMessage())
                shown.line(line)

    @dg.logger
    def definition(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("simclr.run", logging.INFO)
        logger.addHandler(Lines())
        return logger

    return definition


@contextmanager
def _marked(run_id: str) -> Iterator[None]:
    """Processes that are started in the block belong to the run, and can be found should this one be killed."""
    before = os.environ.get(RUN)
    os.environ[RUN] = run_id
    try:
        yield
    finally:
        del os.environ[RUN]
        if before is not None:
            os.environ[RUN] = before
