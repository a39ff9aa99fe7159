"""The asset `raw_images`: what ``simclr ingest`` does, so that new images and new settings can come from the UI."""

import time
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from deploy.plural import counted
from pipeline.costs import record
from pipeline.costs.model import Cost
from pipeline.defs.approval import RELEASED
from pipeline.defs.kept import keep_state
from pipeline.defs.launchpad import LaunchConfig, launch_config
from pipeline.defs.retraining import DATA
from pipeline.defs.stage_assets import foreseen
from pipeline.defs.translator import POOL, RAW_IMAGES
from pipeline.dvc.project import RAW, read_tracked
from pipeline.dvc.purged import find_interrupted_purge
from pipeline.errors import PipelineError, UnfinishedError
from pipeline.maintenance import disk
from pipeline.maintenance.storage import require_space
from pipeline.params import complete, read
from pipeline.preflight import requirements
from pipeline.preflight.images import ingested
from pipeline.preflight.minimums import warnings
from pipeline.recipes.recipe import is_auto
from pipeline.validation.verdict.overrides import settle
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.ingest.found import News

    RawImagesConfig = LaunchConfig  # its fields for the blocks of params.yaml exist only at run time
else:
    RawImagesConfig = launch_config("RawImagesConfig")

SENSOR = "dagster/sensor_name"  # the tag that Dagster gives the runs of a sensor


@dg.asset(
    key=RAW_IMAGES,
    group_name="data",
    kinds={"dvc", "source"},
    owners=["team:data"],
    pool=POOL,
    description="Every image ever ingested, byte for byte, in one frozen batch for each time something was new.",
    metadata={"dvc/path": RAW},
)
def raw_images(
    context: dg.AssetExecutionContext, config: RawImagesConfig, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[None]:
    """Write the settings into params.yaml, strike out expired decisions, then ingest what is new.

    With nothing new the data version stays.
    """
    from pipeline.ingest.found import News
    from pipeline.ingest.ingest import ingest  # here, because a code location has to load quickly and it brings fsspec
    from pipeline.ingest.unfinished import begin, find_interrupted, record_attempt
    from pipeline.retraining import completed

    began, occupied = time.monotonic(), disk.measure_occupied(workspace)
    with foreseen():
        _complete_purge(context, workspace)
        if is_auto(workspace.params.read_text(encoding="utf-8")):
            from pipeline.proposal.choose import choose_at_first_run

            context.log.info("raw_images: looking at the images and measuring this machine, to choose the parameters")
            for chosen in choose_at_first_run(workspace):
                context.log.info(f"raw_images: {chosen}")
        for added in complete(workspace):
            context.log.info(f"raw_images: {added}")
        requirements.apply(workspace, config.settings())
        for expired in settle(workspace.overrides, date.today()):
            context.log.info(f"raw_images: no longer {expired.action}: {expired.sha256[:12]} ({expired.why})")
        completed.begin(workspace, context.run.run_id)
        require_space(workspace)
        sources = config.sources or read(workspace).retraining.sources
        by_sensor = SENSOR in context.run.tags  # only it comes again in a minute; a person or a script does not
        wait = None if by_sensor else lambda line: context.log.info(f"raw_images: {line}")
        unfinished, result = None if config.restart else find_interrupted(workspace), None
        try:
            age = 60 * read(workspace).retraining.full_listing_minutes if by_sensor else 0.0
            result = ingest(workspace, sources, wait, unfinished, age)
        except UnfinishedError as error:
            assert unfinished is not None
            record_attempt(workspace, unfinished)
            context.log.info(f"raw_images: {error}")
        else:
            for line in (*result.understood, result):
                context.log.info(f"raw_images: {line}")
            for warning in warnings(workspace, ingested(workspace)):
                context.log.warning(f"raw_images: {warning}")
        selected = context.run.asset_selection  # empty: all
        if not selected or RELEASED in selected:
            begin(workspace)
        _sign(context, workspace, by_sensor)
        tracked = read_tracked(workspace.root, RAW)
        keep_state(context, workspace)
        spent = Cost(time.monotonic() - began, 0.0, disk.measure_occupied(workspace) - occupied)
        news = News(result.new_images, result.new_labels) if result else News(0, 0)
        _expect(context, workspace, news, spent)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(tracked.md5),
        metadata={
            "new_images": result.new_images if result else 0,
            "batch": (result.batch or "nothing new") if result else "waits for the interrupted run",
            "dvc/size": tracked.size,
            "dvc/md5": tracked.md5,
        },
    )


def _complete_purge(context: dg.AssetExecutionContext, workspace: Workspace) -> None:
    if find_interrupted_purge(workspace.root):
        from pipeline.purge.purge import purge  # brings polars

        for done in purge(workspace, (), "", ""):
            context.log.warning(f"raw_images: completed the purge of {counted(len(done.hashes), 'content')}")


def _expect(context: dg.AssetExecutionContext, workspace: Workspace, news: "News", spent: Cost) -> None:
    """Record what the run is expected to cost, and say it; a run whose steps were never measured has no expectation."""
    from pipeline.plan.plan import RAW_STAGE, foresee  # brings what looks at images

    run, plan = context.run.run_id, foresee(workspace, news)
    record.begin(workspace.root, run, plan.costs if plan else {})
    record.note(workspace.root, run, RAW_STAGE, spent)
    if plan:
        context.log.info(f"raw_images: the run is expected to take {plan.total}")
        for note in plan.shortages:
            context.log.warning(f"raw_images: {note}")


def _sign(context: dg.AssetExecutionContext, workspace: Workspace, by_sensor: bool) -> None:
    """Write on the run which images it trains on, so that no trigger starts another one for the same: the sensor as it
    sees them, by the folders that have changed."""
    from pipeline.retraining.inbox import survey  # brings fsspec too

    try:
        config = read(workspace).retraining
        digest = survey(workspace, config.sources, 60 * config.full_listing_minutes if by_sensor else None).digest
    except PipelineError as error:  # a bucket that is away, and that this run may not even read
        context.log.warning(f"raw_images: the run does not know which images of retraining.sources it has: {error}")
    else:
        context.instance.add_run_tags(context.run.run_id, {DATA: digest})
