"""The images of a search index on the explorer's page: places from its vectors, pictures from the files it names.

Thumbnails are decoded when the page asks for them, a sheet at a time. A file that is gone, or is not an image any more,
has a gray one.
"""

from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.encoder import Encoder
from deploy.errors import ImageError
from deploy.explore.collection import Near, Picture
from deploy.explore.columns import Coded, pack
from deploy.explore.placement import place
from deploy.explore.sprites import ACROSS, ON_SHEET, SIDE, sheet
from deploy.explore.tsne import tsne
from deploy.images.full_depth import Samples
from deploy.images.preprocess import decode
from deploy.images.preview import preview
from deploy.search.index import Index

LANDMARKS = 1000  # t-SNE takes some seconds for them
KEPT_SHEETS = 64
GRAY = np.full((SIDE, SIDE, 3), 127, np.uint8)
MOST_VALUES = 60_000  # of a column of text
SHOWN_SIDE = 800  # pixels of a picture in full


class Indexed:
    """An index with its encoder, as ``deploy.explore.collection.Collection``.

    Raises:
        IndexMismatchError: another encoder made the index.
    """

    def __init__(self, index: Index, encoder: Encoder) -> None:
        index.check_encoder(encoder)
        self._index, self._encoder = index, encoder
        self._sheet = lru_cache(KEPT_SHEETS)(self._draw)
        self.points = self._arrange()

    def _arrange(self) -> bytes:
        """Takes a while where there are many images: at the start, and not when the page asks."""
        count = len(self._index)
        places = place(_unit(self._index.vectors), min(LANDMARKS, count), tsne)
        columns: dict[str, Any] = {"x": places.points[:, 0], "y": places.points[:, 1]}
        for name, column in self._index.columns.items():
            if column.kind == "text" or column.kind == "true and false":
                if len(column.values) <= MOST_VALUES:
                    columns[name] = Coded(column.codes + 1, [str(value) for value in column.values])
            else:
                known = np.append(column.values.astype(np.float32), np.float32(np.nan))
                columns[name] = known[column.codes]
        columns |= {"novelty": places.novelty, "tile": Coded(np.arange(1, count + 1))}
        return pack(columns, {"count": count, "sprites": {"side": SIDE, "across": ACROSS}})

    def sheet(self, number: int) -> Picture | None:
        return self._sheet(number) if number * ON_SHEET < len(self._index) else None

    def picture(self, row: int) -> Picture | None:
        """At most ``SHOWN_SIDE`` pixels wide and high."""
        pixels = self._pixels(row) if row < len(self._index) else None
        if pixels is None:
            return None
        image, content = Image.fromarray(np.ascontiguousarray(preview(pixels))), BytesIO()
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        image.save(content, "PNG")
        return Picture(content.getvalue(), "image/png")

    def details(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        inside = [row for row in rows if row < len(self._index)]
        return [{"path": str(self._index.ids[row]), "metadata": self._index.metadata(row)} for row in inside]

    def near(self, row: int, most: int) -> Near:
        if row >= len(self._index):
            return Near([], [])
        return self._search(np.asarray(self._index.vectors[row], np.float32), most, without=row)

    def find(self, picture: bytes, most: int) -> Near:
        return self._search(self._encoder.embed(picture).vectors[0], most)

    def search(self, text: str) -> Sequence[int]:
        wanted = text.lower()
        return [row for row, name in enumerate(self._index.ids) if wanted in name.lower()] if wanted else []

    def listed(self, names: Sequence[str]) -> Sequence[int]:
        wanted = set(names)
        return [row for row, name in enumerate(self._index.ids) if name in wanted]

    def _search(self, vector: NDArray[np.float32], most: int, without: int = -1) -> Near:
        found = self._index.search(vector, most + 1)
        pairs = zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
        kept = [(row, score) for row, score in pairs if row != without][:most]
        return Near([row for row, _ in kept], [score for _, score in kept])

    def _draw(self, number: int) -> Picture:
        rows = range(number * ON_SHEET, min((number + 1) * ON_SHEET, len(self._index)))
        found = (self._pixels(row) for row in rows)
        return Picture(sheet(GRAY if one is None else one for one in found), "image/jpeg")

    def _pixels(self, row: int) -> Samples | None:
        """The image as `simclr-deploy embed` sees it before it is resized; None if the file is gone or damaged."""
        path = Path(str(self._index.ids[row]))
        try:
            return decode(path.read_bytes()) if path.is_file() else None
        except (ImageError, OSError):
            return None


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Of length 1, as those of an index with the metric cosine are."""
    found = np.asarray(vectors, np.float32)
    lengths = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found if np.allclose(lengths, 1, atol=1e-2) else (found / lengths).astype(np.float32)
