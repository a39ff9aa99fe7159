"""The bundle: a directory that holds everything needed to serve one encoder, and nothing that can run code.

    bundle.json            interface, preprocessing, provenance, metrics, license, tolerances
    encoder.fp32.onnx      uint8 [batch, size, size, 3] → float32 [batch, dim]; scaling, mean and std are in the graph
    encoder.int8.onnx      the same in 8 bits, and encoder.fp16.onnx for GPUs; each only if it passed its gate
    head.npz labels.json   a linear classifier on the raw output; absent if there were no labels. Where bundle.json says
                           ``multi_label``, an image may have several of them or none
    golden/                PNG images, or arrays where images have a number of channels; vectors.npy, their embeddings
                           of length 1 by the trained network, and vectors.int8.npy, vectors.fp16.npy by those variants
                           on the machine that exported them
    MODEL_CARD.md LICENSE.txt sbom.cdx.json
    MANIFEST.sha256        checked before any other file is read

The SHA-256 of the manifest is the bundle's id. Signing the manifest therefore signs every file. The signature stays
next to the bundle (see ``deploy.trust.signature``); OpenSSH is enough to make and verify it:

    ssh-keygen -Y sign -f KEY -n simclr-bundle < BUNDLE/MANIFEST.sha256 > BUNDLE.sig
    ssh-keygen -Y verify -f SIGNERS -I WHO -n simclr-bundle -s BUNDLE.sig < BUNDLE/MANIFEST.sha256
    simclr-deploy verify BUNDLE --trust SIGNERS
"""

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import read_files
from deploy.errors import BundleFormatError
from deploy.images.preprocess import Preprocessing
from deploy.images.signatures import sniff
from deploy.trust.card import FORMAT_VERSION, MULTI_LABEL_VERSION, READABLE, check_card, check_labels, parse_json

__all__ = [
    "FORMAT_VERSION",
    "MULTI_LABEL_VERSION",
    "READABLE",
    "Bundle",
    "Head",
    "Variant",
    "read_bundle",
    "write_bundle",
]

MODEL = "encoder.fp32.onnx"
FP32, INT8, FP16 = "fp32", "int8", "fp16"
MAX_ONNX_BYTES = 1 << 31  # of a protobuf message
MAX_ARRAY_BYTES = 1 << 30  # a classifier of 20,000 classes on 4,096 numbers has a third of it
MAX_TEXT_BYTES = 1 << 25
MAX_GOLDEN_BYTES = 1 << 27
ASSIGNED = 0.5  # from which probability on an image is said to have a class, where it may have several
HEADER_BYTES = 20_000  # numpy writes 128, and reads at most 10,000


@dataclass(frozen=True)
class Head:
    """A linear classifier on the encoder's raw output: float32 weight [dim, classes] and bias [classes].

    ``temperature`` was fitted on held-out labels, so that about 80 % of the answers with probability 0.8 are correct.
    With ``multi_label`` each class is a separate question: an image may have several of them, or none.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    labels: tuple[str, ...]
    temperature: float = 1.0
    multi_label: bool = False

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Divided by the temperature: float32 [n, dim] → [n, classes]."""
        scaled: NDArray[np.float32] = (features @ self.weight + self.bias) / np.float32(self.temperature)
        return scaled

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax of the logits divided by the temperature (Guo et al. 2017): float32 [n, dim] → [n, classes].

        With ``multi_label`` it is the sigmoid of each, and a row does not sum to 1.
        """
        logits = self.logits(features)
        if self.multi_label:
            halves: NDArray[np.float32] = np.tanh(logits / 2).astype(np.float32)  # does not overflow
            return (halves + np.float32(1)) / np.float32(2)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities


@dataclass(frozen=True)
class Variant:
    """One ONNX file, its embeddings of the golden images, float32 [images, dim], and the tolerance for other machines.

    ``tolerance`` holds ``cosine_min`` and ``max_abs``; see ``deploy.encoder.Fidelity``.
    """

    model: bytes = field(repr=False)
    golden_vectors: NDArray[np.float32] = field(repr=False)
    tolerance: dict[str, float]


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. ``card`` is bundle.json; ``id`` is None until the bundle is published.

    ``model`` and ``golden_vectors`` are those of fp32, which every bundle has; ``variants`` holds the others by name.
    """

    card: dict[str, Any]
    model: bytes = field(repr=False)
    head: Head | None
    golden_images: tuple[bytes, ...] = field(repr=False)
    golden_vectors: NDArray[np.float32] = field(repr=False)
    documents: dict[str, str] = field(default_factory=dict, repr=False)
    id: str | None = None
    variants: dict[str, Variant] = field(default_factory=dict, repr=False)

    def variant(self, name: str) -> Variant:
        if name == FP32:
            return Variant(self.model, self.golden_vectors, self.card["golden"]["tolerance"])
        return self.variants[name]

    @property
    def dim(self) -> int:
        return int(self.card["dim"])

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_json(self.card["preprocessing"])


def write_bundle(directory: Path, bundle: Bundle) -> None:
    """Write the files of a bundle into ``directory``; ``deploy.artifact.publish`` yields it and adds the manifest."""
    (directory / "bundle.json").write_text(_json(bundle.card), encoding="utf-8")
    (directory / MODEL).write_bytes(bundle.model)
    if head := bundle.head:
        temperature = np.float32(head.temperature)
        np.savez(directory / "head.npz", weight=head.weight, bias=head.bias, temperature=temperature)
        (directory / "labels.json").write_text(_json(head.labels), encoding="utf-8")
    golden = directory / "golden"
    golden.mkdir()
    for position, image in enumerate(bundle.golden_images):
        suffix = "npy" if sniff(image) == "npy" else "png"
        (golden / f"{position:02d}.{suffix}").write_bytes(image)
    np.save(directory / _vectors_file(FP32), bundle.golden_vectors)
    for name, variant in bundle.variants.items():
        (directory / model_file(name)).write_bytes(variant.model)
        np.save(directory / _vectors_file(name), variant.golden_vectors)
    for name, text in bundle.documents.items():
        (directory / name).write_text(text, encoding="utf-8")


def read_bundle(directory: Path, trust: Path | None = None) -> Bundle:
    """Compare every file with the manifest, then read the bundle.

    Args:
        trust: file of trusted keys, one of which must have signed the manifest; see ``deploy.trust.signature``.

    Raises:
        ArtifactError: the directory is missing or a file differs from its manifest; no file was parsed.
        UntrustedError: none of the trusted keys signed the manifest.
        BundleFormatError: the bundle has another format version, or a part that this release cannot read.
    """
    identity, files = read_files(directory, _size_limit, trust)
    name = "bundle.json"
    try:
        card = check_card(parse_json(_file(files, name)))
        channels = Preprocessing.from_json(card["preprocessing"]).channels
        name = "golden"
        wanted = r"golden/\d+\.npy" if channels else r"golden/[^/]*\.png"
        images = tuple(files[name] for name in sorted(files) if re.fullmatch(wanted, name))
        if not images:
            raise BundleFormatError(f"does not contain any {'array' if channels else 'PNG image'}")
        shape = (len(images), card["dim"])
        names = [FP32, *(name for name in card.get("variants", {}) if name != FP32)]
        variants = {}
        for variant in names:
            name = _vectors_file(variant)
            vectors = _read_array(_file(files, name), shape)
            name = model_file(variant)
            tolerance = (card["golden"] if variant == FP32 else card["variants"][variant])["tolerance"]
            variants[variant] = Variant(_file(files, name), vectors, tolerance)
        head = None
        if "head.npz" in files:
            name = "labels.json"
            labels = check_labels(parse_json(_file(files, name)))
            name = "head.npz"
            head = replace(_read_head(files[name], labels, card["dim"]), multi_label=card.get("multi_label", False))
    except ValueError as error:
        raise BundleFormatError(f"{directory / name}: {error}") from None
    exact = variants.pop(FP32)
    return Bundle(card, exact.model, head, images, exact.golden_vectors, id=identity, variants=variants)


def model_file(variant: str) -> str:
    return f"encoder.{variant}.onnx"


def graph_promise(card: dict[str, Any]) -> str:
    """Return what the ONNX file repeats of bundle.json in its metadata, so that neither can be replaced separately."""
    kept = ("format_version", "dim", "preprocessing", "normalisation")
    return json.dumps({name: card[name] for name in kept}, sort_keys=True)


def _size_limit(name: str) -> int:
    if name.endswith(".onnx"):
        return MAX_ONNX_BYTES
    if name.startswith("golden/"):
        return MAX_GOLDEN_BYTES
    return MAX_ARRAY_BYTES if name == "head.npz" else MAX_TEXT_BYTES


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise BundleFormatError("missing; export the bundle again")
    return files[name]


def _read_head(content: bytes, labels: tuple[str, ...], dim: int) -> Head:
    arrays = {"temperature": np.ones((), np.float32)}
    shapes = {"weight": (dim, len(labels)), "bias": (len(labels),), "temperature": ()}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name, shape in shapes.items():
                if name != "temperature" or "temperature.npy" in archive.namelist():
                    arrays[name] = _read_array(_unzip(archive, f"{name}.npy", 4 * math.prod(shape)), shape, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise BundleFormatError(f"not a readable archive of arrays ({error}); export the bundle again") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BundleFormatError(f"{name} is not finite; export the bundle again")
    temperature = float(arrays["temperature"])
    if not temperature > 0:
        raise BundleFormatError(f"temperature is {temperature}, not a positive number; export the bundle again")
    return Head(arrays["weight"], arrays["bias"], labels, temperature)


def _unzip(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """Return a member with an array of ``size`` bytes; a member that claims more is read no further."""
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError(f"compression {member.compress_type}")
    with archive.open(member) as file:
        return file.read(size + HEADER_BYTES)


def _read_array(content: bytes, shape: tuple[int, ...], name: str = "the array") -> NDArray[np.float32]:
    """Read a float32 array of this shape from the bytes of an .npy file.

    The header is compared before memory is allocated for what it claims.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, fortran, dtype = read_header(file)
    except Exception as error:  # noqa: BLE001  a header is a Python literal: whatever Python's parser raises
        raise BundleFormatError(f"{name} is not a valid array ({error}); export the bundle again") from None
    if found != shape or dtype != np.float32:
        raise BundleFormatError(f"{name} is {dtype} {list(found)}, not float32 {list(shape)}; export the bundle again")
    data = content[file.tell() :]
    if len(data) != 4 * math.prod(shape):
        raise BundleFormatError(f"{name} has {len(data):,} bytes for float32 {list(shape)}; export the bundle again")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").astype(np.float32)


def _vectors_file(variant: str) -> str:
    return "golden/vectors.npy" if variant == FP32 else f"golden/vectors.{variant}.npy"


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
