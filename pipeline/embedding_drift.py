"""Embedding drift: does the champion see something in the newest batch that the earlier images do not have?

    python -m pipeline.embedding_drift        in a workspace, after prepare

A separate stage, so that a new champion makes only this again and not what the images go through. Embeddings are
comparable for one encoder and its preprocessing alone: the report names both. Writes reports/embedding_drift.json and
novel.png, the most novel images, each next to the earlier one that is nearest to it.

    none          the batch looks to the champion like the earlier images
    drift         it does not: a reason to retrain
    not judged    nothing has been released yet, too few images, or no earlier batch
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

import deploy
from deploy.artifact import write_atomically
from deploy.plural import counted
from pipeline.config import EmbeddingDriftConfig
from pipeline.errors import ValidationError
from pipeline.params import read
from pipeline.reports import DriftVerdict, EmbeddingDriftReport, Novelty, ReleasedEncoder
from pipeline.stage import run_stage
from pipeline.validation import manifest, tables
from pipeline.validation.drift.calibration import CLASSIFIER
from pipeline.validation.drift.embeddings import MMD, NOVEL, Comparison, compare, most_novel
from pipeline.validation.report.thumbnails import contact_sheet, shrink
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.champion import champion_bundle, read_champion
from simclr_core.data.shards import ShardedImages, stored_pixels
from simclr_core.evaluation.embeddings import embed
from simclr_core.reporter import emit, record_timing

SHOWN = 12
SAID: dict[DriftVerdict, str] = {
    "none": "no drift of the embeddings",
    "drift": "drift of the embeddings",
    "not judged": "drift of the embeddings was not checked",
}
STALE = "data/prepared is not of this data/manifest; run `simclr run --select prepare`"


@dataclass(frozen=True)
class Sample:
    """SHA-256 of the images that are looked at, in an order that is practically random."""

    batch: str
    reference: list[str]
    new: list[str]


def run(workspace: Workspace) -> None:
    """Compare the newest batch with the earlier ones through the eyes of ``models/champion``.

    Raises:
        DeployError: the champion is damaged.
        SimclrError: there is no models/champion, the prepared images are damaged, or their embeddings are not finite.
        ValidationError: the prepared images are not those of the manifest.
    """
    began = time.monotonic()
    config = read(workspace).embedding_drift
    images = ShardedImages(workspace.prepared / "train")
    encoder, champion = _load(workspace.root)
    sample = choose(workspace.manifest, config)
    why_not = _why_not(sample, champion, config)
    comparison, novel, positions = None, list[Novelty](), dict[str, int]()
    if encoder and not why_not:
        positions = find(images, [*sample.reference, *sample.new])
        reference, new = (
            embed(encoder, images, [positions[sha256] for sha256 in hashes], "champion")
            for hashes in (sample.reference, sample.new)
        )
        comparison = compare(reference, new, auroc=config.auroc, novel_share=config.novel_share)
        novel = [
            Novelty(sample.new[row], sample.reference[nearest], round(distance, 4))
            for row, nearest, distance in most_novel(reference, new, SHOWN)
        ]
    result = report(sample, champion, comparison, novel, why_not)
    pictures = [
        shrink(stored_pixels(images, positions[sha256])) for one in novel for sha256 in (one.sha256, one.nearest)
    ]
    write_atomically(workspace.reports / "novel.png", draw(result, pictures))
    reports.write(workspace.root, result)
    summary = f"{SAID[result.verdict]}: {result.advice}"
    print(summary)
    emit("progress", stage="embedding_drift", message=summary)
    record_timing("embedding_drift", workspace=workspace.root, seconds=time.monotonic() - began)


def choose(folder: Path, config: EmbeddingDriftConfig) -> Sample:
    """The first accepted training images by SHA-256, of the newest batch and of all earlier ones together."""
    files = manifest.read(folder, ["sha256", "batch", "ingest_batch", "split", "verdict"])
    newest = tables.newest(files)
    used = files.filter((pl.col("verdict") != "quarantine") & (pl.col("split") == "train")).sort("sha256")
    is_new = pl.col("batch") == newest
    earlier = used.filter(~is_new)["sha256"].head(config.reference_images).to_list()
    return Sample(newest, earlier, used.filter(is_new)["sha256"].head(config.batch_images).to_list())


def report(
    sample: Sample,
    champion: ReleasedEncoder,
    comparison: Comparison | None,
    novel: Sequence[Novelty],
    why_not: str | None,
) -> EmbeddingDriftReport:
    """What reports/embedding_drift.json says."""
    statistics = comparison.statistics if comparison else ()
    effects = {one.name: one.effect for one in statistics}
    verdict, advice = _conclude(champion, comparison, why_not)
    return EmbeddingDriftReport(
        verdict=verdict,
        batch=sample.batch,
        champion=champion,
        reference_images=len(sample.reference),
        batch_images=len(sample.new),
        auroc=effects.get(CLASSIFIER),
        mmd=effects.get(MMD),
        mmd_p_value=comparison.mmd_p_value if comparison else None,
        novel_share=effects.get(NOVEL),
        statistics=statistics,
        novel=tuple(novel),
        advice=advice,
    )


def draw(result: EmbeddingDriftReport, pictures: Sequence[Image.Image]) -> bytes:
    """A PNG of the most novel images, each before the earlier one nearest to it, two pairs a row."""
    captions = [caption for one in result.novel for caption in (f"new, {one.distance:.2f} from", "the nearest earlier")]
    title = f"Batch {result.batch}, drift: {result.verdict}{'. Its most novel images:' if result.novel else ''}"
    return contact_sheet(title, list(zip(captions, pictures, strict=True)))


def find(images: ShardedImages, hashes: Sequence[str]) -> dict[str, int]:
    """Where the images with these SHA-256 are.

    Raises:
        ValidationError: one of them is not there.
    """
    keys = np.ascontiguousarray(images.keys).view("S32").ravel()
    wanted = np.array([bytes.fromhex(sha256) for sha256 in hashes], "S32")
    order = np.argsort(keys)
    positions = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    if not np.array_equal(keys[positions], wanted):
        raise ValidationError(STALE)
    return dict(zip(hashes, positions.tolist(), strict=True))


def _load(workspace: Path) -> tuple[deploy.Encoder | None, ReleasedEncoder]:
    """The released encoder; none before the first release."""
    champion = read_champion(workspace)
    bundle = champion_bundle(workspace, champion)
    if bundle is None:
        return None, ReleasedEncoder()
    encoder = deploy.load(bundle)
    return encoder, ReleasedEncoder(champion.version, encoder.info["id"], encoder.info["preprocessing"])


def _why_not(sample: Sample, champion: ReleasedEncoder, config: EmbeddingDriftConfig) -> str | None:
    block, least = "embedding_drift.min_images", config.min_images
    if not config.enabled:
        return "switched off by embedding_drift.enabled"
    if champion.version is None:
        return "no encoder has been released yet"
    if not sample.reference:
        return "there is no earlier batch with accepted training images to compare with"
    if len(sample.new) < least:
        return f"the newest batch has only {counted(len(sample.new), 'accepted training image')}; {block} is {least}"
    if len(sample.reference) < 2 * least:
        earlier = counted(len(sample.reference), "training image")
        return f"the earlier batches have only {earlier}; twice {block} is {2 * least}"
    return None


def _conclude(
    champion: ReleasedEncoder, comparison: Comparison | None, why_not: str | None
) -> tuple[DriftVerdict, str]:
    if comparison is None:
        return "not judged", why_not or ""
    if not comparison.drifted:
        return "none", f"to {champion.version} the new images look like the earlier ones"
    beyond = ", ".join(comparison.drifted)
    return "drift", (
        f"to {champion.version} the new images differ from the earlier ones in {beyond}: look at reports/novel.png, "
        "and retrain so that the encoder learns from them"
    )


if __name__ == "__main__":
    run_stage("embedding_drift", run)
