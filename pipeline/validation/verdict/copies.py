"""Copies: which file of those that show one picture is used, where labels contradict, and what leaks into training.

Three kinds, from certain to likely: the same bytes, the same pixels, nearly the same picture (see ``near_duplicates``).
What is found is a table of FAULTS, as in ``verdict``.
"""

from collections.abc import Callable

import polars as pl

from deploy.plural import counted
from pipeline.validation.reasons import REASONS
from pipeline.validation.tables import age, shown_label
from pipeline.validation.verdict.near_duplicates import near_groups, near_pairs
from pipeline.validation.verdict.structure import confirm
from simclr_core.reporter import emit

FAULTS = pl.Schema(
    {
        "row": pl.UInt32(),  # of the file
        "reason": pl.Enum(list(REASONS)),  # sorts in the order of REASONS
        "message": pl.String(),
        "copy_of": pl.String(),  # sha256
    }
)
"""One row per reason against a file."""

PLACEHOLDER_ENTROPY = 4.0
"""Bits of the luma histogram. Flat graphics have 1 to 3, photographs 6 to 7.5: many near copies of a photograph are a
burst or a popular motif, many of a drawing that says "image not available" are a fault of the source."""

LONGEST_CHAIN = 20  # pairs, of which a message names one

Sketches = Callable[[pl.DataFrame], pl.DataFrame]
"""sha256 of contents → sha256 and sketch of each: too many bytes to be held for all."""

_HASHES = ("sha256", "phash", "dhash", "red_mean", "green_mean", "blue_mean")


def faults(
    files: pl.DataFrame, reason: str | pl.Expr, message: pl.Expr, copy_of: pl.Expr | None = None
) -> pl.DataFrame:
    """FAULTS, one for each of the files."""
    name = pl.lit(reason) if isinstance(reason, str) else reason
    source = pl.lit(None) if copy_of is None else copy_of
    return files.select("row", reason=name, message=message, copy_of=source).cast(FAULTS)


def pixel_copies(files: pl.DataFrame) -> pl.DataFrame:
    """FAULTS of every file whose picture another file shows better, or of all that show it under different labels.

    The newest batch that labels a picture is right about it: that is how a wrong label is corrected.

    Args:
        files: row, path, split, label, sha256, ingest_batch and pixel_hash of each file without another fault.
    """
    assert not files["pixel_hash"].null_count(), "a decoded image has a pixel hash"
    ranked = _by_preference(files.filter(pl.col("pixel_hash").is_duplicated()), "pixel_hash")
    labels = _contradictory_labels(ranked)
    conflicts = ranked.join(labels, on="pixel_hash")
    copies = (
        ranked.with_columns(repeats_bytes=~pl.col("sha256").is_first_distinct())
        .join(labels, on="pixel_hash", how="anti")
        .filter(~pl.col("is_kept"))
    )
    reason = (
        pl.when(_leaks())
        .then(pl.lit("test_leak"))
        .when("repeats_bytes")
        .then(pl.lit("exact_duplicate"))
        .otherwise(pl.lit("pixel_duplicate"))
    )
    same = pl.when(pl.col("sha256") == pl.col("kept_sha256")).then(pl.lit("bytes")).otherwise(pl.lit("pixels"))
    same_as = pl.format("the same {} as {}{}", same, "kept_path", _place())
    labeled = pl.format("labeled {}", pl.col("labels").list.eval(shown_label(pl.element())).list.join(" and "))
    return pl.concat(
        [faults(conflicts, "label_conflict", labeled), faults(copies, reason, same_as, pl.col("kept_sha256"))]
    )


def near_copies(
    contents: pl.DataFrame, sketches: Sketches, *, distance: int | None, quarantine: bool, placeholder_copies: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """FAULTS of contents that nearly repeat others, and the groups that look nearly alike.

    The latter are row, near_group, near_group_size, and ``contradicted``: a near copy of it has another label.
    A training image near a test image leaks it, wherever else the two are kept apart. At most one fault each.

    Args:
        contents: one file of each content that is used so far: those of ``pixel_copies``, ``shown`` (files that show
            its pixels), ``hash_trusted``, phash, dhash, entropy, luma_std, the channels' means, width, height.
        sketches: what finds the sketches of some of them.
        distance: bits in which two perceptual hashes may differ; None: nothing is searched.
        quarantine: whether all but one of a group within the training set go.
        placeholder_copies: files that show the same flat picture.
    """
    trusted = contents.filter("hash_trusted") if distance is not None else contents.clear()
    pairs = _pairs(trusted, sketches, distance or 0)
    members = contents.join(near_groups(pairs), on="sha256", how="left", maintain_order="left")
    placeholders = _placeholders(members, placeholder_copies)
    grouped = members.filter(pl.col("near_group").is_not_null())
    ranked = _by_preference(grouped.join(placeholders, on="row", how="anti"), "near_group")
    others = ranked.filter(~pl.col("is_kept") & (_leaks() | (quarantine & (pl.col("kept_split") == "train"))))
    members = ranked.select("sha256", "path")
    targets = ranked.filter(pl.col("is_kept") | (pl.col("split") == "test"))
    repeated = others.join(_links(pairs, members, targets), on="sha256", how="left", maintain_order="left")
    chain = pl.format("in a chain of near copies with {}{}", "kept_path", _place())
    near = pl.format(
        "nearly the same picture as {}{}", "near_path", pl.when("direct").then(_place()).otherwise(pl.lit(""))
    )
    apart = pl.format(f"{{}} of 64 bits differ, at most {distance} may", "distance")
    message = (
        pl.when(pl.col("direct").is_null())
        .then(chain)
        .when("direct")
        .then(pl.format("{}, {}", near, apart))
        .otherwise(pl.format("{}: {}, {}", chain, near, apart))
    )
    found = faults(
        repeated,
        pl.when(_leaks()).then(pl.lit("test_leak")).otherwise(pl.lit("near_duplicate")),
        message,
        pl.when("direct").then("near_sha256").otherwise("kept_sha256"),
    )
    contradicted = pl.col("sha256").is_in(_contradicted(pairs, ranked).implode())
    groups = grouped.select("row", "near_group", "near_group_size", contradicted=contradicted)
    return pl.concat([placeholders, found]), groups


def _by_preference(files: pl.DataFrame, group: str) -> pl.DataFrame:
    """Each group in a row, first the file that is kept: a test image, then a labeled one, then one of the newest
    labels, then the oldest. Tells of each file whether that is it, and what it is called."""
    newest = pl.col("age").filter(pl.col("label").is_not_null()).max().over(group)
    preferred = [pl.col("split") != "test", pl.col("label").is_null(), pl.col("age") != pl.col("newest")]
    return (
        files.with_columns(age=age())
        .with_columns(newest=newest)
        .sort([group, *preferred, "age", "path", "sha256", "label", "row"])
        .with_columns(
            pl.col("path", "split", "sha256").first().over(group).name.prefix("kept_"),
            is_kept=pl.col("row") == pl.col("row").first().over(group),
        )
    )


def _contradictory_labels(ranked: pl.DataFrame) -> pl.DataFrame:
    """pixel_hash → labels, of the pictures whose kept file and newest labels do not agree on one."""
    return (
        ranked.filter(pl.col("is_kept") | (pl.col("age") == pl.col("newest")))
        .group_by("pixel_hash")
        .agg(labels=pl.col("label").drop_nulls().unique().sort())
        .filter(pl.col("labels").list.len() > 1)
    )


def _leaks() -> pl.Expr:
    return (pl.col("kept_split") == "test") & (pl.col("split") != "test")


def _place() -> pl.Expr:
    return pl.when(_leaks()).then(pl.lit(" of the test set")).otherwise(pl.lit(""))


def _pairs(contents: pl.DataFrame, sketches: Sketches, distance: int) -> pl.DataFrame:
    aspect = pl.col("width") / pl.col("height")
    pairs, cut_short = near_pairs(contents.select(*_HASHES, aspect=aspect), distance)
    if cut_short:
        message = f"{counted(cut_short, 'image')} of too many near copies to compare each with all of them"
        emit("progress", stage="validate", message=message, cut_short=cut_short)
    paired = pl.concat([pairs["first"], pairs["second"]]).unique().alias("sha256").to_frame()
    pictures = contents.select("sha256", "entropy", "luma_std").join(paired, "sha256", "semi", maintain_order="left")
    return confirm(pairs, pictures.join(sketches(paired), "sha256", maintain_order="left"))


def _links(pairs: pl.DataFrame, members: pl.DataFrame, targets: pl.DataFrame) -> pl.DataFrame:
    """sha256 → the nearest picture on the shortest way to a target: near_sha256, near_path, distance, ``direct``.

    ``direct`` if that is a target itself. Ways over more than LONGEST_CHAIN pairs are left out.
    """
    ways = pl.concat(
        [
            pairs.select(sha256="first", near_sha256="second", distance="distance"),
            pairs.select(sha256="second", near_sha256="first", distance="distance"),
        ]
    ).join(members.select(near_sha256="sha256", near_path="path"), on="near_sha256")
    reached = targets.select("sha256")
    found = []
    for step in range(LONGEST_CHAIN):
        ways = ways.join(reached, on="sha256", how="anti")
        nearest = (
            ways.join(reached, left_on="near_sha256", right_on="sha256", how="semi")
            .sort("sha256", "distance", "near_sha256")
            .unique("sha256", keep="first", maintain_order=True)
        )
        found.append(nearest.with_columns(direct=pl.lit(step == 0)))
        reached = nearest.select("sha256")
        if reached.is_empty():
            break
    return pl.concat(found)


def _contradicted(pairs: pl.DataFrame, labeled: pl.DataFrame) -> pl.Series:
    """The sha256 of both pictures of each pair that have different labels."""
    labels = labeled.select("sha256", "label")
    both = pairs.join(labels, left_on="first", right_on="sha256").join(labels, left_on="second", right_on="sha256")
    differ = both.filter(pl.col("label") != pl.col("label_right"))
    return pl.concat([differ["first"], differ["second"]]).unique()


def _placeholders(members: pl.DataFrame, placeholder_copies: int) -> pl.DataFrame:
    """FAULTS of the training images whose flat picture, or nearly that, very many files show."""
    picture = pl.coalesce("near_group", "sha256")
    found = (
        members.filter(pl.col("near_group").is_not_null() | (pl.col("shown") >= placeholder_copies))
        .with_columns(pl.col("shown").sum().over(picture), entropy=pl.col("entropy").median().over(picture))
        .filter(pl.col("shown") >= placeholder_copies, pl.col("entropy") < PLACEHOLDER_ENTROPY)
        .filter(pl.col("split") == "train")
    )
    limit = f"validate.near_duplicates.placeholder_copies is {placeholder_copies}"
    return faults(found, "placeholder", pl.format("{} files show this flat picture or nearly it; " + limit, "shown"))
