"""Images on a background and in a square, by arithmetic of the test's own; in training and in serving alike."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from deploy.images.background import BACKGROUNDS, letterbox
from deploy.images.inputs import read_pixels
from deploy.images.preprocess import Preprocessing, canonicalize, decode
from tests.deploy.conftest import encoded

RGB = np.random.default_rng(0).integers(0, 256, (40, 64, 3)).astype(np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (40, 64)).astype(np.uint8)
ALPHA[:8] = 0
FILE = encoded(np.dstack([RGB, ALPHA]))


def behind(background: str) -> NDArray[np.float64]:
    """What is painted behind RGB: [40, 64, 3]."""
    if background == "mean":
        return np.broadcast_to(RGB[ALPHA > 0].mean(axis=0).round(), RGB.shape)
    if background == "checker":  # the longer side has 16 squares of 4 pixels
        return np.array([[[(153, 102)[(row // 4 + column // 4) % 2]] * 3 for column in range(64)] for row in range(40)])
    return np.full(RGB.shape, {"white": 255, "black": 0, "gray": 128}[background])


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_each_pixel_is_mixed_with_the_background_by_its_alpha(background: str) -> None:
    share = ALPHA[..., np.newaxis] / 255
    expected = RGB * share + behind(background) * (1 - share)
    assert np.abs(decode(FILE, background=background) - expected).max() <= 1
    image, operations = canonicalize(Image.fromarray(np.dstack([RGB, ALPHA])), background)
    assert operations == [f"alpha_on_{background}"]
    assert np.array_equal(np.array(image), decode(FILE, background=background))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_letterbox_shows_the_whole_image_between_two_bars(background: str) -> None:
    found = np.array(letterbox(Image.fromarray(RGB), 64, background)).astype(int)
    expected = {"mean": RGB.reshape(-1, 3).mean(axis=0).round(), "white": 255, "black": 0, "gray": 128}
    assert found.shape == (64, 64, 3)
    assert np.array_equal(found[12:52], RGB)
    if background in expected:
        assert (found[[*range(12), *range(52, 64)]] == expected[background]).all()
    else:
        assert set(np.unique(found[:12])) == {102, 153}


@pytest.mark.parametrize(("shape", "square"), [((100, 30), 20), ((30, 100), 20), ((9, 4), 9), ((1, 5_000), 20)])
def test_a_letterbox_reduces_the_longer_side_and_enlarges_nothing(shape: tuple[int, int], square: int) -> None:
    once = letterbox(Image.fromarray(np.full((*shape, 3), 7, np.uint8)), 20, "white")
    assert once.size == (square, square)
    assert letterbox(once, 20, "white") is once
    shown = (np.array(once)[..., 0] < 255).sum() / square**2
    assert shown == pytest.approx(max(min(shape) / max(shape), 1 / square), abs=0.06)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("fits", [True, False])
def test_what_is_served_from_a_file_is_what_prepare_stores_of_it(background: str, fits: bool) -> None:
    preprocessing = Preprocessing(24, 24, background, letterbox=fits)
    stored = Image.fromarray(decode(FILE, background=background))
    stored = letterbox(stored, 24, background) if fits else stored
    served = read_pixels(FILE, preprocessing)
    assert isinstance(served, np.ndarray)
    assert np.array_equal(served, preprocessing.apply(np.array(stored)))
    assert np.array_equal(served, preprocessing.read(FILE))
    assert np.array_equal(served, read_pixels(Image.fromarray(np.dstack([RGB, ALPHA])), preprocessing))


def test_an_opaque_image_has_no_background() -> None:
    opaque = encoded(np.dstack([RGB, np.full_like(ALPHA, 255)]))
    assert np.array_equal(decode(opaque, background="black"), RGB)
