"""Explore: all images as the exported encoder sees them, for the page of `simclr explore`.

    python -m pipeline.explore        in a workspace, after export

Writes ``data/explore``: ``images.parquet`` (``table``), ``sprites/`` with thumbnails, and ``index/``, the embeddings of
the images on the map as `simclr-deploy search` reads them, by SHA-256. More than 100,000 images are listed, but not all
are embedded: the landmarks of the map and the newest ones are.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

import deploy
from deploy.artifact import publish
from deploy.bundle import ASSIGNED, Head
from deploy.embeddings import l2_normalize
from deploy.encoder import Encoder
from deploy.errors import ImageError
from deploy.explore.sprites import write_sprites
from deploy.images.full_depth import Samples
from deploy.plural import counted
from deploy.search.index import Index
from pipeline.errors import ValidationError
from pipeline.explore.landmark_map import count_landmarks, nearest_labeled, place
from pipeline.explore.table import ANSWERS, FILES, Seen, build
from pipeline.validation import manifest
from pipeline.workspace import Workspace
from simclr_core.champion import champion_bundle, read_champion
from simclr_core.data import label_sets
from simclr_core.data.shards import ShardedImages, stored_pixels
from simclr_core.errors import DatasetError, NonFiniteFeaturesError
from simclr_core.reporter import emit, record_timing

MOST_IMAGES = 100_000  # on the map; a bound on the time
NEIGHBORS = 5
MOST_LABELED = 10_000  # of which the nearest are sought; a bound on the time
BATCH = 64  # images that onnxruntime gets at a time
TABLE, INDEX, SPRITES = "images.parquet", "index", "sprites"


def run(workspace: Workspace) -> None:
    """Write ``data/explore`` from the manifest, the prepared images and the exported encoder.

    Raises:
        DeployError: the bundle or the champion is damaged.
        SimclrError: a prepared image cannot be read, or the embeddings are not finite.
        ValidationError: the prepared images are not those of the manifest.
    """
    began = time.monotonic()
    files = manifest.read(workspace.manifest, FILES)
    accepted = pl.read_parquet(workspace.manifest / "accepted.parquet", columns=["sha256", "batch", "split", "label"])
    landmarks = count_landmarks(accepted["batch"].to_list())
    images = PreparedImages(workspace.prepared)
    shown = choose(accepted, landmarks)
    encoder = deploy.load(workspace.root / "models" / "bundle")
    hashes, labels = shown["sha256"].to_list(), dict(shown.select("sha256", "label").iter_rows())
    answers: list[pl.DataFrame] = []
    with publish(folder_of(workspace), replace=True) as folder:
        parts = embedded(encoder, images, hashes, labels, answers)
        Index.write(folder / INDEX, parts, encoder, dtype="float16")
        write_sprites(folder / SPRITES, map(images.pixels, hashes))
        vectors = Index.open(folder / INDEX, verify=False).vectors
        placed = place(vectors, min(landmarks, len(hashes)))
        known = (shown["split"] == "train") & shown["label"].is_not_null()
        nearest, cosines = nearest_labeled(vectors, np.flatnonzero(known.to_numpy())[:MOST_LABELED], NEIGHBORS)
        said = out_of_fold(workspace.reports / "predictions.parquet", pl.concat([ANSWERS.to_frame(), *answers]))
        seen = Seen(hashes, placed.points, placed.novelty, nearest, cosines)
        table = build(files, seen, said, ask_champion(workspace.root, images, shown))
        table.write_parquet(folder / TABLE, compression="zstd")
    summary = f"{counted(len(hashes), 'image')} on the map, {counted(len(files), 'file')} in all"
    emit("progress", stage="explore", message=summary)
    record_timing("explore", workspace=workspace.root, seconds=time.monotonic() - began)


def folder_of(workspace: Workspace) -> Path:
    return workspace.root / "data" / "explore"


class PreparedImages:
    """The prepared images of both splits, by the SHA-256 of what they were made from."""

    def __init__(self, prepared: Path) -> None:
        self._places: dict[str, tuple[ShardedImages, int]] = {}
        for split in ("train", "test"):
            images = ShardedImages(prepared / split)
            self._places.update({key.tobytes().hex(): (images, row) for row, key in enumerate(images.keys)})

    def read(self, sha256: str) -> bytes:
        """The file that `prepare` has written."""
        images, position = self._place(sha256)
        return images.read(position)

    def pixels(self, sha256: str) -> Samples:
        return stored_pixels(*self._place(sha256))

    def _place(self, sha256: str) -> tuple[ShardedImages, int]:
        try:
            return self._places[sha256]
        except KeyError:
            raise ValidationError(
                f"{sha256[:12]}: data/prepared is not of this data/manifest; run `simclr run --select prepare`"
            ) from None


def choose(accepted: pl.DataFrame, landmarks: int, most: int = MOST_IMAGES) -> pl.DataFrame:
    """Which of the accepted images, in order of ingestion, are on the map: the landmarks, and the newest others."""
    others = accepted.slice(landmarks)
    return pl.concat([accepted.head(landmarks), others.tail(max(0, most - landmarks))])


def embedded(
    encoder: Encoder,
    images: PreparedImages,
    hashes: Sequence[str],
    labels: Mapping[str, str | None],
    answers: list[pl.DataFrame],
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Ids and vectors of length 1, a batch at a time; what the classifier says of them is added to ``answers``."""
    head, done = encoder.bundle.head, 0
    for part in _features(encoder, images, hashes):
        names = list(hashes[done : done + len(part)])
        if head is not None:
            answers.append(answer(head, part, names, [labels[name] for name in names]))
        yield names, l2_normalize(part)
        done += len(part)
        if done % (16 * BATCH) < BATCH:
            emit("progress", stage="explore", message=f"embedded {done:,} of {len(hashes):,} images")


def answer(
    head: Head, features: NDArray[np.float32], hashes: Sequence[str], labels: Sequence[str | None]
) -> pl.DataFrame:
    """ANSWERS of a classifier about images with these raw ``features`` [n, dim] and labels."""
    probable = head.probabilities(features)
    number = {name: column for column, name in enumerate(head.labels)}
    own = [number.get(label, -1) if label is not None else -1 for label in labels]
    if head.multi_label:
        said = [label_sets.describe(label_sets.join(np.array(head.labels)[row >= ASSIGNED])) for row in probable]
        sure = np.maximum(probable, 1 - probable).min(axis=1)
        known: list[float | None] = [None] * len(own)
    else:
        said = [head.labels[column] for column in probable.argmax(axis=1)]
        sure = probable.max(axis=1)
        known = [float(row[column]) if column >= 0 else None for row, column in zip(probable, own, strict=True)]
    columns = {"sha256": list(hashes), "prediction": said, "confidence": sure, "label_confidence": known}
    return pl.DataFrame(columns, schema=ANSWERS)


def out_of_fold(predictions: Path, answers: pl.DataFrame) -> pl.DataFrame:
    """The ANSWERS, with those out of fold in their place, where there are any: a classifier knows the labels that it
    has learned from."""
    known = {"sha256", "split", "probe", "probe_answer", "probe_label"}
    if answers.is_empty() or not known <= pl.read_parquet_schema(predictions).keys():
        return answers
    rows = pl.read_parquet(predictions, columns=sorted(known)).filter(pl.col("split") == "out_of_fold")
    renamed = {"probe": "prediction", "probe_answer": "confidence", "probe_label": "label_confidence"}
    return answers.update(rows.drop("split").rename(renamed).cast(ANSWERS), on="sha256", maintain_order="left")


def ask_champion(root: Path, images: PreparedImages, shown: pl.DataFrame) -> pl.DataFrame:
    """What the released encoder says of each labeled test image, as sha256 and champion; nothing before a release."""
    hashes = shown.filter((pl.col("split") == "test") & pl.col("label").is_not_null())["sha256"].to_list()
    bundle, said = champion_bundle(root, read_champion(root)), list[str]()
    if bundle is not None and hashes:
        encoder = deploy.load(bundle)
        if (head := encoder.bundle.head) is not None:
            for part in _features(encoder, images, hashes):
                said += answer(head, part, hashes[: len(part)], [None] * len(part))["prediction"].to_list()
    return pl.DataFrame({"sha256": hashes[: len(said)], "champion": said}, {"sha256": pl.String, "champion": pl.String})


def _features(encoder: Encoder, images: PreparedImages, hashes: Sequence[str]) -> Iterator[NDArray[np.float32]]:
    """The raw output of the encoder, a batch at a time."""
    try:
        for part in encoder.embed_iter(map(images.read, hashes), BATCH, normalize=False):
            if not np.isfinite(part.vectors).all():
                raise NonFiniteFeaturesError("models/bundle: embeddings are not finite; export another encoder")
            yield part.vectors
    except ImageError as error:
        raise DatasetError(f"prepared images: {error}; restore them with `dvc checkout --force`") from error
