"""Validate: hold every raw image, and the set of them, against the data contract.

    python -m pipeline.validation        in a workspace, after ingest

Writes data/manifest (see ``manifest``) and reports/: validation.json, validation.html, data_docs.html and
quarantine.png. A set that breaks the contract is a result, not an error: the reports say ``passed: false``, and what
comes next refuses to start.
"""

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from PIL import Image

from deploy.artifact import publish, write_atomically
from deploy.plural import counted
from pipeline.config import PrepareConfig, ValidateConfig
from pipeline.ingest.raw import batches, read_tar, tars
from pipeline.params import Params, read
from pipeline.reports import DriftVerdict, ImageCounts, ValidationReport
from pipeline.stage import run_stage
from pipeline.validation import groups, manifest
from pipeline.validation.drift.drift import Drift
from pipeline.validation.drift.drift import judge as judge_drift
from pipeline.validation.evaluate import evaluate, tables
from pipeline.validation.expectations import NEAR_LABELS, expectations
from pipeline.validation.probe.known_facts import KnownFacts
from pipeline.validation.probe.pool import isolated_map
from pipeline.validation.probe.probe import thumbnail
from pipeline.validation.probe.scan import Limits, scan, tar_name
from pipeline.validation.report import data_docs
from pipeline.validation.report.report import ACCEPTED, gallery, render, shown, summary
from pipeline.validation.report.thumbnails import choose, contact_sheet
from pipeline.validation.report.thumbnails import read as read_thumbnail
from pipeline.validation.tables import some
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.validation.verdict.verdict import Policy, judge
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.compute.settings import FILE, Probing, read_compute
from simclr_core.reporter import emit, record_timing

DRIFT: dict[DriftVerdict, str] = {
    "none": "no drift",
    "drift": "drift",
    "broken": "a broken batch",
    "not judged": "drift was not checked",
}


def run(workspace: Workspace) -> None:
    """Write the manifest and the reports.

    Raises:
        ValidationError: there is nothing to validate, or no worker can start.
        OverridesError: overrides.csv has faults.
    """
    started = time.monotonic()
    params = read(workspace)
    config = params.validate
    decisions = overrides.read(workspace.overrides)
    probing = _probing(workspace, config)
    limits = _limits(config, params.prepare)
    files, facts = scan(workspace.raw, workspace.facts, limits=limits, engine=probing.engine, address=probing.address)
    scanned = time.monotonic() - started
    images = files.height
    judged = judge(
        files,
        facts,
        _policy(config),
        allowed=overrides.find_allowed(decisions),
        denied=overrides.find_denied(decisions),
    )
    del files
    workspace.scratch.mkdir(exist_ok=True)
    with (
        publish(workspace.manifest, replace=True) as folder,
        TemporaryDirectory(prefix="validate-", dir=workspace.scratch) as waiting,
        TemporaryDirectory(prefix="validate-", dir=workspace.scratch) as written,
    ):
        rows = manifest.build(judged, facts.portions(), Path(waiting))
        manifest.write(folder, manifest.spool(rows, Path(written)))
        del judged, rows
        table = manifest.spooled(Path(written))
        groups.write(folder, groups.find_groups(workspace.raw, table))
        write_reports = _report(workspace, table, facts, decisions, params)
    write_reports()  # once the manifest is there: a kill before that leaves the earlier results as they were
    seconds = time.monotonic() - started
    record_timing("validate", workspace=workspace.root, seconds=seconds, images_per_second=images / scanned)


def _report(
    workspace: Workspace,
    table: pl.LazyFrame,
    facts: KnownFacts,
    decisions: Sequence[Override],
    params: Params,
) -> Callable[[], None]:
    """Hold the manifest against the contract; returns what writes what came of it."""
    config = params.validate
    drift = judge_drift(table, **dict(config.drift))
    evaluation = evaluate(expectations(config), tables(table, drift))
    result = summary(table, evaluation.outcomes, drift)
    thumbnails = dict(_thumbnails(workspace, shown(table), facts, params))
    html = render(result, table, drift, thumbnails, config.near_duplicates.distance)
    pages: dict[str, str | bytes] = {
        "validation.html": html,
        "data_docs.html": data_docs.render(evaluation.results),
        "quarantine.png": _contact_sheet(result.images, gallery(table), thumbnails),
    }
    without_effect = overrides.without_effect(decisions, some(table, "sha256", "reasons"), overruled=())

    def write() -> None:
        for name, content in pages.items():
            write_atomically(workspace.reports / name, content)
        reports.write(workspace.root, result)
        _tell(result, drift, without_effect)

    return write


def _probing(workspace: Workspace, config: ValidateConfig) -> Probing:
    """Where images are probed. ``validate.engine`` of params.yaml, which said so once, holds for this version still."""
    found = read_compute(workspace.root).probing
    if config.engine == "local" or found.engine == config.engine:
        return found
    print(
        f"validate: validate.engine: {config.engine} in params.yaml has moved to {FILE}, as validate: {{engine: ray}}"
    )
    return Probing(engine=config.engine)


def _limits(config: ValidateConfig, prepare: PrepareConfig) -> Limits:
    return Limits(
        config.max_megabytes,
        config.max_megapixels,
        config.memory_megabytes,
        config.timeout_seconds,
        prepare.background,
        prepare.channels,
    )


def _policy(config: ValidateConfig) -> Policy:
    near = config.near_duplicates
    return Policy(
        min_side=config.min_side,
        max_aspect=config.max_aspect,
        min_standard_deviation=config.min_standard_deviation,
        allow_animated=config.animated == "first_frame",
        keep_suspect_streams=config.suspect_streams == "keep",
        near_distance=near.distance if near.enabled else None,
        quarantine_near_copies=near.within_training == "quarantine",
        placeholder_copies=near.placeholder_copies,
    )


def _thumbnails(
    workspace: Workspace, wanted: Collection[str], facts: KnownFacts, params: Params
) -> Iterator[tuple[str, Image.Image | None]]:
    config, prepare = params.validate, params.prepare
    holding = facts.tars(wanted)
    paths = (path for batch in batches(workspace.raw) for path in tars(batch) if tar_name(path) in holding)
    contents = chain.from_iterable(read_tar(path, wanted) for path in paths)
    drawn = isolated_map(
        thumbnail,
        contents,
        options={
            "max_megapixels": config.max_megapixels,
            "background": prepare.background,
            "channels": prepare.channels,
        },
        workers=len(os.sched_getaffinity(0)),
        memory_megabytes=config.memory_megabytes,
        timeout_seconds=config.timeout_seconds,
    )
    return ((sha256, read_thumbnail(answer)) for sha256, answer in drawn)


def _contact_sheet(
    images: ImageCounts,
    groups: Mapping[str, list[dict[str, Any]]],
    thumbnails: Mapping[str, Image.Image | None],
) -> bytes:
    refused = {name: [row["sha256"] for row in rows] for name, rows in groups.items() if name != ACCEPTED}
    tiles = choose(refused, thumbnails)
    count = images.ingested - images.accepted
    if not count:
        return contact_sheet(f"None of {images.ingested:,} files is quarantined.", tiles)
    return contact_sheet(f"{count:,} of {images.ingested:,} files quarantined; {len(tiles)} of them:", tiles)


def _tell(result: ValidationReport, drift: Drift, without_effect: Mapping[str, str]) -> None:
    images = result.images
    lost = ", ".join(f"{count} {reason}" for reason, count in images.quarantined.items())
    contradicted = next(
        (one.unexpected_count for one in result.expectations if one.name == NEAR_LABELS and not one.success), 0
    )
    conflicts = f"; {contradicted} near copies have different labels" if contradicted else ""
    if without_effect:
        sha256, why = next(iter(without_effect.items()))
        conflicts += f"; {counted(len(without_effect), 'decision')} in overrides.csv without effect, "
        conflicts += f"such as {sha256[:12]}: {why}"
    message = (
        f"{counted(images.ingested, 'file')}: {images.accepted} accepted ({images.converted} converted), quarantined: "
        f"{lost or 'none'}{conflicts}; {DRIFT[drift.verdict]}: {drift.advice}; the data contract "
        f"{'holds' if result.passed else 'is BROKEN'}: see reports/validation.html"
    )
    emit("progress", stage="validate", message=message, ingested=images.ingested, accepted=images.accepted)
    print(f"validate: {message}")


if __name__ == "__main__":
    run_stage("validate", run)
