"""Embeddings in TensorBoard: a t-SNE map for each of several epochs, and what its projector needs.

Files and not ``SummaryWriter.add_embedding``, whose list of embeddings starts again with every writer: a run that
continues would forget the epochs before the interruption. t-SNE rather than UMAP: scikit-learn is there already, and
umap-learn would bring numba with a compiler.
"""

import io
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from deploy.artifact import write_atomically
from simclr_core.evaluation.embedding_map import save_map
from simclr_core.monitoring.diagnostics import Monitor, thumbnails

CONFIG = "projector_config.pbtxt"  # the name that TensorBoard looks for in the folder of a run
PROJECTED = 5000  # images; the projector, which computes in the browser, gets slow with more


def add_map(board: SummaryWriter, folder: Path, epoch: int, features: NDArray[np.float32], monitor: Monitor) -> None:
    """A map of the monitor's ``features`` [m, d] among the images of the board, and as a file in ``folder/maps``."""
    path = folder / "maps" / f"epoch-{epoch:04d}.png"
    save_map(path, features, monitor.labels.astype(np.int64), monitor.classes)
    with Image.open(path) as picture:
        board.add_image("embedding map", np.asarray(picture.convert("RGB")), epoch, dataformats="HWC")


def add_to_projector(folder: Path, epoch: int, features: NDArray[np.float32], monitor: Monitor) -> None:
    """``features`` [m, d] with labels and pictures, next to those of other epochs in the run's ``folder``."""
    place = folder / "projector" / f"epoch-{epoch:04d}"
    content = io.BytesIO()
    np.savetxt(content, features[:PROJECTED], fmt="%.6g", delimiter="\t")
    write_atomically(place / "tensors.tsv", content.getvalue())
    names = "".join(f"{' '.join(name.split())}\n" for name in monitor.names[:PROJECTED])
    write_atomically(place / "metadata.tsv", names)
    pictures = thumbnails(monitor.images[:PROJECTED]) if monitor.pictures is None else monitor.pictures[:PROJECTED]
    sprite, side = _sprite(pictures)
    write_atomically(place / "sprite.png", sprite)

    config = ProjectorConfig()
    for done in sorted((folder / "projector").iterdir()):
        embedding = config.embeddings.add(tensor_name=f"h after {done.name}")
        path = done.relative_to(folder)
        embedding.tensor_path, embedding.metadata_path = f"{path}/tensors.tsv", f"{path}/metadata.tsv"
        embedding.sprite.image_path = f"{path}/sprite.png"
        embedding.sprite.single_image_dim.extend([side, side])
    write_atomically(folder / CONFIG, text_format.MessageToString(config))


def _sprite(tiles: NDArray[np.uint8]) -> tuple[bytes, int]:
    """[m, s, s, 3] row by row in one square PNG, and the side of each picture in it."""
    side = tiles.shape[1]
    columns = ceil(sqrt(len(tiles)))
    sheet = Image.new("RGB", (columns * side, columns * side))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(tile), (column * side, row * side))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue(), side
