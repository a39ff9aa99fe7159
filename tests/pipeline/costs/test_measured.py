"""What was measured is kept, and is of use for the parameters that it was measured for."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PrepareConfig
from pipeline.costs import measured
from pipeline.costs.images import SAMPLED, UNKNOWN, measure_image, measure_images, sample
from pipeline.costs.model import Cost
from pipeline.costs.shortages import shortages
from tests.pipeline.costs.examples import MEASURED, read_params


def picture(side: int, width: int | None = None) -> bytes:
    content, shape = io.BytesIO(), (side, width or side, 3)
    Image.fromarray(np.random.default_rng(side).integers(0, 256, shape, np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_it_is_known_until_what_it_depends_on_changes(tmp_path: Path) -> None:
    params = read_params()
    assert measured.read_measured(tmp_path, params) is None
    measured.keep(tmp_path, params, MEASURED)
    assert measured.read_measured(tmp_path, params) == MEASURED
    longer = read_params(pretrain={"epochs": 400, "seed": 3}, linear_eval={"draws": 9})
    assert measured.read_measured(tmp_path, longer) == MEASURED, "a step costs the same"
    assert measured.read_measured(tmp_path, read_params(pretrain={"batch_size": 64})) is None
    assert measured.read_measured(tmp_path, read_params(prepare={"letterbox": True})) is None
    (tmp_path / measured.FILE).write_text("{", encoding="utf-8")
    assert measured.read_measured(tmp_path, params) is None


def test_an_image_is_probed_prepared_and_decoded() -> None:
    found = measure_image(picture(200), 32, {})
    assert found is not None
    *seconds, stored, height, width = found
    assert all(one > 0 for one in seconds)
    assert 32 * 32 < stored < 3 * 32 * 32 + 200
    assert (height, width) == (32, 32)
    whole = measure_image(picture(32, 256), 32, {"letterbox": True})
    cut = measure_image(picture(32, 256), 32, {})
    assert whole is not None
    assert cut is not None
    assert (whole[4:], cut[4:]) == ([32, 32], [32, 256])
    assert whole[3] < cut[3] / 5, "prepare stores 32 x 4 pixels and a plain ground, in place of 32 x 256"
    assert measure_image(b"not an image", 32, {}) is None


@pytest.mark.seconds
def test_means_are_over_what_can_be_decoded() -> None:
    contents = [picture(64), picture(65), b"not an image"]
    found, sizes = measure_images(contents, 32, PrepareConfig())
    assert sizes == ((32, 32), (32, 32))
    assert found.file_bytes == sum(map(len, contents)) / 3
    assert found.probe_seconds > 0
    assert found.prepared_bytes > 1000
    assert measure_images([b"nothing"], 32, PrepareConfig()) == (UNKNOWN, ())


def test_few_files_are_measured_and_not_many_bytes() -> None:
    assert len(sample(b"x" for _ in range(1000))) == SAMPLED
    assert sample(bytes(30_000_000) for _ in range(9)) == [bytes(30_000_000)] * 2


def test_what_the_machine_lacks_is_said() -> None:
    assert list(shortages(Cost(1, 10, 10), free_bytes=10, memory_bytes=10)) == []
    disk, memory = shortages(Cost(1, 3e9, 2e9), free_bytes=1e9, memory_bytes=1e9)
    assert "adds about 2.0 GB to the disk, and 1.0 GB are free" in disk
    assert "takes about 3.0 GB of memory, and the machine has 1.0 GB" in memory
