"""An encoder that turns image files, or images in memory, into embeddings.

    encoder = deploy.load("models/bundle")
    encoder.embed("cat.jpg").vectors                     # float32 [1, dim], of length 1
    for part in encoder.embed_iter(paths, on_error="skip"):
        store(part.sources, part.vectors)                # any number of images in bounded memory
    encoder.classify("cat.jpg", top_k=3)[0].labels       # ('cat', 'dog', 'fox')

Whatever the input is, it goes through ``deploy.images.preprocess``, as in training.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import FP32, Bundle, read_bundle
from deploy.errors import ArgumentError, GoldenMismatchError, ImageError, MissingHeadError
from deploy.images.inputs import Picture, Pixels, as_iterable, is_single, read_ahead
from deploy.processor import CPU_PROVIDER, choose_variant
from deploy.registry import version
from deploy.session import available_cpus, open_session

OnError = Literal["raise", "skip", "null"]
CPU = (CPU_PROVIDER,)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of consecutive inputs.

    Attributes:
        vectors: float32 [rows, dim]. One row for every input, NaN where it failed (``on_error="null"``), or one for
            every input that is ok (``on_error="skip"``).
        sources: of every input, its path, or ``image <position>`` for one in memory.
        ok: bool [inputs].
        errors: why the others are not ok, by position within these embeddings.
    """

    vectors: NDArray[np.float32]
    sources: tuple[str, ...]
    ok: NDArray[np.bool_]
    errors: dict[int, ImageError]


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one input, best first; none, and ``error``, when it could not be read."""

    source: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: ImageError | None = None


@dataclass(frozen=True)
class Fidelity:
    """How close embeddings are to a reference: the smallest cosine similarity, the largest absolute difference."""

    images: int
    cosine_min: float
    max_abs: float


def load(
    bundle: str | Path, threads: int | None = None, providers: Sequence[str] = CPU, variant: str = FP32
) -> "Encoder":
    """Check a bundle and start its encoder.

    Args:
        bundle: directory of a bundle, or a registry, which gives the version that it serves now.
        threads: of one inference; by default the cores that affinity and control group leave to this process.
        providers: onnxruntime execution providers, in order of preference; each of them must really start.
        variant: "fp32", what was trained; "int8" or "fp16" if the bundle has them, faster and within 0.5 points of its
            accuracy; or "auto", the fastest for this processor and provider. Vectors of two variants do not mix:
            ``Encoder.id`` tells them apart.

    Raises:
        DeployError: ArtifactError, RegistryError, BundleError, ProviderError or ArgumentError; see ``deploy.errors``.
    """
    released = version(Path(bundle))
    directory = Path(bundle) / released if released else Path(bundle)
    return Encoder(read_bundle(directory), threads, providers, released, variant)


class Encoder:
    """Embeds and classifies images. Safe to use from many threads."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        providers: Sequence[str] = CPU,
        version: str | None = None,
        variant: str = FP32,
    ) -> None:
        self._version = version
        self._threads = available_cpus() if threads is None else threads
        self._variant, self._reason = choose_variant(variant, (FP32, *bundle.variants), providers)
        self._session = open_session(bundle, self._variant, self._threads, providers)
        self._golden = replace(bundle.variant(self._variant), model=b"")
        self._bundle = replace(bundle, model=b"", variants={})  # the session has its own copy of the weights
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._preprocessing = bundle.preprocessing

    @property
    def id(self) -> str:
        """Names what computed a vector: the bundle's id, for another variant than fp32 followed by ":" and its name.

        Vectors may be compared when these are equal. Empty for a bundle that was not published.
        """
        published = self._bundle.id or ""
        return published if self._variant == FP32 else f"{published}:{self._variant}"

    @property
    def info(self) -> dict[str, Any]:
        """What is served: the registry's version of it (None for a bundle that came from none), the bundle's id,
        bundle.json, the class labels, and how this process runs it: threads, providers, the variant and why that one.
        """
        labels = self._bundle.head.labels if self._bundle.head else ()
        runtime = {
            "threads": self._threads,
            "providers": self._session.get_providers(),
            "variant": self._variant,
            "reason": self._reason,
        }
        return {
            "version": self._version,
            "id": self._bundle.id,
            "variants": {FP32: {}},  # a card of format version 1 names none
            **self._bundle.card,
            "labels": list(labels),
            "runtime": runtime,
        }

    def embed(
        self,
        images: "Picture | Iterable[Picture]",
        batch_size: int = 32,
        normalize: bool = True,
        on_error: OnError = "raise",
        workers: int | None = None,
    ) -> Embeddings:
        """Embed one image or many, with the whole result in memory (``embed_iter`` streams).

        Args:
            images: a Picture or an iterable of them; an array [n, height, width, 3] is n images.
            normalize: scale each vector to length 1, so that a dot product is a cosine similarity. Off: the raw output.
            on_error: "raise" the first ImageError; "skip" the input; "null" leaves a row of NaN in its place.
            workers: threads that decode; by default one per core, and none for a single image.

        Raises:
            ImageError: an input cannot be read and ``on_error`` is "raise"; the message names the input.
            ArgumentError: an argument has a value that is not allowed.
        """
        if is_single(images) and workers is None:
            workers = 1
        parts = list(self.embed_iter(as_iterable(images), batch_size, normalize, on_error, workers))
        errors: dict[int, ImageError] = {}
        for number, part in enumerate(parts):
            errors |= {number * batch_size + position: error for position, error in part.errors.items()}
        return Embeddings(
            vectors=np.concatenate([np.empty((0, self._bundle.dim), np.float32), *(part.vectors for part in parts)]),
            sources=tuple(chain.from_iterable(part.sources for part in parts)),
            ok=np.concatenate([np.empty(0, np.bool_), *(part.ok for part in parts)]),
            errors=errors,
        )

    def embed_iter(
        self,
        images: Iterable[Picture],
        batch_size: int = 32,
        normalize: bool = True,
        on_error: OnError = "raise",
        workers: int | None = None,
    ) -> Iterator[Embeddings]:
        """Embed a stream in order, ``batch_size`` inputs at a time, while the next two batches are decoded.

        Arguments and errors as in ``embed``.
        """
        if on_error not in ("raise", "skip", "null"):
            raise ArgumentError(f"on_error={on_error!r}; choose raise, skip or null")
        workers = available_cpus() if workers is None else workers
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value < 1:
                raise ArgumentError(f"{name}={value}; give 1 or more")
        pixels = read_ahead(images, self._preprocessing, workers, ahead=2 * batch_size)
        return self._batches(pixels, batch_size, normalize, on_error)

    def classify(
        self, images: "Picture | Iterable[Picture]", top_k: int = 5, on_error: OnError = "raise", batch_size: int = 32
    ) -> list[Prediction]:
        """The ``top_k`` most probable classes of each image, from the bundle's head.

        An input that cannot be read is raised, left out ("skip"), or gives a Prediction with its ``error`` ("null").

        Raises:
            MissingHeadError: the bundle was exported without labels.
            ImageError, ArgumentError: as in ``embed``.
        """
        return list(self.classify_iter(as_iterable(images), top_k, on_error, batch_size))

    def classify_iter(
        self, images: Iterable[Picture], top_k: int = 5, on_error: OnError = "raise", batch_size: int = 32
    ) -> Iterator[Prediction]:
        """``classify`` as a stream, in order and in bounded memory."""
        if top_k < 1:
            raise ArgumentError(f"top_k={top_k}; give 1 or more")
        if self._bundle.head is None:
            name = self._bundle.card["name"]
            raise MissingHeadError(f"{name}: was exported without a classifier; label some images, train, export again")
        # Rows of NaN keep vectors and sources in step; those to be skipped are left out below.
        keep_rows: OnError = "null" if on_error == "skip" else on_error
        parts = self.embed_iter(images, batch_size, normalize=False, on_error=keep_rows)
        return self._predictions(parts, top_k, skip=on_error == "skip")

    def verify(self) -> Fidelity:
        """Embed the golden images on this machine and compare: fp32 with the vectors of the trained network, another
        variant with its own at export.

        Raises:
            GoldenMismatchError: the difference is over the tolerance in bundle.json.
        """
        fidelity = compare(self.embed(self._bundle.golden_images).vectors, self._golden.golden_vectors)
        allowed = self._golden.tolerance
        if not (fidelity.cosine_min >= allowed["cosine_min"] and fidelity.max_abs <= allowed["max_abs"]):
            raise GoldenMismatchError(
                f"golden images: cosine {fidelity.cosine_min:.6f} and difference {fidelity.max_abs:.2g}, allowed are "
                f"{allowed['cosine_min']} and {allowed['max_abs']}; install the versions named in bundle.json"
            )
        return fidelity

    def _batches(
        self, pixels: Iterator[tuple[str, Pixels]], batch_size: int, normalize: bool, on_error: OnError
    ) -> Iterator[Embeddings]:
        while batch := list(islice(pixels, batch_size)):
            sources = tuple(source for source, _ in batch)
            errors = {i: item for i, (_, item) in enumerate(batch) if isinstance(item, ImageError)}
            if errors and on_error == "raise":
                position, error = next(iter(errors.items()))
                raise ImageError(error.reason, f"{sources[position]}: {error}") from error
            vectors = self.run([item for _, item in batch if not isinstance(item, ImageError)])
            vectors = l2_normalised(vectors) if normalize else vectors
            ok = np.array([position not in errors for position in range(len(batch))])
            if on_error == "null":
                rows = np.full((len(batch), self._bundle.dim), np.nan, np.float32)
                rows[ok] = vectors
                vectors = rows
            yield Embeddings(vectors, sources, ok, errors)

    @property
    def bundle(self) -> Bundle:
        """What this encoder was made of, but for the weights."""
        return self._bundle

    def run(self, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """n times uint8 [size, size, 3], as ``Preprocessing.apply`` gives them → the raw output, float32 [n, dim]."""
        if not pixels:
            return np.empty((0, self._bundle.dim), np.float32)
        features: NDArray[np.float32] = self._session.run([self._output], {self._input: np.stack(pixels)})[0]
        return features

    def _predictions(self, parts: Iterator[Embeddings], top_k: int, skip: bool) -> Iterator[Prediction]:
        head = self._bundle.head
        assert head is not None
        for part in parts:
            for position, (source, row) in enumerate(zip(part.sources, head.probabilities(part.vectors), strict=True)):
                if part.ok[position]:
                    best = np.argsort(-row, kind="stable")[:top_k]
                    yield Prediction(source, tuple(head.labels[i] for i in best), tuple(float(row[i]) for i in best))
                elif not skip:
                    yield Prediction(source, error=part.errors[position])


def l2_normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(1e-12))
    return normalised


def compare(found: NDArray[np.float32], reference: NDArray[np.float32]) -> Fidelity:
    """Compare two arrays of L2-normalised embeddings [n, dim], row by row."""
    lengths = np.linalg.norm(found.astype(np.float64), axis=1) * np.linalg.norm(reference.astype(np.float64), axis=1)
    cosines = (found.astype(np.float64) * reference).sum(axis=1) / lengths
    return Fidelity(len(found), float(cosines.min()), float(np.abs(found - reference).max()))
