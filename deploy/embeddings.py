"""Embeddings and predictions as an encoder returns them, and the comparison of embeddings with a reference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ImageError


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of consecutive inputs.

    Attributes:
        vectors: float32 [rows, dim]. With ``on_error="null"`` one row for every input, of NaN for an unreadable one;
            with ``on_error="skip"`` one row for every readable input.
        sources: the path of every input, or ``image <position>`` for an image in memory.
        ok: bool [inputs]; True for each input that could be read.
        errors: position within these embeddings → why that input could not be read.

    Examples:
        >>> import deploy
        >>> result = deploy.load("models/bundle").embed(["cat.jpg", b"no image"], on_error="null")
        >>> result.sources, result.ok.tolist(), result.errors[1].reason
        (('cat.jpg', 'image 1'), [True, False], 'not_an_image')
    """

    vectors: NDArray[np.float32]
    sources: tuple[str, ...]
    ok: NDArray[np.bool_]
    errors: dict[int, ImageError]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one input.

    Attributes:
        source: the path of the input, or ``image <position>`` for an image in memory.
        labels: the classes, most probable first; empty if the input could not be read.
        probabilities: of each of ``labels``, between 0 and 1.
        assigned: where an image may have several classes (``multi_label`` in bundle.json), those of at least even
            probability, most probable first; None where the classes exclude each other.
        error: why the input could not be read; None if it could.
    """

    source: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    assigned: tuple[str, ...] | None = None
    error: ImageError | None = None


@dataclass(frozen=True)
class Fidelity:
    """How close embeddings are to a reference.

    Attributes:
        images: number of embeddings compared.
        cosine_min: smallest cosine similarity of an embedding and its reference.
        max_abs: largest absolute difference of two values.
    """

    images: int
    cosine_min: float
    max_abs: float


def l2_normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each row of ``vectors``, float32 [n, dim], to length 1; a row of zeros stays as it is.

    Examples:
        >>> l2_normalize(np.array([[0, -2], [0, 0]], np.float32)).tolist()
        [[0.0, -1.0], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalized: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return normalized


def compare(found: NDArray[np.float32], reference: NDArray[np.float32]) -> Fidelity:
    """Compare two arrays of embeddings of length 1, float32 [n, dim], row by row."""
    lengths = np.linalg.norm(found.astype(np.float64), axis=1) * np.linalg.norm(reference.astype(np.float64), axis=1)
    cosines = (found.astype(np.float64) * reference).sum(axis=1) / lengths
    return Fidelity(len(found), float(cosines.min()), float(np.abs(found - reference).max()))
