"""A bundle loads exactly as it was published, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.artifact import MANIFEST, identity, publish, verify
from deploy.bundle import MODEL, Bundle, Head, read_bundle
from deploy.errors import (
    ArtifactError,
    BundleFormatError,
    BundleInterfaceError,
    CorruptArtifactError,
    DeployError,
    MissingArtifactError,
)
from tests.deploy.conftest import DIM, LABELS, make_bundle, make_card, make_model


def test_a_bundle_is_read_as_it_was_written(publish_bundle: Callable[[Bundle], Path]) -> None:
    written = make_bundle()
    directory = publish_bundle(replace(written, documents={"MODEL_CARD.md": "# card\n"}))
    read = read_bundle(directory)
    assert read.card == written.card
    assert read.model == written.model
    assert read.variants == {}
    assert read.golden_images == written.golden_images
    assert np.array_equal(read.golden_vectors, written.golden_vectors)
    assert read.head is not None
    assert written.head is not None
    assert read.head.labels == LABELS
    assert np.array_equal(read.head.weight, written.head.weight)
    assert read.id == identity(directory)
    assert (directory / "MODEL_CARD.md").read_text() == "# card\n"


def test_the_same_bundle_has_the_same_bytes_and_id(publish_bundle: Callable[[Bundle], Path]) -> None:
    assert identity(publish_bundle(make_bundle())) == identity(publish_bundle(make_bundle()))


def test_one_flipped_bit_in_any_file_is_refused_by_name(bundle: Path) -> None:
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and path.name != MANIFEST)
    assert {file.name for file in files} >= {"bundle.json", MODEL, "head.npz", "labels.json", "00.png", "vectors.npy"}
    for file in files:
        original = file.read_bytes()
        for position in (0, len(original) // 2, len(original) - 1):
            flipped = bytearray(original)
            flipped[position] ^= 1
            file.write_bytes(flipped)
            with pytest.raises(CorruptArtifactError, match=file.name):
                deploy.load(bundle)
        file.write_bytes(original)
    verify(bundle)


def test_hashes_are_checked_before_anything_is_parsed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("parsed a file that differs from the manifest")

    (bundle / MODEL).write_bytes(b"\0")
    monkeypatch.setattr(json, "loads", never)
    monkeypatch.setattr(np, "load", never)
    with pytest.raises(CorruptArtifactError):
        read_bundle(bundle)


def test_missing_extra_and_incomplete_directories_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no such directory"):
        deploy.load(tmp_path / "nowhere")
    (bundle / "encoder.fp32.onnx.data").write_bytes(b"weights")
    with pytest.raises(CorruptArtifactError, match=r"encoder\.fp32\.onnx\.data"):
        deploy.load(bundle)
    (bundle / "encoder.fp32.onnx.data").unlink()
    (bundle / "labels.json").unlink()
    with pytest.raises(CorruptArtifactError, match=r"labels\.json"):
        deploy.load(str(bundle))
    (bundle / MANIFEST).unlink()
    with pytest.raises(MissingArtifactError, match=MANIFEST):
        deploy.load(bundle)


@pytest.mark.parametrize("version", [0, 4, None, "1", True])
def test_another_format_version_is_refused(version: object, publish_bundle: Callable[[Bundle], Path]) -> None:
    with pytest.raises(BundleFormatError, match=r"format version .*, this release reads 1, 2, 3; install"):
        read_bundle(publish_bundle(make_bundle(make_card(format_version=version))))


@pytest.mark.parametrize(
    "changes",
    [{"dim": "5"}, {"preprocessing": None}, {"golden": {}}, {"preprocessing": {"size": 9, "resize": 8}}, {"name": 3}],
)
def test_an_incomplete_card_is_refused(changes: dict[str, object], publish_bundle: Callable[[Bundle], Path]) -> None:
    bundle = replace(make_bundle(), card=make_card(**changes))
    with pytest.raises(BundleFormatError):
        read_bundle(publish_bundle(bundle))


def test_parts_that_do_not_match_are_refused(publish_bundle: Callable[[Bundle], Path]) -> None:
    whole = make_bundle()
    head = Head(np.zeros((DIM, 2), np.float32), np.zeros(2, np.float32), LABELS)
    with pytest.raises(BundleFormatError, match=r"head\.npz: weight is float32 \[5, 2\], not float32 \[5, 3\]"):
        read_bundle(publish_bundle(replace(whole, head=head)))
    with pytest.raises(BundleFormatError, match=r"golden/vectors\.npy"):
        read_bundle(publish_bundle(replace(whole, golden_vectors=whole.golden_vectors.astype(np.float64))))
    with pytest.raises(BundleFormatError, match="golden"):
        read_bundle(publish_bundle(replace(whole, golden_images=(), golden_vectors=np.zeros((0, DIM), np.float32))))


def test_a_pickle_is_never_opened(bundle: Path, tmp_path: Path) -> None:
    with publish(tmp_path / "pickled") as work:
        shutil.copytree(bundle, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        np.savez(work / "head.npz", weight=np.array([{}], dtype=object), bias=np.zeros(3, np.float32))
    with pytest.raises(BundleFormatError, match=r"head\.npz: weight is object \[1\], not float32 \[5, 3\]"):
        deploy.load(tmp_path / "pickled")


def test_a_graph_with_another_interface_is_refused(publish_bundle: Callable[[Bundle], Path]) -> None:
    card = make_card()
    with pytest.raises(BundleInterfaceError, match=r"bundle\.json says uint8"):
        deploy.load(publish_bundle(make_bundle(model=make_model(card, input_size=9).SerializeToString())))
    other = make_model(make_card(normalisation={"mean": [0.5] * 3, "std": [1.0] * 3}))
    with pytest.raises(BundleInterfaceError, match="was exported as"):
        deploy.load(publish_bundle(make_bundle(model=other.SerializeToString())))
    unknown = make_model(card)
    unknown.graph.node[0].op_type = "Nonsense"
    with pytest.raises(BundleInterfaceError, match=r"onnxruntime .* refuses the model: .*Nonsense"):
        deploy.load(publish_bundle(make_bundle(model=unknown.SerializeToString())))


def test_a_bundle_of_format_version_1_still_works(tmp_path: Path) -> None:
    """As the previous release wrote it: no variants, no temperature, and version 1 also in the graph's metadata."""
    card = make_card(format_version=1)
    old = make_bundle(card)
    assert old.head is not None
    with publish(tmp_path / "old") as work:
        (work / "bundle.json").write_text(json.dumps(card))
        (work / MODEL).write_bytes(old.model)
        np.savez(work / "head.npz", weight=old.head.weight, bias=old.head.bias)
        (work / "labels.json").write_text(json.dumps(LABELS))
        (work / "golden").mkdir()
        for position, image in enumerate(old.golden_images):
            (work / "golden" / f"{position:02d}.png").write_bytes(image)
        np.save(work / "golden" / "vectors.npy", old.golden_vectors)
    encoder = deploy.load(tmp_path / "old", variant="auto", threads=1)
    assert encoder.verify().images == 3
    assert encoder.id == identity(tmp_path / "old")
    assert encoder.info["variants"] == {"fp32": {}}
    assert encoder.info["runtime"]["variant"] == "fp32"
    assert len(encoder.classify(old.golden_images[0])) == 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_temperature_is_refused(temperature: float, publish_bundle: Callable[[Bundle], Path]) -> None:
    whole = make_bundle()
    assert whole.head is not None
    with pytest.raises(BundleFormatError, match=r"head\.npz: temperature is"):
        read_bundle(publish_bundle(replace(whole, head=replace(whole.head, temperature=temperature))))


def test_every_error_is_a_deploy_error_and_a_value_error() -> None:
    for error in (ArtifactError, BundleFormatError, BundleInterfaceError, MissingArtifactError):
        assert issubclass(error, DeployError)
    assert issubclass(DeployError, ValueError)
