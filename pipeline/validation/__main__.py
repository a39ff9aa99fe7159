"""Validate: hold every raw image, and the set of them, against the data contract.

    python -m pipeline.validation        in a workspace, after ingest

Writes data/manifest (see ``manifest``) and reports/: validation.json, validation.html and quarantine.png. A set that
breaks the contract is a result, not an error: the reports say ``passed: false``, and what comes next refuses to go on.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from deploy.artifact import publish, write_atomically
from pipeline.errors import ValidationError
from pipeline.params import read
from pipeline.raw import RawImage, batches, read_batches, read_bytes, read_occurrences
from pipeline.stage import run_stage
from pipeline.validation.config import ValidateConfig
from pipeline.validation.container import sniff
from pipeline.validation.drift import judge as judge_drift
from pipeline.validation.evaluate import evaluate, tables
from pipeline.validation.expectations import expectations
from pipeline.validation.facts import Facts
from pipeline.validation.manifest import manifest, read_facts, write_tables
from pipeline.validation.pool import Failure, Key, isolated_map
from pipeline.validation.probe import probe, thumbnail
from pipeline.validation.report import ACCEPTED, gallery, render, summary
from pipeline.validation.thumbnails import choose, contact_sheet
from pipeline.validation.thumbnails import read as read_thumbnail
from pipeline.validation.verdict import File, judge
from pipeline.workspace import Workspace
from simclr_core.reporter import emit, record_timing


def run(workspace: Workspace) -> None:
    """Write the manifest and the reports.

    Raises:
        ValidationError: there is nothing to validate, or no worker can start.
    """
    started = time.monotonic()
    config = read(workspace).validate
    files, facts = examine(workspace.raw, config)
    probed = time.monotonic() - started
    verdicts = judge(
        files,
        facts,
        min_side=config.min_side,
        max_aspect=config.max_aspect,
        min_standard_deviation=config.min_standard_deviation,
        allow_animated=config.animated == "first_frame",
    )
    table = manifest(verdicts)
    drift = judge_drift(table, **dict(config.drift))
    result = summary(table, evaluate(expectations(config), tables(table, drift)), drift)
    groups = {name: [row["sha256"] for row in rows] for name, rows in gallery(table).items()}
    thumbnails = _thumbnails(workspace.raw, set(chain.from_iterable(groups.values())), config)
    html = render(result, table, drift, thumbnails)
    refused = {name: contents for name, contents in groups.items() if name != ACCEPTED}
    tiles = choose(refused, thumbnails)
    sheet = contact_sheet(_title(result["images"], len(tiles)), tiles)
    with publish(workspace.manifest, replace=True) as folder:
        write_tables(folder, table)
    write_atomically(workspace.reports / "validation.html", html)
    write_atomically(workspace.reports / "quarantine.png", sheet)
    write_atomically(workspace.reports / "validation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    _tell(result)
    rate = len(facts) / probed
    record_timing("validate", workspace=workspace.root, seconds=time.monotonic() - started, images_per_second=rate)


def examine(raw: Path, config: ValidateConfig) -> tuple[list[File], dict[str, Facts]]:
    """Every file of the raw batches, in their order, and the facts about each content."""
    files: list[File] = []
    facts: dict[str, Facts] = {}
    homes: dict[str, str] = {}

    def contents() -> Iterator[tuple[RawImage, bytes]]:
        for image in read_batches(raw):
            home = homes.setdefault(image.sha256, image.batch)
            files.extend(
                File(_text(seen.path), seen.split, seen.label and _text(seen.label), image.sha256, home, image.batch)
                for seen in image.occurrences
            )
            if image.data is not None:
                yield image, image.data

    known = {sha256 for batch in batches(raw) for sha256 in read_occurrences(batch)}
    if not known:
        raise ValidationError(f"{raw}: no raw images; put images into inbox/ and run `simclr ingest`")
    answers = _isolated(probe, contents(), config, max_megabytes=config.max_megabytes)
    with tqdm(total=len(known), desc="validate", unit=" images", disable=not sys.stderr.isatty()) as bar:
        for image, answer in answers:
            facts[image.sha256] = _facts(image, answer)
            bar.update()
            if len(facts) % max(1, len(known) // 10) == 0:
                done = f"{len(facts)} of {len(known)} images probed"
                emit("progress", stage="validate", message=done, images=len(facts))
    missing = "no raw batch holds its bytes; restore data/raw with `dvc checkout data/raw`"
    for file in files:
        facts.setdefault(file.sha256, Facts(file.sha256, 0, "missing", False, "io_error", missing))
    return files, facts


def _facts(image: RawImage, answer: dict[str, Any] | Failure) -> Facts:
    assert image.data is not None
    size, container = len(image.data), sniff(image.data)
    if isinstance(answer, Failure):
        return Facts(image.sha256, size, container, False, answer.reason, answer.message)
    try:
        facts = read_facts(answer)
    except ValueError:
        nonsense = "its worker gave an answer that makes no sense"
        return Facts(image.sha256, size, container, False, "worker_crash", nonsense)
    if facts.sha256 != image.sha256:
        changed = "its bytes changed after they were ingested; restore data/raw with `dvc checkout data/raw`"
        return Facts(image.sha256, size, container, False, "io_error", changed)
    return facts


def _thumbnails(raw: Path, shown: set[str], config: ValidateConfig) -> dict[str, Image.Image | None]:
    contents = ((sha256, data) for _, sha256, data in read_bytes(raw) if sha256 in shown)
    drawn = _isolated(thumbnail, contents, config)
    return {sha256: read_thumbnail(answer) for sha256, answer in drawn}


def _title(images: Mapping[str, Any], shown: int) -> str:
    refused = images["ingested"] - images["accepted"]
    if not refused:
        return f"None of {images['ingested']} files is quarantined."
    return f"{refused} of {images['ingested']} files quarantined; {shown} of them:"


def _isolated(
    function: Callable[..., Any], files: Iterable[tuple[Key, bytes]], config: ValidateConfig, **options: float
) -> Iterator[tuple[Key, Any]]:
    return isolated_map(
        function,
        files,
        options={"max_megapixels": config.max_megapixels, **options},
        workers=len(os.sched_getaffinity(0)),
        memory_megabytes=config.memory_megabytes,
        timeout_seconds=config.timeout_seconds,
    )


def _text(name: str) -> str:
    """A name whose bytes are not UTF-8 has lone surrogates, which no parquet file can hold: spell them out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _tell(result: Mapping[str, Any]) -> None:
    images, drift = result["images"], result["drift"]
    lost = ", ".join(f"{count} {reason}" for reason, count in images["quarantined"].items())
    message = (
        f"{images['ingested']} files: {images['accepted']} accepted ({images['converted']} converted), quarantined: "
        f"{lost or 'none'}; drift {drift['verdict']}, {drift['advice']}; the data contract "
        f"{'holds' if result['passed'] else 'is BROKEN'}: see reports/validation.html"
    )
    emit("progress", stage="validate", message=message, ingested=images["ingested"], accepted=images["accepted"])
    print(f"validate: {message}")


if __name__ == "__main__":
    run_stage("validate", run)
