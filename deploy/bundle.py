"""The bundle: a directory that holds everything to serve one encoder, and nothing that can run code.

    bundle.json            what it is: interface, preprocessing, provenance, metrics, licence, tolerances
    encoder.fp32.onnx      uint8 [batch, size, size, 3] → float32 [batch, dim]; scaling, mean and std are in the graph
    head.npz labels.json   a linear classifier on the raw output; absent when there were no labels
    golden/                PNG images and vectors.npy, their embeddings of length 1 as the trained network gives them
    MODEL_CARD.md LICENSE.txt
    MANIFEST.sha256        checked before anything else is read

The SHA-256 of the manifest is the bundle's id.
"""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import identity, verify
from deploy.errors import BundleFormatError
from deploy.preprocess import Preprocessing

FORMAT_VERSION = 1
MODEL = "encoder.fp32.onnx"
_FIELDS = {"name": str, "dim": int, "preprocessing": dict, "normalisation": dict, "golden": dict}


@dataclass(frozen=True)
class Head:
    """A linear classifier on the encoder's raw output: float32 weight [dim, classes] and bias [classes]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    labels: tuple[str, ...]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Softmax of the logits: float32 [n, dim] → [n, classes]."""
        logits = features @ self.weight + self.bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. ``card`` is bundle.json; ``id`` is None until it is published."""

    card: dict[str, Any]
    model: bytes = field(repr=False)
    head: Head | None
    golden_images: tuple[bytes, ...] = field(repr=False)
    golden_vectors: NDArray[np.float32] = field(repr=False)
    documents: dict[str, str] = field(default_factory=dict, repr=False)
    id: str | None = None

    @property
    def dim(self) -> int:
        return int(self.card["dim"])

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_json(self.card["preprocessing"])


def write_bundle(directory: Path, bundle: Bundle) -> None:
    """Write the files of a bundle into ``directory`` (from ``deploy.artifact.publish``, which adds the manifest)."""
    (directory / "bundle.json").write_text(_json(bundle.card), encoding="utf-8")
    (directory / MODEL).write_bytes(bundle.model)
    if bundle.head:
        np.savez(directory / "head.npz", weight=bundle.head.weight, bias=bundle.head.bias)
        (directory / "labels.json").write_text(_json(bundle.head.labels), encoding="utf-8")
    golden = directory / "golden"
    golden.mkdir()
    for position, image in enumerate(bundle.golden_images):
        (golden / f"{position:02d}.png").write_bytes(image)
    np.save(golden / "vectors.npy", bundle.golden_vectors)
    for name, text in bundle.documents.items():
        (directory / name).write_text(text, encoding="utf-8")


def read_bundle(directory: Path) -> Bundle:
    """Read a bundle after comparing every file with the manifest.

    Raises:
        ArtifactError: the directory is missing or a file differs from its manifest; nothing was parsed.
        BundleFormatError: another format version, or a part that this release cannot read.
    """
    verify(directory)
    card = _read_card(directory / "bundle.json")
    try:
        model = (directory / MODEL).read_bytes()
        head = _read_head(directory) if (directory / "head.npz").exists() else None
        images = tuple(path.read_bytes() for path in sorted((directory / "golden").glob("*.png")))
        vectors = np.load(directory / "golden" / "vectors.npy", allow_pickle=False)
        bundle = Bundle(card, model, head, images, vectors, id=identity(directory))
        _check_parts(bundle)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise BundleFormatError(f"{directory}: {error}; export the bundle again") from error
    return bundle


def graph_promise(card: dict[str, Any]) -> str:
    """What the ONNX file repeats of bundle.json in its own metadata, so that neither can be exchanged alone."""
    kept = ("format_version", "dim", "preprocessing", "normalisation")
    return json.dumps({name: card[name] for name in kept}, sort_keys=True)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleFormatError(f"{path}: cannot be read as JSON ({error}); export the bundle again") from None
    version = card.get("format_version") if isinstance(card, dict) else None
    if version != FORMAT_VERSION:
        raise BundleFormatError(
            f"{path}: format version {version!r}, this release reads {FORMAT_VERSION}; "
            "install the release that made the bundle, or export it again"
        )
    wrong = [name for name, kind in _FIELDS.items() if type(card.get(name)) is not kind]
    if wrong:
        raise BundleFormatError(f"{path}: {', '.join(wrong)} missing or of a wrong type; export the bundle again")
    return dict(card)


def _read_head(directory: Path) -> Head:
    labels = json.loads((directory / "labels.json").read_text(encoding="utf-8"))
    with np.load(directory / "head.npz", allow_pickle=False) as arrays:
        return Head(arrays["weight"], arrays["bias"], tuple(labels))


def _check_parts(bundle: Bundle) -> None:
    """Parts that do not fit each other would fail at the first request, or give wrong answers without failing."""
    _check_array("golden/vectors.npy", bundle.golden_vectors, (len(bundle.golden_images), bundle.dim))
    if bundle.head:
        _check_array("weight in head.npz", bundle.head.weight, (bundle.dim, len(bundle.head.labels)))
        _check_array("bias in head.npz", bundle.head.bias, (len(bundle.head.labels),))
    Preprocessing.from_json(bundle.card["preprocessing"])
    if not bundle.golden_images:
        raise BundleFormatError("golden/ holds no PNG image")
    tolerance = bundle.card["golden"].get("tolerance")
    if not isinstance(tolerance, dict) or not {"cosine_min", "max_abs"} <= set(tolerance):
        raise BundleFormatError(f"golden.tolerance is {tolerance!r}; needs cosine_min and max_abs")


def _check_array(name: str, array: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype != np.float32:
        raise BundleFormatError(f"{name} is {array.dtype} {list(array.shape)}, not float32 {list(shape)}")


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
