"""The validation report for a person: one HTML file that needs nothing else, under 5 MB, with no active content.

File names are hostile until shown otherwise: they are escaped by the template, their control and direction characters
are spelled out, and a content security policy forbids scripts and every request. Thumbnails are drawn from pixels,
so that no byte of an original reaches a browser. Of a content that a person has denied nothing is drawn.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from deploy.images.background import BACKGROUNDS
from pipeline.reports import ImageCounts, Outcome, ValidationReport
from pipeline.validation import contract, expectations
from pipeline.validation.drift.drift import MEANINGS, Drift
from pipeline.validation.evaluate import passed
from pipeline.validation.reasons import REASONS, WARNINGS
from pipeline.validation.report import charts
from pipeline.validation.report.side_by_side import (
    ALIKE,
    MOST_CONFLICTS,
    MOST_FILES,
    MOST_PATHS,
    MOST_PICTURES,
    duplicate_groups,
    fit_on_its_own,
    label_conflicts,
    leaks,
)
from pipeline.validation.report.template import load
from pipeline.validation.report.thumbnails import jpeg
from pipeline.validation.tables import Manifest, age, some
from pipeline.validation.verdict.near_duplicates import MOST_BITS

MOST_BYTES = 5_000_000
PER_REASON = 24
FEWER = 4
ACCEPTED = "accepted"

CONVERSIONS = {
    "first_frame": "the first of several frames or pages",
    "uint8_to_uint16": "8 bits a channel as 16, which loses nothing",
    "uint16_to_uint8": "16 bits a channel reduced to 8",
    **{
        f"uint{bits}_to_uint8": f"{bits} bits a channel, as the file declares, reduced to 8"
        for bits in range(15, 8, -1)
    },
    "uses_14_of_16_bits": "of 16 bits, the upper two are not used: at most 64 gray levels are left",
    "uses_12_of_16_bits": "of 16 bits, the upper four are not used: at most 16 gray levels are left",
    "bands_dropped": "bands left out that are neither color nor alpha",
    "color_space_ignored": "a color space other than sRGB, declared without a profile, not applied",
    "icc_ignored": "a color profile left out: damaged, or for another kind of pixels",
    "gray_to_rgb": "gray as three equal channels",
    "palette_to_rgb": "a palette looked up",
    "cmyk_to_rgb": "CMYK converted to RGB",
    "icc_to_srgb": "colors converted to sRGB by the file's profile",
    "to_rgb": "another pixel layout converted to RGB",
    **{f"alpha_on_{background}": f"transparency on {background}" for background in BACKGROUNDS},
    "exif_transpose": "rotated upright, as EXIF says",
}
"""What ``deploy.images.preprocess.canonicalize`` does to an image on its way."""


def summary(manifest: Manifest, outcomes: Sequence[Outcome], drift: Drift) -> ValidationReport:
    """What ``reports/validation.json`` says: all that gates and dashboards read."""
    files = some(manifest, "verdict", "reasons", "sha256")
    used = files.filter(pl.col("verdict") != "quarantine")
    reasons = _counts(files["reasons"].list.first())
    contents = files["sha256"].n_unique()
    images = ImageCounts(
        ingested=files.height,
        accepted=used.height,
        converted=int((used["verdict"] == "convert").sum()),
        quarantined={reason: reasons[reason] for reason in REASONS if reason in reasons},
        contents=contents,
        contents_quarantined=contents - used["sha256"].n_unique(),
    )
    return ValidationReport(images=images, passed=passed(outcomes), drift=drift.report, expectations=tuple(outcomes))


def gallery(manifest: Manifest) -> dict[str, list[dict[str, Any]]]:
    """For each primary reason some of its contents, the newest batch first; under ``accepted`` a sample of all."""
    files = manifest.lazy().select(
        "path", "sha256", "container", "message", "ingest_batch", reason=pl.col("reasons").list.first()
    )
    refused = (
        files.filter(pl.col("reason").is_not_null())
        .collect()
        .sort(age(), descending=True, maintain_order=True)
        .unique(["reason", "sha256"], keep="first", maintain_order=True)
        .group_by("reason", maintain_order=True)
        .head(PER_REASON)
    )
    groups = {reason: refused.filter(pl.col("reason") == reason) for reason in REASONS}
    used = files.with_row_index("row")
    rows = used.filter(pl.col("reason").is_null()).select("row").collect()
    sample = rows.gather_every(max(1, -(-rows.height // PER_REASON)))["row"]
    groups[ACCEPTED] = used.filter(pl.col("row").is_in(sample.implode())).drop("row").collect()
    return {name: group.to_dicts() for name, group in groups.items() if group.height}


def shown(manifest: Manifest) -> set[str]:
    """The contents of which ``render`` wants thumbnails, as SHA-256."""
    wanted = {row["sha256"] for group in gallery(manifest).values() for row in group}
    wanted |= {picture.sha256 for group in duplicate_groups(manifest) for picture in group.shown}
    wanted |= {side["sha256"] for leak in leaks(manifest) for side in (leak.train, leak.test)}
    return wanted - _hidden(manifest)


def render(
    report: ValidationReport,
    manifest: Manifest,
    drift: Drift,
    thumbnails: Mapping[str, Image.Image | None],
    near_distance: int = MOST_BITS,
) -> str:
    """The report as HTML.

    Args:
        thumbnails: SHA-256 → picture, for the contents of ``shown``; None where it has none.
        near_distance: bits in which the hashes of two near copies may differ.
    """
    hidden = _hidden(manifest)
    context = {
        "images": report.images,
        "passed": report.passed,
        "said": contract.describe(report),
        "funnel": _funnel(manifest),
        "reasons": REASONS,
        "notes": _notes(manifest),
        "outcomes": sorted(report.expectations, key=_urgency),
        "rule_meanings": expectations.MEANINGS,
        "paths": _paths(manifest, report.expectations),
        "histograms": charts.distributions(manifest),
        "drift": drift,
        "drift_meanings": MEANINGS,
        "drift_histograms": list(charts.draw_drifted(drift)),
        "alike": ALIKE,
        "near_distance": near_distance,
        "groups": duplicate_groups(manifest),
        "most_pictures": MOST_PICTURES,
        "most_paths": MOST_PATHS,
        "most_conflicts": MOST_CONFLICTS,
        "most_files": MOST_FILES,
        "leaks": leaks(manifest),
        "conflicts": label_conflicts(manifest),
        "leaked": some(manifest, "reasons")["reasons"].list.contains("test_leak").sum(),
        "gallery": gallery(manifest),
        "hidden": hidden,
        "pictures": {sha256: jpeg(image) for sha256, image in thumbnails.items() if image and sha256 not in hidden},
    }
    template = load(Path(__file__).with_name("report.html.j2"), number=charts.number)
    for per_reason in range(PER_REASON, 0, -FEWER):
        page = template.render(context, per_reason=per_reason)
        if len(page.encode()) < MOST_BYTES:
            return page
    raise AssertionError("every other part of the page is bounded")


def _hidden(manifest: Manifest) -> set[str]:
    """The contents of which nothing is drawn: the denied ones, and others with the very same pixels."""
    files = manifest.lazy().select("sha256", "pixel_hash", "reasons")
    denied = files.filter(pl.col("reasons").list.contains("denied")).collect()
    same_pixels = pl.col("pixel_hash").is_in(denied["pixel_hash"].drop_nulls().unique().to_list())
    return {*denied["sha256"], *files.filter(same_pixels).collect()["sha256"]}


def _counts(names: pl.Series) -> dict[str, int]:
    return dict(names.drop_nulls().value_counts().iter_rows())


def _funnel(manifest: Manifest) -> list[tuple[str, int]]:
    files = some(manifest, "reasons", "decodes", "verdict")
    fit = files.filter(fit_on_its_own())
    return [
        ("ingested", files.height),
        ("decoded", int(files["decodes"].sum())),
        ("usable on their own", fit.height),
        ("accepted, after comparison with each other", int((fit["verdict"] != "quarantine").sum())),
    ]


def _notes(manifest: Manifest) -> list[tuple[str, str, int]]:
    """Warnings on accepted images, and what was converted: name, meaning and number of each that there is."""
    used = some(manifest.lazy().filter(pl.col("verdict") != "quarantine"), "warnings", "operations")
    found = _counts(used["warnings"].explode()), _counts(used["operations"].explode())
    return [
        (name, meaning, counts[name])
        for meanings, counts in zip((WARNINGS, CONVERSIONS), found, strict=True)
        for name, meaning in meanings.items()
        if name in counts
    ]


def _paths(manifest: Manifest, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """file_id → path, of the sample ids that are files."""
    ids = sorted({sample for outcome in outcomes for sample in outcome.sample_ids})
    return dict(some(manifest.lazy().filter(pl.col("file_id").is_in(ids)), "file_id", "path").iter_rows())


def _urgency(outcome: Outcome) -> int:
    """Sorts first what stops the pipeline, last what passed."""
    if outcome.success:
        return 3
    return 0 if outcome.error else {"critical": 0, "warning": 1, "info": 2}[outcome.severity]
