"""A bundle whose files were edited and whose manifest was made again is refused by one kind of error, or works.

The manifest proves nothing here: an attacker can make one.
"""

import copy
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from deploy.artifact import MANIFEST, publish
from deploy.errors import ArtifactError, BundleError, BundleFormatError, BundleInterfaceError, CorruptArtifactError
from deploy.trust.card import SCHEMA
from tests.deploy.conftest import DIM, IMAGES, make_bundle, make_card, make_model

TOLERANCE = {"cosine_min": 0.9999, "max_abs": 1e-3}
EXPORTED = {
    "license": "proprietary",
    "classes": 3,
    "encoder": {"name": "resnet18", "width": 1.0, "stem": "cifar"},
    "head_layers": 0,
    "multi_label": False,
    "golden": {"images": IMAGES, "tolerance": TOLERANCE},
    "parity": {"cosine_min": 0.99999, "max_abs": 1e-4},
    "metrics": {"linear_eval": {"top1": 83.1}},
    "provenance": {"kind": "pretrained", "model": "0" * 64, "data_digest": "1" * 64, "trained_by": None},
    "producer": {"torch": "2.8.0", "opset": 20},
    "variants": {"fp32": {"knn_top1": 80.0, "classifier_top1": None}},
    "left_out": {"int8": "too far from fp32"},
    "results": {
        "test_images": 9,
        "temperature": 1.1,
        "calibration_error_before": 3.0,
        "calibration_error": 2.0,
        "per_class": {"red": {"images": 3, "recall": 100.0, "precision": None}},
    },
}
"""Every field that export writes, besides those of ``make_card``."""

WRONG: list[Any] = [None, True, -1, 0, 10**9, 2**70, 1e308, 0.5, "", "x", "\ud800", "\x1b[2J", [], [[]], {}, {"x": {}}]
RAW = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, "[" * 100 + "]" * 100, '{"a":' * 100_000, "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deploy.bundle import write_bundle

    directory = tmp_path_factory.mktemp("forged") / "bundle"
    with publish(directory) as work:
        write_bundle(work, make_bundle(make_card(**EXPORTED)))
    return directory


@pytest.fixture
def forge(whole: Path, tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Replace one file of the bundle, and make the manifest again."""
    manifest = (whole / MANIFEST).read_text()

    def forged(name: str, content: bytes) -> Path:
        directory = tmp_path / "bundle"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory, copy_function=os.link)
        (directory / name).unlink(missing_ok=True)
        (directory / name).write_bytes(content)
        (directory / MANIFEST).unlink()
        lines = [line for line in manifest.splitlines(keepends=True) if not line.endswith(f"  {name}\n")]
        (directory / MANIFEST).write_text("".join([*lines, f"{hashlib.sha256(content).hexdigest()}  {name}\n"]))
        return directory

    return forged


def use(directory: Path) -> None:
    """Do what a server does with a bundle: load it, check it, classify, and send its facts as JSON."""
    encoder = deploy.load(directory, threads=1)
    encoder.verify()
    json.dumps(encoder.info, allow_nan=False, ensure_ascii=False).encode()
    (prediction,) = encoder.classify(encoder.bundle.golden_images[0])
    json.dumps(prediction.probabilities, allow_nan=False)


def refused_or_usable(directory: Path) -> bool:
    """Whether the bundle is refused; it fails the test if it does neither that nor work."""
    try:
        use(directory)
    except (BundleError, CorruptArtifactError):
        return True
    return False


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON document."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*path, name))


def changed(card: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    card = copy.deepcopy(card)
    inner: Any = card
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return card


CARD = make_card(**EXPORTED)


def test_the_bundle_that_is_forged_works(whole: Path) -> None:
    use(whole)
    assert set(CARD) == {name.removesuffix("?") for name in SCHEMA}


@pytest.mark.seconds
@pytest.mark.parametrize("path", list(places(CARD)), ids=lambda path: ".".join(map(str, path)))
def test_every_value_of_bundle_json_may_be_anything(path: tuple[Any, ...], forge: Callable[[str, bytes], Path]) -> None:
    count = sum(
        refused_or_usable(forge("bundle.json", json.dumps(changed(CARD, path, value)).encode())) for value in WRONG
    )
    marked = json.dumps(changed(CARD, path, "MARK"))
    for raw in RAW:
        assert refused_or_usable(forge("bundle.json", marked.replace('"MARK"', raw).encode())), raw[:20]
    assert count  # at least the broken Unicode


@pytest.mark.parametrize("name", CARD)
def test_every_field_has_its_type(name: str, forge: Callable[[str, bytes], Path]) -> None:
    other: object = [] if not isinstance(CARD[name], list) else {}
    with pytest.raises(BundleFormatError, match=rf"bundle\.json: .*{name.replace('_', '.')}"):
        deploy.load(forge("bundle.json", json.dumps({**CARD, name: other}).encode()))


@pytest.mark.parametrize("path", list(places(CARD)), ids=lambda path: ".".join(map(str, path)))
def test_every_value_may_be_missing(path: tuple[Any, ...], forge: Callable[[str, bytes], Path]) -> None:
    card = copy.deepcopy(CARD)
    inner: Any = card
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    refused = refused_or_usable(forge("bundle.json", json.dumps(card).encode()))
    assert refused or path[0] not in ("format_version", "name", "dim", "preprocessing", "normalisation")


@pytest.mark.parametrize("name", ["bundle.json", "labels.json"])
@pytest.mark.parametrize("content", [*(raw.encode() for raw in RAW), b"\xff", b"null", b"3", b'"red"', b"{}", b"[]"])
def test_json_of_another_shape_is_refused(name: str, content: bytes, forge: Callable[[str, bytes], Path]) -> None:
    with pytest.raises(BundleFormatError, match=name.replace(".", r"\.")):
        deploy.load(forge(name, content))


@pytest.mark.parametrize(
    "labels",
    ["red", ["red", "green"], ["red", "green", 3], ["red", "green", "green"], {"red": 1}, ["a", "b", "\ud800"]],
)
def test_labels_are_a_list_of_different_names(labels: object, forge: Callable[[str, bytes], Path]) -> None:
    with pytest.raises(BundleFormatError):
        deploy.load(forge("labels.json", json.dumps(labels).encode()))


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}",  # 4 TB
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({IMAGES}, {DIM})}}",  # and no data
    f"{{'descr': '|O', 'fortran_order': False, 'shape': ({IMAGES}, {DIM})}}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5)}",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 5)}",
    "(" * 5000,
    "-" * 9000 + "1",
    "{'descr': '<f4'}",
    "1",
    "",
)


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[:60])
def test_arrays_that_lie_about_themselves_are_refused(header: str, forge: Callable[[str, bytes], Path]) -> None:
    with pytest.raises(BundleFormatError, match=r"vectors\.npy"):
        deploy.load(forge("golden/vectors.npy", npy(header)))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("weight.npy", npy(header))
        file.writestr("bias.npy", npy(header))
    with pytest.raises(BundleFormatError, match=r"head\.npz"):
        deploy.load(forge("head.npz", archive.getvalue()))


@pytest.mark.seconds
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_archive_that_grows_is_not_unpacked(compression: int, forge: Callable[[str, bytes], Path]) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as file:
        file.writestr("weight.npy", bytes(20_000_000))
    with pytest.raises(BundleFormatError, match=r"head\.npz: "):
        deploy.load(forge("head.npz", archive.getvalue()))


def test_values_that_are_not_numbers_are_refused(forge: Callable[[str, bytes], Path]) -> None:
    content = io.BytesIO()
    np.savez(content, weight=np.full((DIM, 3), np.nan, np.float32), bias=np.zeros(3, np.float32))
    with pytest.raises(BundleFormatError, match=r"head\.npz: weight is not finite"):
        deploy.load(forge("head.npz", content.getvalue()))


@pytest.mark.parametrize(
    "name", ["labels.json", "head.npz", "golden/vectors.npy", "golden/00.png", "encoder.fp32.onnx"]
)
def test_damaged_files_with_a_new_manifest(name: str, whole: Path, forge: Callable[[str, bytes], Path]) -> None:
    random = np.random.default_rng(0)
    original = (whole / name).read_bytes()
    for _ in range(30):
        content = bytearray(original)
        for position in random.integers(0, len(content), 3):
            content[position] = random.integers(0, 256)
        refused_or_usable(forge(name, bytes(content[: random.integers(1, len(content) + 1)])))


@pytest.mark.parametrize("name", ["bundle.json", "labels.json", "golden/vectors.npy", "encoder.fp32.onnx"])
def test_a_file_that_is_absent_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    with publish(tmp_path / "bundle") as work:
        shutil.copytree(whole, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        (work / name).unlink()
    with pytest.raises(BundleFormatError, match=f"{name}: missing"):
        deploy.load(tmp_path / "bundle")


def test_a_large_file_is_not_read(forge: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    directory = forge("bundle.json", b"{}")
    os.truncate(directory / "bundle.json", 1 << 40)  # sparse: a terabyte of zeros
    with pytest.raises(CorruptArtifactError, match=r"bundle\.json: 1,099,511,627,776 bytes; such a file has at most"):
        deploy.load(directory)
    os.truncate(directory / MANIFEST, 1 << 40)
    with pytest.raises(CorruptArtifactError, match=MANIFEST):
        deploy.load(directory)


@pytest.mark.parametrize("name", ["bundle.json", MANIFEST])
def test_pipes_devices_and_folders_are_not_opened(name: str, forge: Callable[[str, bytes], Path]) -> None:
    directory = forge("LICENSE.txt", b"")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, lambda path: path.symlink_to(path)):
        path = directory / name
        path.unlink()
        make(path)
        with pytest.raises(ArtifactError):
            deploy.load(directory)
        path.rmdir() if path.is_dir() else path.unlink()
        path.touch()


def test_a_card_cannot_choose_the_id_of_its_encoder(forge: Callable[[str, bytes], Path]) -> None:
    directory = forge(
        "bundle.json", json.dumps({**CARD, "id": "f" * 64, "version": "v9.9.9", "labels": ["x"]}).encode()
    )
    info = deploy.load(directory).info
    assert (info["id"], info["version"], info["labels"]) == (deploy.load(directory).id, None, ["red", "green", "blue"])


def test_a_graph_that_does_not_keep_its_promise_is_refused(forge: Callable[[str, bytes], Path]) -> None:
    from onnx import helper

    scalar = make_model(CARD)
    del scalar.graph.input[0].type.tensor_type.shape.dim[:]
    with pytest.raises(BundleInterfaceError):
        use(forge("encoder.fp32.onnx", scalar.SerializeToString()))
    wider = make_model(CARD)
    last = wider.graph.node.pop()
    last.output[0] = "narrow"
    wider.graph.node.extend([last, helper.make_node("Concat", ["narrow", "narrow"], ["features"], axis=1)])
    with pytest.raises(BundleError):
        use(forge("encoder.fp32.onnx", wider.SerializeToString()))
