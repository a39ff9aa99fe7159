"""Verdict: the facts about every file → accept, convert or quarantine, with reasons from a closed vocabulary.

``accept``: the pixels are used as they are. ``convert``: they are turned, flattened or brought to 8-bit sRGB on the
way; the operations are recorded. ``quarantine``: not used; the first reason is the primary one. Nothing is moved or
deleted.

A rule is a condition on a row and the words for it. What the rules find is collected in long tables, one row per
finding, so that a million sound files cost next to nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl

from pipeline.validation.probe.container import EXTENSIONS, TERMINATED
from pipeline.validation.probe.known_facts import KnownFacts
from pipeline.validation.reasons import DARK_P99, ELONGATED, LIGHT_P05, RELEASABLE, WARNINGS
from pipeline.validation.tables import FILES, JUDGED
from pipeline.validation.verdict.copies import faults, near_copies, pixel_copies

LOSSLESS = (
    "gray_to_rgb",
    "palette_to_rgb",
    "icc_ignored",
    "color_space_ignored",
    "uint8_to_uint16",
)  # the same pixel values: not worth calling a conversion
NARROW = (
    "16-bit samples that are all below 4,096, as a camera of 12 bits gives them: nearly black; multiply them by 16, "
    "declare their largest value in the TIFF (MaxSampleValue: 1023, 4095 or 16383), or release it"
)
FLAT_TAIL = 0.1  # share of the height that one mid gray may fill, from below

_FINDINGS = pl.Schema({"row": pl.UInt32(), "warning": pl.Enum(list(WARNINGS))})  # sorts in the order of WARNINGS
_FACTS = (
    "sha256", "container", "decodes", "reason", "message", "format", "width", "height", "frames", "operations",
    "has_gps", "exif_unreadable", "trailing_bytes", "stream_fault", "flat_tail", "luma_p05", "luma_p99", "luma_std",
    "entropy", "pixel_hash", "phash", "dhash", "hash_trusted",
    "red_mean", "green_mean", "blue_mean", "red_std", "green_std", "blue_std",
)  # fmt: skip
_COMPARED = (
    "row", "path", "split", "label", "sha256", "ingest_batch", "pixel_hash", "hash_trusted", "phash", "dhash",
    "entropy", "luma_std", "red_mean", "green_mean", "blue_mean", "width", "height",
)  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """What an image must be to be used: the ``validate`` block of params.yaml, where its keys are explained."""

    min_side: int
    max_aspect: float
    min_standard_deviation: float
    allow_animated: bool
    keep_suspect_streams: bool
    near_distance: int | None  # None: near copies are not searched
    quarantine_near_copies: bool
    placeholder_copies: int


def judge(
    files: pl.DataFrame,
    facts: pl.DataFrame | KnownFacts,
    policy: Policy,
    *,
    allowed: Collection[str],
    denied: Mapping[str, str],
) -> pl.DataFrame:
    """JUDGED: the FILES, in their order, and what becomes of each.

    Args:
        files: FILES.
        facts: FACTS, exactly one for the sha256 of every file.
        policy: what is wanted.
        allowed: sha256 of contents whose RELEASABLE reasons a person has overruled.
        denied: sha256 of contents that a person has refused → why; their pixels are refused in other files too.
    """
    table = files.with_row_index("row").join(facts.select(_FACTS), on="sha256", how="left", maintain_order="left")
    assert (table.height, table["decodes"].null_count()) == (files.height, 0), "one record of facts for each content"
    may_stay = table.filter(pl.col("sha256").is_in(list(allowed))).select("row")
    own, own_overruled = _overrule(_own_faults(table, policy, denied), may_stay)
    warnings = [_finding(name, table.filter(condition)) for name, condition in _warnings(policy).items()]
    compared = table.select(_COMPARED).join(own, on="row", how="anti", maintain_order="left")
    table = table.select("row", *FILES, "operations")  # the others are compared, and fewer columns are held
    copies = pixel_copies(compared)
    used = compared.with_columns(shown=pl.len().over("pixel_hash")).join(copies, on="row", how="anti")
    del compared
    near, groups = near_copies(
        used,
        facts.sketches if isinstance(facts, KnownFacts) else partial(_sketches, facts),
        distance=policy.near_distance,
        quarantine=policy.quarantine_near_copies,
        placeholder_copies=policy.placeholder_copies,
    )
    near, near_overruled = _overrule(near, may_stay)
    together = groups.join(near, on="row", how="anti").filter(pl.len().over("near_group") > 1)
    warnings += [
        _finding("released", pl.concat([own_overruled, near_overruled]).unique("row")),
        _finding("near_duplicate", together),
        _finding("near_label_conflict", groups.filter("contradicted")),
    ]
    return _judged(table, pl.concat([own, copies, near]), pl.concat(warnings), groups)


def _sketches(facts: pl.DataFrame, contents: pl.DataFrame) -> pl.DataFrame:
    return facts.select("sha256", "sketch").join(contents, on="sha256", how="semi")


def _own_faults(table: pl.DataFrame, policy: Policy, denied: Mapping[str, str]) -> pl.DataFrame:
    """FAULTS of each file for itself, whatever the others are."""
    misnamed = pl.lit("an absolute name, or one with '..'; rename it and ingest it again")
    decoded = table.filter(pl.col("reason").is_null())
    return pl.concat(
        [
            _denied(table, denied),
            faults(table.filter(_leads_out()), "unsafe_path", misnamed),
            faults(table.filter(pl.col("reason").is_not_null()), pl.col("reason"), pl.col("message")),
            *(faults(decoded.filter(wrong), reason, message) for wrong, reason, message in _content_rules(policy)),
        ]
    )


def _denied(table: pl.DataFrame, denied: Mapping[str, str]) -> pl.DataFrame:
    """FAULTS of what is refused and of all that has its pixels: stored again, a picture is still that picture."""
    decisions = pl.DataFrame(
        {"sha256": list(denied), "why": list(denied.values())}, [("sha256", pl.String), ("why", pl.String)]
    )
    refused = table.join(decisions, on="sha256")
    pictures = refused.drop_nulls("pixel_hash").unique("pixel_hash", keep="first", maintain_order=True)
    others = table.join(refused, on="row", how="anti").join(pictures.select("pixel_hash", "why"), on="pixel_hash")
    return pl.concat([faults(files, "denied", pl.col("why")) for files in (refused, others)])


def _leads_out() -> pl.Expr:
    path = pl.col("path")
    return path.str.starts_with("/") | path.str.contains(r"(^|/)\.\.(/|$)") | path.str.contains("\0", literal=True)


def _content_rules(policy: Policy) -> list[tuple[pl.Expr, pl.Expr | str, pl.Expr]]:
    """Condition, reason and message: what may be wrong with pixels."""
    short, long = _sides()
    # Not that of luma: a pattern of equally bright colors is content too.
    most_varied = pl.max_horizontal("red_std", "green_std", "blue_std").fill_null(0)
    size = pl.format("{} x {} pixels; ", "width", "height")
    more_frames = "{} frames; set validate.animated to first_frame to use the first of them"
    kind = pl.when(pl.col("format") == "TIFF").then(pl.lit("multi_page")).otherwise(pl.lit("animated"))
    deviation = "standard deviation {} in its most varied channel; validate.min_standard_deviation is "
    return [
        (_suspect() & (not policy.keep_suspect_streams), "suspect_stream", _suspicion()),
        ((pl.col("frames") > 1) & (not policy.allow_animated), kind, pl.format(more_frames, "frames")),
        (short < policy.min_side, "too_small", size + f"validate.min_side is {policy.min_side}"),
        (long > policy.max_aspect * short, "extreme_aspect", size + f"validate.max_aspect is {policy.max_aspect:g}"),
        (_did("uses_12_of_16_bits"), "narrow_range", pl.lit(NARROW)),
        (
            most_varied < policy.min_standard_deviation,
            "low_information",
            pl.format(deviation + f"{policy.min_standard_deviation:g}", most_varied.round(2)),
        ),
    ]


def _suspect() -> pl.Expr:
    return pl.col("stream_fault").is_not_null() | (pl.col("flat_tail") >= FLAT_TAIL).fill_null(value=False)


def _suspicion() -> pl.Expr:
    percent = (pl.col("flat_tail") * 100).round().cast(pl.Int64)
    what = pl.coalesce(
        pl.format("a strict decoder says: {}", "stream_fault"),
        pl.format("the lower {} % is one gray, as after a truncated file was saved again", percent),
    )
    return what + "; get it again from its source, release it, or set validate.suspect_streams to keep"


def _warnings(policy: Policy) -> dict[str, pl.Expr]:
    """What is worth knowing of a file that decodes."""
    short, long = _sides()
    extension = pl.col("path").str.extract(r"[^/]\.([^/.]+)$").str.to_lowercase()
    usual = [f"{container}.{extension}" for container, extensions in EXTENSIONS.items() for extension in extensions]
    cut = pl.col("trailing_bytes").is_null() & pl.col("container").is_in(TERMINATED)
    conditions = {
        "suspect_stream": _suspect() & policy.keep_suspect_streams,
        "extension_mismatch": ~pl.format("{}.{}", "container", extension).is_in(usual),
        "trailing_bytes": pl.col("trailing_bytes") != 0,
        "unterminated": cut,
        "narrow_range": _did("uses_14_of_16_bits"),
        "bands_dropped": _did("bands_dropped"),
        "color_space_ignored": _did("color_space_ignored"),
        "icc_ignored": _did("icc_ignored"),
        "exif_unreadable": pl.col("exif_unreadable"),
        "gps_present": pl.col("has_gps"),
        "elongated": long > ELONGATED * short,
        "dark": pl.col("luma_p99").fill_null(0) < DARK_P99 * 255,
        "light": pl.col("luma_p05") > LIGHT_P05 * 255,
    }
    return {name: pl.col("decodes") & condition for name, condition in conditions.items()}


def _did(operation: str) -> pl.Expr:
    return pl.col("operations").list.contains(operation).fill_null(value=False)


def _sides() -> tuple[pl.Expr, pl.Expr]:
    """The shorter and the longer one, pixels; 0 when unknown."""
    return pl.min_horizontal("width", "height").fill_null(0), pl.max_horizontal("width", "height").fill_null(0)


def _overrule(found: pl.DataFrame, may_stay: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The faults that count, and those that a person has overruled."""
    releasable = pl.col("reason").cast(pl.String).is_in(RELEASABLE)
    overruled = found.filter(releasable).join(may_stay, on="row", how="semi")
    return found.join(overruled, on=["row", "reason"], how="anti"), overruled


def _finding(warning: str, files: pl.DataFrame) -> pl.DataFrame:
    return files.select("row", warning=pl.lit(warning)).cast(_FINDINGS)


def _judged(table: pl.DataFrame, found: pl.DataFrame, warnings: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Findings gathered by file, in the order of the vocabulary, joined to each file of the table."""
    by_file = found.sort("row", "reason").group_by("row", maintain_order=True)
    refused = by_file.agg(pl.col("reason").cast(pl.String).alias("reasons"), pl.col("message", "copy_of").first())
    by_file = warnings.sort("row", "warning").group_by("row", maintain_order=True)
    noted = by_file.agg(pl.col("warning").cast(pl.String).alias("warnings"))
    judged = table
    for findings in (refused, noted, groups):
        judged = judged.join(findings, on="row", how="left", maintain_order="left")
    converted = pl.col("operations").list.eval(~pl.element().is_in(LOSSLESS)).list.any()
    verdict = (
        pl.when(pl.col("reasons").is_not_null())
        .then(pl.lit("quarantine"))
        .when(converted)
        .then(pl.lit("convert"))
        .otherwise(pl.lit("accept"))
    )
    gathered = judged.with_columns(
        pl.col("reasons", "warnings").fill_null([]), pl.col("message").fill_null(""), verdict=verdict
    )
    return gathered.select(list(JUDGED)).cast(JUDGED)
