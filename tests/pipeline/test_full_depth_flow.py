"""Images whose whole content is in the low byte, from the inbox to the server: nothing of their depth is lost."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from numpy.typing import NDArray
from PIL import Image

import deploy
from pipeline.ingest.ingest import ingest
from pipeline.prepare import prepare
from pipeline.reports import ValidationReport
from pipeline.validation.__main__ import run as validate
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data.shards import ShardedImages, read_card, stored_pixels
from simclr_core.evaluation import linear_eval
from simclr_core.export import export
from simclr_core.pretraining import augment_sheet, initial, pretrain
from simclr_core.reports import ExportReport
from tests.conftest import CLASSES, SIDE, draw
from tests.deploy.server.conftest import running
from tests.pipeline.conftest import put


def cells(label: int, seed: int, channels: int) -> NDArray[np.uint16]:
    """An image [SIDE, SIDE, channels] with 4 in every high byte."""
    planes = [np.asarray(draw(label, 10 * seed + channel).convert("L")) for channel in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint16) + np.uint16(1024)


def file_of(pixels: NDArray[np.uint16], number: int) -> tuple[str, bytes]:
    """As a TIFF or an array, in turns, or of one channel as a PNG."""
    content = io.BytesIO()
    if pixels.shape[2] == 1 and number % 3 == 0:
        Image.fromarray(pixels[:, :, 0]).save(content, "PNG")
        return "png", content.getvalue()
    if number % 3 == 1:
        planes = np.moveaxis(pixels, 2, 0)
        separate = {"planarconfig": "separate"} if len(planes) > 1 else {}
        tifffile.imwrite(content, planes.squeeze(), photometric="minisblack", compression="zlib", **separate)
        return "tif", content.getvalue()
    np.save(content, pixels)
    return "npy", content.getvalue()


def fill(workspace: Workspace, channels: int) -> None:
    for number in range(64):
        label = number % 4
        places = {0: f"test/{CLASSES[label]}", 1: f"labeled/{CLASSES[label]}"}
        folder = places.get(number // 4 % 4, "unlabeled")
        suffix, data = file_of(cells(label, number, channels), number)
        put(workspace, f"{folder}/{number}.{suffix}", data)
    put(workspace, "unlabeled/other.npy", file_of(cells(0, 99, 7), 2)[1])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_the_low_byte_comes_through_every_stage(workspace: Workspace, tmp_path: Path, channels: int) -> None:
    params = yaml.safe_load(workspace.params.read_text())
    params["prepare"] |= {"channels": channels}
    params["validate"] = params.get("validate", {}) | {"max_quarantine_rate": 0.1}
    workspace.params.write_text(yaml.safe_dump(params))
    fill(workspace, channels)
    assert ingest(workspace).new_images == 65
    validate(workspace)
    report = reports.read(workspace.root, ValidationReport)
    assert report.passed, report
    assert report.images.quarantined == {"wrong_channels": 1}
    prepare.run(workspace)
    card = read_card(workspace.prepared)
    assert card.channels == channels
    assert all(1024 / 65_535 < mean < 1280 / 65_535 for mean in card.mean)
    images = ShardedImages(workspace.prepared / "train")
    stored = [stored_pixels(images, position) for position in range(len(images))]
    assert {int(one.min()) >> 8 for one in stored} == {4}
    assert len({one.tobytes() for one in stored}) == len(stored)

    initial.run(workspace.root)
    augment_sheet.run(workspace.root, None, 4)
    pretrain.run(workspace.root)
    linear_eval.run(workspace.root)
    export.run(workspace.root)
    exported = reports.read(workspace.root, ExportReport)
    assert exported.cosine_min > 0.99999
    assert exported.served is not None
    assert exported.served.cosine_min > 0.9999

    encoder = deploy.load(workspace.root / "models" / "bundle")
    first, second = cells(1, 1000, channels), cells(1, 1000, channels)
    second[: SIDE // 2] ^= np.uint16(16)
    assert (first >> 8 == 4).all()
    assert (second >> 8 == 4).all()
    np.save(tmp_path / "a.npy", first)
    vectors = encoder.embed([tmp_path / "a.npy", first, second]).vectors
    assert np.array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4
    with running(workspace.root / "models" / "bundle") as server:
        answer = server.post("/v1/embed", (tmp_path / "a.npy").read_bytes(), "application/x-npy")
        assert answer.status == 200, answer.body
        assert np.abs(answer.vectors[0] - vectors[0]).max() < 1e-5
        assert server.ask("GET", "/v1/model").json["preprocessing"]["channels"] == channels
