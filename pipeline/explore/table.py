"""``data/explore/images.parquet``: everything that the explorer shows of an image, one row per ingested file.

    path, sha256       as ingested
    batch              the ingest that tells of this file
    split              train or test
    label              its class, several as ``cat|dog``; null where it has none
    state              accepted, converted or quarantined
    reason             why it is quarantined: the primary reason; null if it is used
    near_group         which images look nearly alike; null: no other does
    prediction         what the bundle's classifier says, out of fold where ``reports/predictions.parquet`` has that;
                       null without a classifier
    confidence         the probability of that answer, 0 to 1; of several labels, that of the least certain one
    label_confidence   the probability of the image's own label; null without one
    champion           what the released encoder says of a labeled test image; null without one
    novelty            1 - cosine to the landmark nearest to it: unlike the earliest images, see ``landmark_map``
    x, y               its place on the map, -1 to 1; a copy is where its original is; null where there is no place
    sprite, cell       the number of its sheet of thumbnails, and its place on that, row by row; null without a picture
    row                of its vector in ``data/explore/index``; null without one
    neighbors          SHA-256 of the nearest labeled training images, nearest first, but for itself
    neighbor_cosines   how near each of them is, -1 to 1

The rows are in the order of the manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deploy.explore.sprites import ON_SHEET
from pipeline.validation.tables import shown_label

IMAGES = pl.Schema(
    {
        **dict.fromkeys(("path", "sha256", "batch", "split", "label", "state", "reason", "near_group"), pl.String()),
        "prediction": pl.String(),
        "confidence": pl.Float32(),
        "label_confidence": pl.Float32(),
        "champion": pl.String(),
        **dict.fromkeys(("novelty", "x", "y"), pl.Float32()),
        **dict.fromkeys(("sprite", "cell", "row"), pl.Int32()),
        "neighbors": pl.List(pl.String()),
        "neighbor_cosines": pl.List(pl.Float32()),
    }
)
FILES = ("path", "sha256", "ingest_batch", "split", "label", "verdict", "reasons", "near_group", "copy_of")
"""What is read of the manifest."""

STATES = {"accept": "accepted", "convert": "converted", "quarantine": "quarantined"}
ANSWERS = pl.Schema(
    {
        "sha256": pl.String(),
        "prediction": pl.String(),
        "confidence": pl.Float32(),
        "label_confidence": pl.Float32(),
    }
)
"""What a classifier says of each content; at most one row for each."""


@dataclass(frozen=True)
class Seen:
    """What was found out about the contents that are on the map, by their rows.

    Attributes:
        hashes: SHA-256 of each.
        points, novelty: as ``landmark_map.Place``.
        nearest, cosines: as ``landmark_map.nearest_labeled``.
    """

    hashes: Sequence[str]
    points: NDArray[np.float32]
    novelty: NDArray[np.float32]
    nearest: NDArray[np.int64]
    cosines: NDArray[np.float32]


def build(files: pl.DataFrame, seen: Seen, answers: pl.DataFrame, champion: pl.DataFrame) -> pl.DataFrame:
    """IMAGES: the FILES of the manifest, in their order.

    Args:
        answers: ANSWERS of the bundle.
        champion: sha256 and champion of the test images that the released encoder was asked about.
    """
    places = _places(seen)
    quarantined = pl.col("verdict") == "quarantine"
    table = (
        files.rename({"ingest_batch": "batch"})
        .with_columns(
            label=shown_label(pl.col("label")),
            state=pl.col("verdict").replace_strict(STATES, default=None),
            reason=pl.col("reasons").list.first(),
            shown=pl.when(quarantined).then(pl.col("copy_of")).otherwise(pl.col("sha256")),
        )
        .join(places.rename({"sha256": "shown"}), on="shown", how="left", maintain_order="left")
    )
    # Of a file that is not used nothing is said but where its original is: it has no vector, and no answer.
    own = ("novelty", "row", "neighbors", "neighbor_cosines")
    table = table.with_columns(pl.when(~quarantined).then(pl.col(own)))
    for said in (answers, champion):
        table = table.join(said, on="sha256", how="left", maintain_order="left")
    silent = ("prediction", "confidence", "label_confidence", "champion")
    table = table.with_columns(pl.when(~quarantined).then(pl.col(silent)))
    return table.select(list(IMAGES)).cast(IMAGES)


def _places(seen: Seen) -> pl.DataFrame:
    rows = np.arange(len(seen.hashes))
    hashes = np.array(seen.hashes, object)
    known = seen.nearest >= 0
    return pl.DataFrame(
        {
            "sha256": pl.Series(seen.hashes, dtype=pl.String),
            "x": pl.Series(seen.points[:, 0]).fill_nan(None),
            "y": pl.Series(seen.points[:, 1]).fill_nan(None),
            "novelty": pl.Series(seen.novelty).fill_nan(None),
            "sprite": pl.Series(rows // ON_SHEET, dtype=pl.Int32),
            "cell": pl.Series(rows % ON_SHEET, dtype=pl.Int32),
            "row": pl.Series(rows, dtype=pl.Int32),
            "neighbors": pl.Series(
                [hashes[near[there]].tolist() for near, there in zip(seen.nearest, known, strict=True)],
                dtype=pl.List(pl.String),
            ),
            "neighbor_cosines": pl.Series(
                [near[there].tolist() for near, there in zip(seen.cosines, known, strict=True)],
                dtype=pl.List(pl.Float32),
            ),
        }
    )
