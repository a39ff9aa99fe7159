"""Side by side, for the report: the largest groups of files that show one picture, and the training images that repeat
test images. What becomes of them ``verdict`` has said; here is only chosen which of them a person sees.
"""

from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.validation.tables import Manifest, shown_label

COMPARISONS = ("label_conflict", "test_leak", "exact_duplicate", "pixel_duplicate", "near_duplicate", "placeholder")
"""The reasons that come of comparing a file with others."""

KINDS = {"near": ("near_group", "pixel_hash"), "pixel": ("pixel_hash", "sha256"), "exact": ("sha256", "sha256")}
"""What all files of a group share, and what those share that one thumbnail stands for."""

ALIKE = {"near": "nearly the same picture", "pixel": "the same pixels", "exact": "the same bytes"}
MOST_GROUPS = {"near": 8, "pixel": 6, "exact": 6}
MOST_PICTURES, MOST_PATHS = 6, 4  # of a group, of a picture
MOST_PAIRS = 40
MOST_CONFLICTS, MOST_FILES = 20, 8  # groups with different labels, files of each


@dataclass(frozen=True)
class Picture:
    """Files that one thumbnail stands for; ``bits`` are those in which its perceptual hash differs from the first."""

    sha256: str
    bits: int
    files: int
    shown: list[dict[str, Any]]  # some of the files: path, split, label, used


@dataclass(frozen=True)
class Group:
    """Files that show one picture, or nearly one. ``shown`` are some of its pictures, the one that is kept first."""

    kind: str
    files: int
    used: int  # files
    pictures: int
    shown: list[Picture]


@dataclass(frozen=True)
class Leak:
    """A training content, and the test image that it repeats."""

    alike: str
    bits: int
    train: dict[str, Any]  # sha256, path, label, and the number of its files
    test: dict[str, Any]  # sha256, path, label


def fit_on_its_own() -> pl.Expr:
    """Whether nothing is wrong with a file but that there are others like it."""
    return pl.col("reasons").list.set_difference(list(COMPARISONS)).list.len() == 0


def duplicate_groups(manifest: Manifest) -> list[Group]:
    """The groups with the most files, of each kind."""
    files = (
        manifest.lazy()
        .filter(fit_on_its_own())
        .filter(pl.col("pixel_hash").is_duplicated() | pl.col("near_group").is_not_null())
        .select(
            ["sha256", "pixel_hash", "phash", "path", "split", "label"],
            near_group=pl.col("near_group").max().over("pixel_hash"),  # known of one file of each picture
            used=pl.col("verdict") != "quarantine",
        )
        .sort(~pl.col("used"), pl.col("split") != "test", maintain_order=True)
        .collect()
    )
    return [group for kind in KINDS for group in _largest(files, kind)]


def _largest(files: pl.DataFrame, kind: str) -> list[Group]:
    key, picture = KINDS[kind]
    pictures = pl.col(picture).n_unique()
    largest = (
        files.filter(pl.col(key).is_not_null() & pl.col(key).is_duplicated())
        .group_by(key)
        .agg(files=pl.len(), used=pl.col("used").sum(), pictures=pictures)
        .filter(pl.lit(picture == key) | (pl.col("pictures") > 1))
        .sort("files", key, descending=[True, False])
        .head(MOST_GROUPS[kind])
    )
    members = _pictures(files.filter(pl.col(key).is_in(largest[key].to_list())), key, picture)
    return [Group(kind, row["files"], row["used"], row["pictures"], members[row[key]]) for row in largest.to_dicts()]


def _pictures(files: pl.DataFrame, key: str, picture: str) -> dict[str, list[Picture]]:
    """The first pictures of each group, in the order of the files."""
    rows = (
        files.group_by(pl.col(key).alias("group"), pl.col(picture).alias("picture"), maintain_order=True)
        .agg(
            pl.col("sha256").first(),
            pl.col("phash").first(),
            files=pl.len(),
            shown=pl.struct("path", "split", shown_label(pl.col("label")), "used").head(MOST_PATHS),
        )
        .with_columns(bits=_bits(pl.col("phash"), pl.col("phash").first().over("group")))
        .group_by("group", maintain_order=True)
        .head(MOST_PICTURES)
    )
    members: dict[str, list[Picture]] = {}
    for row in rows.select("group", "sha256", "bits", "files", "shown").to_dicts():
        members.setdefault(row.pop("group"), []).append(Picture(**row))
    return members


def leaks(manifest: Manifest) -> list[Leak]:
    """Training contents next to the test images that they repeat; those that differ most come first."""
    compared = ("sha256", "path", "label", "pixel_hash", "phash")
    files = manifest.lazy().with_columns(shown_label(pl.col("label")))
    leaked = (
        files.filter(pl.col("reasons").list.contains("test_leak"))
        .group_by("sha256", maintain_order=True)
        .agg(pl.col("copy_of", *compared[1:]).first(), files=pl.len())
        .collect()
    )
    repeated = (
        files.filter(pl.col("sha256").is_in(leaked["copy_of"].drop_nulls().unique().to_list()))
        .sort(pl.col("split") != "test", pl.col("verdict") == "quarantine", maintain_order=True)
        .unique("sha256", keep="first", maintain_order=True)
        .select(pl.col(compared).name.suffix("_test"), copy_of="sha256")
        .collect()
    )
    same_bytes, same_pixels = (pl.col(name) == pl.col(f"{name}_test") for name in ("sha256", "pixel_hash"))
    alike = pl.when(same_bytes).then(pl.lit("exact")).when(same_pixels).then(pl.lit("pixel")).otherwise(pl.lit("near"))
    pairs = (
        leaked.join(repeated, on="copy_of", maintain_order="left_right")
        .with_columns(alike=alike.cast(pl.Enum(list(ALIKE))), bits=_bits(pl.col("phash"), pl.col("phash_test")))
        .sort("alike", "bits", descending=[False, True], maintain_order=True)
        .head(MOST_PAIRS)
    )
    return [
        Leak(
            row["alike"],
            row["bits"],
            {name: row[name] for name in ("sha256", "path", "label", "files")},
            {name: row[f"{name}_test"] for name in ("sha256", "path", "label")},
        )
        for row in pairs.to_dicts()
    ]


def label_conflicts(manifest: Manifest) -> list[list[dict[str, Any]]]:
    """Near copies with different labels, group by group, the largest first: path, split, label and ``used`` of each."""
    contradicted = pl.col("warnings").list.contains("near_label_conflict")
    files = manifest.lazy().filter(contradicted, pl.col("near_group").is_not_null(), pl.col("label").is_not_null())
    groups = (
        files.sort("label", maintain_order=True)
        .group_by("near_group")
        .agg(files=pl.struct("path", "split", shown_label(pl.col("label")), used=pl.col("verdict") != "quarantine"))
        .sort(pl.col("files").list.len(), "near_group", descending=[True, False])
        .collect()
    )
    return groups["files"].to_list()


def _bits(first: pl.Expr, second: pl.Expr) -> pl.Expr:
    """How many of the 64 bits of two perceptual hashes differ; 0 where there is none."""
    return (first ^ second).bitwise_count_ones().fill_null(0)
