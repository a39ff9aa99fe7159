"""The Dagster assets of a workspace, generated from its dvc.yaml: one op for each stage, one asset for each result.

Materializing an asset is ``dvc repro --single-item`` of its stage, so a known one is restored; an unchanged one is not
even asked for. The data version of an asset is DVC's hash of it.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import dagster as dg

from deploy.failure import ADVICE, describe
from pipeline.costs import record
from pipeline.costs.model import Cost
from pipeline.defs.failures import BUSY
from pipeline.defs.kept import keep_state
from pipeline.defs.pages import show
from pipeline.defs.translator import asset_key, asset_spec, charts, facts, op_name, pool
from pipeline.dvc.client import Outcome, Reproduction, repro
from pipeline.dvc.project import Project, Stage, load, read_outs
from pipeline.dvc.unchanged import Unchanged
from pipeline.errors import FORESEEN, BusyError
from pipeline.ingest.unfinished import DISTILL, PRETRAIN
from pipeline.maintenance import disk
from pipeline.run_report import energy
from pipeline.runs import terminal
from pipeline.workspace import Workspace
from simclr_core.compute.record import read_ran
from simclr_core.params import flatten
from simclr_core.pretraining.unfinished import remove_recorded
from simclr_core.reporter import read_timing, record_timing


def dvc_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """The assets of every stage of the workspace, in the order of dvc.yaml.

    Raises:
        DvcError: dvc.yaml has a fault.
    """
    project, unchanged = load(workspace.root), Unchanged(workspace.root)
    return [stage_assets(workspace, project, stage, unchanged) for stage in project.stages]


def stage_assets(workspace: Workspace, project: Project, stage: Stage, unchanged: Unchanged) -> dg.AssetsDefinition:
    """The results of one stage, materialized together by one op."""
    specs = [asset_spec(project, stage, out) for out in stage.data]

    @dg.multi_asset(name=op_name(stage), specs=specs, pool=pool(stage), op_tags={"dvc/stage": stage.name})
    def results(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        with foreseen():
            reproduction = bring_up_to_date(context, workspace, stage, unchanged)
        context.log.info(f"{stage.name}: {reproduction.outcome} in {reproduction.seconds:.1f} s")
        if reproduction.outcome is not Outcome.SKIPPED:
            keep_state(context, workspace)
        recorded = read_outs(workspace.root, stage)
        seen = pictures(workspace, stage, context.instance)
        charted = numbers(workspace, stage)
        ran = read_ran(workspace.root, stage.name)
        for out in stage.data:
            record, file = recorded[out.path], workspace.root / out.path
            yield dg.MaterializeResult(
                asset_key=asset_key(out.path),
                data_version=dg.DataVersion(record.md5),
                metadata={
                    **({file.stem: show(context.instance, file)} if file.suffix == ".html" else {}),
                    **seen,
                    **charted,
                    **({f"ran/{name}": value for name, value in ran.numbers.items()} if ran else {}),
                    "dvc/stage": stage.name,
                    "dvc/outcome": reproduction.outcome.value,
                    "dvc/seconds": round(reproduction.seconds, 3),
                    "dvc/size": record.size,
                    "dvc/md5": record.md5,
                },
            )

    return results


def bring_up_to_date(
    context: dg.AssetExecutionContext, workspace: Workspace, stage: Stage, unchanged: Unchanged
) -> Reproduction:
    """``dvc repro``, unless there is nothing to do."""
    began = time.monotonic()
    if unchanged.has(stage, context.run.run_id):
        return Reproduction(Outcome.SKIPPED, time.monotonic() - began)
    before, occupied = energy.read(), disk.measure_occupied(workspace)
    try:
        done = repro(
            workspace.root,
            stage.name,
            lambda message: context.log.info(f"{stage.name}: {message}"),
            on_tick=lambda tick: terminal.show(stage.name, tick),
        )
    finally:
        terminal.show(stage.name, None)
    if done.outcome is not Outcome.SKIPPED:
        unchanged.forget()
    if stage.name in (PRETRAIN, DISTILL):
        remove_recorded(workspace.root)
    if done.outcome is Outcome.EXECUTED:
        added = disk.measure_occupied(workspace) - occupied
        record.note(workspace.root, context.run.run_id, stage.name, Cost(done.seconds, done.memory_bytes, added))
        numbers = {"whole_seconds": done.seconds, "memory_megabytes": done.memory_bytes / 1e6}
        numbers["disk_megabytes"] = added / 1e6
        if (joules := energy.subtract(before, energy.read())) is not None:
            numbers["joules"] = joules
        name = stage.name.replace("@", "-")
        record_timing(name, workspace=workspace.root, **{**read_timing(name, workspace.root), **numbers})
    return done


class ForeseenFailure(dg.Failure):
    """A failure that the UI shows as one line; ``error`` is what it is to a caller of Python."""

    def __init__(self, error: Exception) -> None:
        said = describe(error) if isinstance(error, OSError) else str(error)
        super().__init__(said, {BUSY: True} if isinstance(error, BusyError) else None, allow_retries=False)
        self.error = error


@contextmanager
def foreseen() -> Iterator[None]:
    """Show an error that says what to do as that, one line in the UI; any other keeps its traceback."""
    try:
        yield
    except FORESEEN as error:
        raise ForeseenFailure(error) from None
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        raise ForeseenFailure(error) from None


def numbers(workspace: Workspace, stage: Stage) -> dict[str, float]:
    """Those of the stage's numbers that are to be drawn over time, in the order that its ``meta.dagster`` gives them,
    and its timings if it was computed on this machine."""
    found: dict[str, float] = {}
    for path in [*(out.path for out in stage.outs if out.kind == "metric"), *facts(stage)]:
        found |= _numbers(_read_json(workspace.root / path))
    drawn = {name: found[name] for pattern in charts(stage) for name in found if fnmatchcase(name, pattern)}
    timings = _read_json(workspace.scratch / "timings" / f"{stage.name.replace('@', '-')}.json")
    return drawn | {f"timing/{name}": number for name, number in _numbers(timings).items()}


def pictures(workspace: Workspace, stage: Stage, instance: dg.DagsterInstance) -> dict[str, dg.MetadataValue]:
    """The stage's PNG plots, shown on the page of each of its assets."""
    plots = [workspace.root / out.path for out in stage.outs if out.kind == "plot"]
    files = [file for plot in plots for file in (sorted(plot.rglob("*.png")) if plot.is_dir() else [plot])]
    return {file.stem: show(instance, file) for file in files if file.suffix == ".png" and file.is_file()}


def _read_json(path: Path) -> Any:
    """Nothing where there is no JSON: the gate reports a broken report."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _numbers(report: Any) -> dict[str, float]:
    """Every finite number in nested objects, named by the keys that lead to it: ``simclr/knn_top1``."""
    found = flatten(report, separator="/")
    return {name: value for name, value in found if isinstance(value, int | float) and math.isfinite(value)}
