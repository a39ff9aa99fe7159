"""The bundle: a directory that holds everything needed to serve one encoder, and nothing that can run code.

    bundle.json            interface, preprocessing, provenance, metrics, license, tolerances
    encoder.fp32.onnx      uint8 [batch, size, size, 3] → float32 [batch, dim]; scaling, mean and std are in the graph
    encoder.int8.onnx      the same in 8 bits, and encoder.fp16.onnx for GPUs; each only if it passed its gate
    head.npz labels.json   a linear classifier on the raw output; absent if there were no labels
    golden/                PNG images; vectors.npy, their embeddings of length 1 by the trained network, and
                           vectors.int8.npy, vectors.fp16.npy by those variants on the machine that exported them
    MODEL_CARD.md LICENSE.txt sbom.cdx.json
    MANIFEST.sha256        checked before any other file is read

The SHA-256 of the manifest is the bundle's id. Signing the manifest therefore signs every file. The signature stays
next to the bundle; OpenSSH is enough to make and verify it:

    ssh-keygen -Y sign -f KEY -n simclr-bundle < BUNDLE/MANIFEST.sha256 > BUNDLE.sig
    ssh-keygen -Y verify -f SIGNERS -I WHO -n simclr-bundle -s BUNDLE.sig < BUNDLE/MANIFEST.sha256
    simclr-deploy verify BUNDLE
"""

import json
import math
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import identity, verify
from deploy.errors import BundleFormatError
from deploy.images.preprocess import Preprocessing

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)  # version 1 has neither variants nor a temperature
MODEL = "encoder.fp32.onnx"
FP32, INT8, FP16 = "fp32", "int8", "fp16"
_FIELDS = {"name": str, "dim": int, "preprocessing": dict, "normalisation": dict, "golden": dict}


@dataclass(frozen=True)
class Head:
    """A linear classifier on the encoder's raw output: float32 weight [dim, classes] and bias [classes].

    ``temperature`` was fitted on held-out labels, so that about 80 % of the answers with probability 0.8 are correct.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    labels: tuple[str, ...]
    temperature: float = 1.0

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax of the logits divided by the temperature (Guo et al. 2017): float32 [n, dim] → [n, classes]."""
        logits = (features @ self.weight + self.bias) / np.float32(self.temperature)
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
        (golden / f"{position:02d}.png").write_bytes(image)
    np.save(directory / _vectors_file(FP32), bundle.golden_vectors)
    for name, variant in bundle.variants.items():
        (directory / model_file(name)).write_bytes(variant.model)
        np.save(directory / _vectors_file(name), variant.golden_vectors)
    for name, text in bundle.documents.items():
        (directory / name).write_text(text, encoding="utf-8")


def read_bundle(directory: Path) -> Bundle:
    """Compare every file with the manifest, then read the bundle.

    Raises:
        ArtifactError: the directory is missing or a file differs from its manifest; no file was parsed.
        BundleFormatError: the bundle has another format version, or a part that this release cannot read.
    """
    verify(directory)
    card = _read_card(directory / "bundle.json")
    try:
        model = (directory / MODEL).read_bytes()
        head = _read_head(directory) if (directory / "head.npz").exists() else None
        images = tuple(path.read_bytes() for path in sorted((directory / "golden").glob("*.png")))
        vectors = np.load(directory / _vectors_file(FP32), allow_pickle=False)
        variants = _read_variants(directory, card)
        bundle = Bundle(card, model, head, images, vectors, id=identity(directory), variants=variants)
        _check_parts(bundle)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BundleFormatError(f"{directory}: {error}; export the bundle again") from error
    return bundle


def model_file(variant: str) -> str:
    return f"encoder.{variant}.onnx"


def graph_promise(card: dict[str, Any]) -> str:
    """Return what the ONNX file repeats of bundle.json in its metadata, so that neither can be replaced separately."""
    kept = ("format_version", "dim", "preprocessing", "normalisation")
    return json.dumps({name: card[name] for name in kept}, sort_keys=True)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleFormatError(f"{path}: cannot be read as JSON ({error}); export the bundle again") from None
    version = card.get("format_version") if isinstance(card, dict) else None
    if type(version) is not int or version not in READABLE:
        raise BundleFormatError(
            f"{path}: format version {version!r}, this release reads {' and '.join(map(str, READABLE))}; "
            "install the release that made the bundle, or export it again"
        )
    wrong = [name for name, kind in _FIELDS.items() if type(card.get(name)) is not kind]
    if wrong:
        raise BundleFormatError(f"{path}: {', '.join(wrong)} missing or of a wrong type; export the bundle again")
    return dict(card)


def _read_head(directory: Path) -> Head:
    labels = json.loads((directory / "labels.json").read_text(encoding="utf-8"))
    with np.load(directory / "head.npz", allow_pickle=False) as arrays:
        temperature = float(arrays["temperature"]) if "temperature" in arrays else 1.0
        return Head(arrays["weight"], arrays["bias"], tuple(labels), temperature)


def _read_variants(directory: Path, card: dict[str, Any]) -> dict[str, Variant]:
    variants = {}
    for name, facts in card.get("variants", {}).items():
        if not re.fullmatch(r"[a-z0-9]+", name):
            raise BundleFormatError(f"variants in bundle.json: {name!r} is not a valid name; export the bundle again")
        if name != FP32:
            vectors = np.load(directory / _vectors_file(name), allow_pickle=False)
            variants[name] = Variant((directory / model_file(name)).read_bytes(), vectors, facts["tolerance"])
    return variants


def _check_parts(bundle: Bundle) -> None:
    """Check that the parts match: otherwise the first request would fail, or silently get a wrong answer."""
    for name in (FP32, *bundle.variants):
        variant = bundle.variant(name)
        _check_array(_vectors_file(name), variant.golden_vectors, (len(bundle.golden_images), bundle.dim))
        if not isinstance(variant.tolerance, dict) or not {"cosine_min", "max_abs"} <= set(variant.tolerance):
            raise BundleFormatError(
                f"golden tolerance of {name} is {variant.tolerance!r}; needs cosine_min and max_abs"
            )
    if bundle.head:
        _check_array("weight in head.npz", bundle.head.weight, (bundle.dim, len(bundle.head.labels)))
        _check_array("bias in head.npz", bundle.head.bias, (len(bundle.head.labels),))
        if not 0 < bundle.head.temperature < math.inf:
            raise BundleFormatError(f"temperature in head.npz is {bundle.head.temperature}, not a positive number")
    Preprocessing.from_json(bundle.card["preprocessing"])
    if not bundle.golden_images:
        raise BundleFormatError("golden/ does not contain any PNG image")


def _vectors_file(variant: str) -> str:
    return "golden/vectors.npy" if variant == FP32 else f"golden/vectors.{variant}.npy"


def _check_array(name: str, array: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise BundleFormatError(f"{name} is {array.dtype} {list(array.shape)}, not float32 {list(shape)}")


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
