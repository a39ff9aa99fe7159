"""The two ends of a retraining, the champion and the released encoder, and the jobs that switch between releases."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from pipeline.defs.approval import APPROVED, RELEASED, approval_check, approval_evaluation
from pipeline.defs.pages import show
from pipeline.defs.stage_assets import foreseen
from pipeline.defs.translator import POOL, RAW_IMAGES, SOURCES, asset_key
from pipeline.dvc.project import CHAMPION, read_tracked
from pipeline.errors import FORESEEN
from pipeline.gates.all_gates import verdicts
from pipeline.ingest import unfinished
from pipeline.release import release
from pipeline.release.approval import Held
from pipeline.release.champion import pin
from pipeline.release.facts import comparison
from pipeline.release.serving import Released
from pipeline.run_report import page
from pipeline.waiting import Candidate, candidate_page
from pipeline.workspace import Workspace

DATA_VERSION = "dagster/data_version"
SHORT = 12  # digits of a hash that people compare


@dg.asset(
    key=SOURCES[CHAMPION],
    deps=[RAW_IMAGES],
    group_name="production",
    kinds={"dvc", "git"},
    owners=["team:ml"],
    pool=POOL,
    description="The released encoder that the next one has to beat; it changes only before a run that computes.",
    metadata={"dvc/path": CHAMPION},
)
def champion(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[None]:
    """Pin what is released now, after the images are there and before anything is computed from them."""
    with foreseen():
        pinned = pin(workspace)
    context.log.info(f"champion: {pinned.version or 'none yet'}")
    record = read_tracked(workspace.root, CHAMPION)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(record.md5),
        metadata={
            "version": pinned.version or "none yet",
            "commit": (pinned.commit or "none yet")[:SHORT],
            "bundle": (pinned.bundle or "none yet")[:SHORT],
            "dvc/size": record.size,
            "dvc/md5": record.md5,
        },
    )


@dg.multi_asset(
    name="released_encoder",
    specs=[
        dg.AssetSpec(
            RELEASED,
            deps=[asset_key("models/bundle"), asset_key("reports/compare.json")],
            group_name="release",
            kinds={"git", "dvc", "onnx"},
            owners=["team:ml"],
            description="The encoder that servers load: pushed, verified in a fresh clone, tagged, in the registry.",
            skippable=True,
        )
    ],
    check_specs=[APPROVED],
    pool=POOL,
)
def released_encoder(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Release the candidate, once all gates have passed, or let it wait for a person; a materialization for each time
    that another one serves."""
    with foreseen():
        passed, said = _judged(context)
        gates = {name: str(one) for name, one in verdicts(workspace).items()}
        done = release.offer(workspace, passed, {name: said.get(name, one) for name, one in gates.items()})
        unfinished.end(workspace)
    context.log.info(f"released_encoder: {done}")
    if isinstance(done, Released) and _latest(context.instance) != (done.bundle, done.version):
        version = dg.DataVersion(done.bundle)
        report = {"report": show(context.instance, page.write(workspace))}
        yield dg.MaterializeResult(
            asset_key=RELEASED, data_version=version, metadata={**_describe(workspace, done), **report}
        )
    if isinstance(done, Held) and done.candidate:
        _write_page(context, workspace, done.candidate)
    yield approval_check(done)


def _write_page(context: dg.AssetExecutionContext, workspace: Workspace, waits: Candidate) -> None:
    """What a person looks at, unless it is there; without it a person can decide by the gates."""
    if not candidate_page(workspace.root, waits.name).exists():
        try:
            from pipeline.run_report import candidate  # here, because a code location has to load quickly

            candidate.write(workspace, waits)
        except (*FORESEEN, OSError) as error:
            context.log.warning(f"released_encoder: the page about candidate {waits.name} lacks its pictures: {error}")


def record_decision(workspace: Workspace, done: Released | Held) -> None:
    """Show what a person has decided, outside of a run, on the asset's page.

    Raises:
        ServiceError: Dagster's records cannot be reached or read.
    """
    from pipeline.runs.instance import opened  # with SQLAlchemy and Alembic, which definitions would load each time

    with opened(workspace.root) as instance:
        if isinstance(done, Released) and _latest(instance) != (done.bundle, done.version):
            instance.report_runless_asset_event(_materialization(workspace, done))
        instance.report_runless_asset_event(approval_evaluation(done))


class PromoteConfig(dg.Config):
    """Which version to serve."""

    version: str = Field(description="A released version, such as v0.0.3; the job release_list names them.")


class RollbackConfig(dg.Config):
    """Where to go back to."""

    version: str | None = Field(default=None, description="A released version; default: the one before.")


class DiffConfig(dg.Config):
    """Two released versions."""

    one: str = Field(description="A released version, such as v0.0.1.")
    other: str = Field(description="Another one, such as v0.0.2.")


@dg.op
def promote_version(
    context: dg.OpExecutionContext, config: PromoteConfig, workspace: dg.ResourceParam[Workspace]
) -> None:
    """Let a released version serve."""
    with foreseen():
        _report(context, workspace, release.promote(workspace, config.version))


@dg.op
def roll_back(context: dg.OpExecutionContext, config: RollbackConfig, workspace: dg.ResourceParam[Workspace]) -> None:
    """Let an earlier version serve again."""
    with foreseen():
        _report(context, workspace, release.rollback(workspace, config.version))


@dg.op
def list_releases(context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace]) -> None:
    """Say which versions there are."""
    with foreseen():
        _show(context, str(release.list_versions(workspace)))


@dg.op
def diff_releases(context: dg.OpExecutionContext, config: DiffConfig, workspace: dg.ResourceParam[Workspace]) -> None:
    """Say what changed between two versions."""
    with foreseen():
        _show(context, str(release.diff(workspace, config.one, config.other)))


# These jobs wait for no pool: a rollback must not queue behind a training of hours. They do not touch what it computes.
@dg.job(description="Serve a released version, without asking the gates again.")
def promote() -> None:
    promote_version()


@dg.job(description="Serve the version before the present one, or the one that is named. It takes seconds.")
def rollback() -> None:
    roll_back()


@dg.job(description="Every version with its numbers, the one that serves, and the rejected candidates with reasons.")
def release_list() -> None:
    list_releases()


@dg.job(description="What changed between two versions: images, parameters, accuracies, code.")
def release_diff() -> None:
    diff_releases()


JOBS = (promote, rollback, release_list, release_diff)


def _judged(context: dg.AssetExecutionContext) -> tuple[set[str], dict[str, str]]:
    """The gates that, by their last word in this run or in the one that it continues, do not stop the candidate; and
    the last word of each."""
    runs = {context.run.run_id, context.run.parent_run_id, context.run.root_run_id} - {None}
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    entries = [entry for run in runs if run for entry in context.instance.all_logs(run, of_type=kind)]
    last = {}
    for entry in sorted(entries, key=lambda entry: entry.timestamp):
        check = entry.get_dagster_event().asset_check_evaluation_data
        last[check.check_name] = check
    said = {name: check.description or ("passed" if check.passed else "refused") for name, check in last.items()}
    outcomes = {name: check.metadata["verdict"].value for name, check in last.items() if "verdict" in check.metadata}
    sentences = {
        name: one if one.startswith(outcomes.get(name, "")) else f"{outcomes[name]}: {one}"
        for name, one in said.items()
    }
    let_pass = {name for name, one in last.items() if one.passed or one.severity != dg.AssetCheckSeverity.ERROR}
    return let_pass, sentences


def _latest(instance: dg.DagsterInstance) -> tuple[str | None, object]:
    """Bundle and version of the latest materialization: what the UI says."""
    event = instance.get_latest_materialization_event(RELEASED)
    latest = event.asset_materialization if event else None
    if latest is None:
        return None, None
    version = latest.metadata.get("version")
    return (latest.tags or {}).get(DATA_VERSION), version.value if version else None


def _describe(workspace: Workspace, done: Released) -> dict[str, dg.MetadataValue | str | float]:
    about = release.describe(workspace, done.version)
    return {
        "version": done.version,
        "before": done.before or "none",
        "candidate and champion": dg.MetadataValue.md(comparison(about)),
        **about.metrics,
        **{f"gates/{name}": said for name, said in about.gates.items()},  # one long text would be hidden behind a click
        **({"notes": dg.MetadataValue.md("\n".join(f"- {note}" for note in done.notes))} if done.notes else {}),
        "roll back with": dg.MetadataValue.md("`simclr release rollback`, or the job `rollback`"),
        "commit": done.commit[:SHORT],
        "bundle": done.bundle[:SHORT],
        "registry": dg.MetadataValue.path(str(done.registry)),
    }


def _report(context: dg.OpExecutionContext, workspace: Workspace, done: Released) -> None:
    """Show the switch on the asset's page too: it is what serves from now on."""
    _show(context, str(done))
    if _latest(context.instance) != (done.bundle, done.version):
        context.log_event(_materialization(workspace, done))


def _materialization(workspace: Workspace, done: Released) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(RELEASED, metadata=_describe(workspace, done), tags={DATA_VERSION: done.bundle})


def _show(context: dg.OpExecutionContext, text: str) -> None:
    context.log.info(text)
    context.add_output_metadata({"result": dg.MetadataValue.md(f"```\n{text}\n```")})
