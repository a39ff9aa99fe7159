"""What ``data/explore`` shows: its table, thumbnails and index as the page asks for them.

Read once, when it is opened. A run that replaces the folder meanwhile does not change it; the server opens it again.
"""

from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

import deploy
from deploy.encoder import Encoder
from deploy.explore.collection import Near, Picture
from deploy.explore.columns import Coded, pack
from deploy.explore.sprites import ACROSS, ON_SHEET, SIDE
from deploy.images.preview import preview
from deploy.images.signatures import sniff
from deploy.search.index import Index
from pipeline.errors import WorkspaceError
from pipeline.explore.explore import INDEX, SPRITES, TABLE, PreparedImages, folder_of
from pipeline.explore.graph import has_stage
from pipeline.workspace import Workspace

TEXTS = ("label", "prediction", "split", "batch", "state", "reason", "champion")
NUMBERS = ("x", "y", "confidence", "novelty", "label_confidence")
SHOWN = {"png": "image/png", "jpeg": "image/jpeg"}
MISSING = "{}: there is no map yet; `simclr run --select explore` makes it, once `simclr run` has exported an encoder"
NO_STAGE = "{}: its dvc.yaml is older than the explorer; `simclr explore --add-stage` adds the stage that makes the map"


class Shown:
    """The images of a workspace, as ``deploy.explore.collection.Collection``.

    Raises:
        WorkspaceError: there is no map yet.
        ArtifactError: the index is damaged.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._folder = folder_of(workspace)
        if not (self._folder / TABLE).is_file():
            raise WorkspaceError((MISSING if has_stage(workspace) else NO_STAGE).format(workspace.root))
        self._workspace = workspace
        self.table = pl.read_parquet(self._folder / TABLE)
        self._index = Index.open(self._folder / INDEX)
        sheets = sorted((self._folder / SPRITES).glob("*.jpg"))
        self._sheets = {number: path.read_bytes() for number, path in enumerate(sheets)}
        places = self.table.with_row_index("number").drop_nulls("row").unique("row", keep="first").sort("row")
        self._number = places["number"].to_numpy()  # the row of the table, for each of the index

    @cached_property
    def points(self) -> bytes:
        columns: dict[str, Any] = {
            name: self.table[name].fill_null(np.nan).to_numpy().astype(np.float32) for name in NUMBERS
        }
        columns |= {name: _coded(self.table[name]) for name in TEXTS}
        columns["near_group"] = Coded(_coded(self.table["near_group"]).codes)
        tile = self.table["sprite"] * ON_SHEET + self.table["cell"] + 1
        columns["tile"] = Coded(tile.fill_null(0).to_numpy())
        return pack(columns, {"count": len(self.table), "sprites": {"side": SIDE, "across": ACROSS}})

    def sheet(self, number: int) -> Picture | None:
        return Picture(self._sheets[number], "image/jpeg") if number in self._sheets else None

    def picture(self, row: int) -> Picture | None:
        """As `prepare` has stored it; what a browser cannot show, as a PNG."""
        one = self._rows([row])
        if not one or one[0]["state"] == "quarantined":
            return None
        data = self._images.read(one[0]["sha256"])
        if (kind := sniff(data)) in SHOWN:
            return Picture(data, SHOWN[kind])
        content = BytesIO()
        Image.fromarray(preview(self._images.pixels(one[0]["sha256"]))).save(content, "PNG")
        return Picture(content.getvalue(), "image/png")

    def details(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        found = self._rows(rows)
        known = {sha256 for one in found for sha256 in one["neighbors"] or ()}
        numbers = dict(
            self.table.with_row_index("number")
            .filter(pl.col("sha256").is_in(list(known)) & pl.col("row").is_not_null())
            .select("sha256", "number")
            .iter_rows()
        )
        return [
            one | {"neighbors": [numbers[sha256] for sha256 in one["neighbors"] or () if sha256 in numbers]}
            for one in found
        ]

    def near(self, row: int, most: int) -> Near:
        one = self._rows([row])
        if not one or one[0]["row"] is None:
            return Near([], [])
        return self._search(np.asarray(self._index.vectors[one[0]["row"]], np.float32), most, without=one[0]["row"])

    def find(self, picture: bytes, most: int) -> Near:
        return self._search(self._encoder.embed(picture).vectors[0], most)

    def search(self, text: str) -> Sequence[int]:
        path = self.table["path"].str.to_lowercase()
        return path.str.contains(text.lower(), literal=True).arg_true().to_list() if text else []

    def listed(self, names: Sequence[str]) -> Sequence[int]:
        wanted = pl.col("path").is_in(list(names)) | pl.col("sha256").is_in(list(names))
        return self.table.with_row_index("number").filter(wanted)["number"].to_list()

    def hashes(self, rows: Sequence[int]) -> list[str]:
        return [one["sha256"] for one in self._rows(rows)]

    def _rows(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        inside = [row for row in rows if row < len(self.table)]
        return self.table[inside].to_dicts() if inside else []

    def _search(self, vector: Any, most: int, without: int = -1) -> Near:
        found = self._index.search(vector, most + 1)
        pairs = [
            (int(self._number[row]), float(score))
            for row, score in zip(found.rows[0], found.scores[0], strict=True)
            if row != without
        ][:most]
        return Near([row for row, _ in pairs], [score for _, score in pairs])

    @cached_property
    def _images(self) -> PreparedImages:
        return PreparedImages(self._workspace.prepared)

    @cached_property
    def _encoder(self) -> Encoder:
        """Loaded for the first picture that is dropped.

        Raises:
            IndexMismatchError: the workspace has another encoder by now.
        """
        encoder = deploy.load(self._workspace.root / "models" / "bundle")
        self._index.check_encoder(encoder)
        return encoder


def _coded(column: pl.Series) -> Coded:
    values = column.drop_nulls().unique().sort()
    codes = column.replace_strict(values, pl.Series(range(1, len(values) + 1)), default=0, return_dtype=pl.UInt32)
    return Coded(codes.to_numpy(), values.to_list())
