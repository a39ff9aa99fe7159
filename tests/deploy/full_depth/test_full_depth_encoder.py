"""An encoder for images at full depth: what it embeds, from where, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from onnx import TensorProto

import deploy
from deploy.bundle import Bundle, read_bundle
from deploy.cli.main import main
from deploy.errors import BundleFormatError, BundleInterfaceError, ImageError
from deploy.folders.folder import image_files
from deploy.latency import samples
from deploy.triton import export_triton
from tests.deploy.conftest import encoded, noise
from tests.deploy.full_depth.deep_bundle import (
    PREPROCESSING,
    cells,
    embedding_of,
    make_deep_bundle,
    make_deep_card,
    make_deep_model,
    saved,
)


@pytest.fixture
def deep(publish_bundle: Callable[[Bundle], Path]) -> Path:
    return publish_bundle(make_deep_bundle())


def test_an_array_an_array_file_and_a_tiff_give_one_vector(deep: Path, tmp_path: Path) -> None:
    encoder, pixels = deploy.load(deep), cells(9)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "first.npy", np.moveaxis(pixels, 2, 0))
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(pixels, 2, 0), photometric="minisblack", planarconfig="separate")
    given = [pixels, tmp_path / "a.npy", tmp_path / "first.npy", tmp_path / "a.tif", saved(pixels)]
    found = encoder.embed(given).vectors
    expected = embedding_of(PREPROCESSING.apply(pixels))
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(encoder.embed(np.stack([pixels, pixels])).vectors - expected).max() < 1e-6


def test_the_low_byte_is_in_the_vector(deep: Path) -> None:
    pixels = cells(9)
    other = pixels ^ np.arange(1, 6, dtype=np.uint16)
    assert (pixels >> 8 == other >> 8).all()
    found = deploy.load(deep).embed([pixels, other]).vectors
    assert not np.array_equal(found[0], found[1])


def test_the_bundle_verifies_and_says_what_it_takes(deep: Path) -> None:
    encoder = deploy.load(deep)
    assert encoder.verify().cosine_min > 0.9999
    assert encoder.takes_arrays
    assert json.loads((deep / "bundle.json").read_text())["preprocessing"] == PREPROCESSING.to_json()
    assert sorted(path.name for path in (deep / "golden").iterdir()) == ["00.npy", "01.npy", "02.npy", "vectors.npy"]


@pytest.mark.parametrize("given", [encoded(noise(0)), saved(cells(0)[:, :, :3]), noise(0), saved(cells(0) / 1.0)])
def test_other_images_are_refused_by_name(deep: Path, given: object) -> None:
    with pytest.raises(ImageError) as caught:
        deploy.load(deep).embed(given)  # type: ignore[arg-type]
    assert caught.value.reason in ("wrong_channels", "unsupported_input", "unsupported_depth")


def test_a_graph_for_bytes_contradicts_the_card(publish_bundle: Callable[[Bundle], Path]) -> None:
    card = make_deep_card()
    model = make_deep_model(card, TensorProto.UINT8).SerializeToString()
    with pytest.raises(BundleInterfaceError, match=r"bundle\.json says uint16 \[batch, 8, 8, 5\]"):
        deploy.load(publish_bundle(make_deep_bundle(card, model)))


def test_statistics_of_other_channels_contradict_the_card(publish_bundle: Callable[[Bundle], Path]) -> None:
    card = make_deep_card(normalisation={"mean": [0.0] * 3, "std": [1.0] * 3})
    with pytest.raises(BundleFormatError, match=r"mean has 3 values for 5 channels"):
        read_bundle(publish_bundle(make_deep_bundle(card)))
    card = make_deep_card(preprocessing={"size": 8, "resize": 8, "channels": 17})
    with pytest.raises(BundleFormatError, match=r"preprocessing\.channels is of a wrong type or out of its range"):
        read_bundle(publish_bundle(make_deep_bundle(card)))


def test_arrays_are_image_files_for_such_an_encoder_only(deep: Path, tmp_path: Path, bundle: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    np.save(folder / "a.npy", cells(1))
    np.save(folder / "no-suffix", cells(2))
    (folder / "no-suffix.npy").rename(folder / "no-suffix")
    notices: list[str] = []
    assert len(image_files(folder, arrays=True)) == 2
    (folder / "b.png").write_bytes(encoded(noise(0)))
    assert image_files(folder, notices.append) == [str(folder / "b.png")]
    assert "is an array, which this encoder does not take for an image" in " ".join(notices)


def test_a_folder_of_arrays_is_embedded(deep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", cells(number))
    assert main(["embed", str(deep), str(folder), "-o", str(tmp_path / "out")]) == 0
    expected = [embedding_of(PREPROCESSING.apply(cells(number))) for number in range(3)]
    assert np.abs(np.load(tmp_path / "out" / "vectors.npy") - expected).max() < 1e-6


def test_the_files_for_triton_have_the_type_and_the_channels(deep: Path, tmp_path: Path) -> None:
    model = export_triton(deep, tmp_path / "models")
    assert "data_type: TYPE_UINT16 dims: [ 8, 8, 5 ]" in (model / "config.pbtxt").read_text()
    readme = (model / "README.md").read_text()
    assert 'Preprocessing(size=8, resize=8, channels=5).read(Path("cells.npy").read_bytes())' in readme
    assert '[1, 8, 8, 5], "UINT16")' in readme


def test_an_encoder_is_measured_on_an_array(deep: Path) -> None:
    assert deploy.load(deep).embed(samples(5)).vectors.shape == (1, 5)
    assert samples(5) == samples(5)
