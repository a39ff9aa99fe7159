"""An encoder that turns image files, or images in memory, into embeddings.

    encoder = deploy.load("models/bundle")
    encoder.embed("cat.jpg").vectors                     # float32 [1, dim], of length 1
    for part in encoder.embed_iter(paths, on_error="skip"):
        store(part.sources, part.vectors)                # any number of images in bounded memory
    encoder.classify("cat.jpg", top_k=3)[0].labels       # ('cat', 'dog', 'fox')

Every input passes through ``deploy.images.preprocess``, the same code as in training.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import ASSIGNED, FP32, Bundle, read_bundle
from deploy.embeddings import Embeddings, Fidelity, Prediction, compare, l2_normalize
from deploy.errors import (
    BundleFormatError,
    BundleInterfaceError,
    GoldenMismatchError,
    ImageError,
    MissingHeadError,
    require_choice,
    require_path,
    require_positive,
    require_truth,
)
from deploy.images.full_depth import Samples
from deploy.images.inputs import Picture, Pixels, as_iterable, is_single, read_ahead
from deploy.moved import renamed
from deploy.processor import CPU_PROVIDER, choose_variant
from deploy.registry import version
from deploy.session import available_cpus, open_session, refusal

__all__ = ["Embeddings", "Encoder", "Fidelity", "OnError", "Prediction", "compare", "l2_normalize", "load"]

OnError = Literal["raise", "skip", "null"]
CPU = (CPU_PROVIDER,)


def load(
    bundle: str | Path,
    threads: int | None = None,
    providers: Sequence[str] = CPU,
    variant: str = FP32,
    trust: str | Path | None = None,
) -> "Encoder":
    """Check a bundle and start its encoder.

    Args:
        bundle: directory of a bundle, or a registry, whose current version is loaded.
        threads: threads of one inference; by default as many as the cores that CPU affinity and control group grant to
            this process.
        providers: onnxruntime execution providers, in order of preference; it is an error if one does not start.
        variant: "fp32", the trained network; "int8" or "fp16", if the bundle has it, which is faster and within 0.5
            points of the accuracy of fp32; or "auto", the fastest for this processor and provider. Vectors of two
            variants cannot be compared; their encoders have different ``Encoder.id``.
        trust: file of public keys, in OpenSSH's format of allowed signers; one of them must have signed the bundle
            (see ``deploy.trust.signature``). None accepts every bundle whose files are as its manifest says.

    Returns:
        An encoder, safe to use from many threads.

    Raises:
        ArtifactError: the directory is missing, or a file differs from its SHA-256 in the manifest.
        UntrustedError: none of the keys in ``trust`` signed the bundle.
        RegistryError: the registry does not name a version to serve.
        BundleError: the bundle has another format version, or its parts are not valid or contradict each other.
        ProviderError: an execution provider is not installed or does not start.
        ArgumentError: ``threads`` is not from 1 to 4,096, there is no such variant, or an argument has a wrong type.

    Examples:
        >>> import deploy
        >>> encoder = deploy.load("models/bundle", threads=1)
        >>> encoder.info["runtime"]["variant"]
        'fp32'
    """
    require_path(bundle=bundle, **({} if trust is None else {"trust": trust}))
    released = version(Path(bundle))
    directory = Path(bundle) / released if released else Path(bundle)
    trusted = None if trust is None else Path(trust)
    return Encoder(read_bundle(directory, trusted), threads, providers, released, variant)


class Encoder:
    """Embeds and classifies images. ``deploy.load`` makes one. Safe to use from many threads.

    Examples:
        >>> import deploy
        >>> encoder = deploy.load("models/bundle", threads=2)
        >>> len(encoder.id), encoder.info["runtime"]["threads"]
        (64, 2)
    """

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
        """Identifies what computed a vector. Only vectors of encoders with equal ids can be compared.

        The SHA-256 of the bundle's manifest as 64 hexadecimal digits, followed by ":" and the variant if that is not
        fp32. Empty for a bundle that was not published.
        """
        published = self._bundle.id or ""
        return published if self._variant == FP32 else f"{published}:{self._variant}"

    @property
    def info(self) -> dict[str, Any]:
        """What this encoder is and how it runs, ready for ``json.dumps``.

        ``version`` in the registry (None for a bundle outside a registry), ``id`` of the bundle, every field of
        bundle.json (among them ``name``, ``dim`` and ``metrics``), the class ``labels``, and ``runtime``: threads,
        execution providers, the variant, and the reason for that variant.
        """
        labels = self._bundle.head.labels if self._bundle.head else ()
        runtime = {
            "threads": self._threads,
            "providers": self._session.get_providers(),
            "variant": self._variant,
            "reason": self._reason,
        }
        own = {"version": self._version, "id": self._bundle.id}
        variants: dict[str, Any] = {FP32: {}}  # a card of format version 1 has no such field
        # Once more at the end: a card cannot say what the encoder's id is.
        return {**own, "variants": variants, **self._bundle.card, **own, "labels": list(labels), "runtime": runtime}

    def embed(
        self,
        images: "Picture | Iterable[Picture]",
        batch_size: int = 32,
        normalize: bool = True,
        on_error: OnError = "raise",
        workers: int | None = None,
    ) -> Embeddings:
        """Embed one image or many, and return the whole result in memory (``embed_iter`` streams it).

        Args:
            images: an image or an iterable of images. An image is a path, the bytes of an image file, a file opened
                with "rb", a PIL image, or uint8 RGB pixels [height, width, 3]; an array [n, height, width, 3] is n
                images. Anything else, such as a dictionary, a set, a tensor, pixels in lists, or the response of an
                HTTP client, is one input that cannot be read.
            batch_size: images in one run of the model.
            normalize: scale each vector to length 1, so that a dot product is a cosine similarity; otherwise return
                the raw output of the network.
            on_error: "raise" the first ImageError, "skip" the input, or "null" for a row of NaN in its place.
            workers: threads that decode; by default one for each core, or the calling thread for a single image.

        Returns:
            Embeddings with ``vectors`` float32 [rows, dim], in the order of the inputs.

        Raises:
            ImageError: an input cannot be read and ``on_error`` is "raise"; the message names the input.
            ArgumentError: an argument has a value that is not allowed.

        Examples:
            >>> import deploy
            >>> encoder = deploy.load("models/bundle")
            >>> result = encoder.embed(["cat.jpg", "dog.png"])
            >>> result.vectors.shape == (2, encoder.info["dim"]), result.vectors.dtype
            (True, dtype('float32'))
            >>> round(float(result.vectors[0] @ result.vectors[0]), 3)
            1.0
        """
        if is_single(images) and workers is None:
            workers = 1
        parts = list(self.embed_iter(images, batch_size, normalize, on_error, workers))
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
        images: "Picture | Iterable[Picture]",
        batch_size: int = 32,
        normalize: bool = True,
        on_error: OnError = "raise",
        workers: int | None = None,
    ) -> Iterator[Embeddings]:
        """Embed a stream of images in bounded memory, in order.

        Other threads decode the next two batches while the model runs one. Arguments and errors are those of ``embed``.

        Returns:
            An iterator of Embeddings, each of ``batch_size`` inputs; the last one may have fewer.

        Examples:
            >>> import deploy
            >>> encoder = deploy.load("models/bundle")
            >>> pictures = ["cat.jpg", "dog.png", "cat.jpg"]
            >>> [len(part.vectors) for part in encoder.embed_iter(pictures, batch_size=2)]
            [2, 1]
        """
        require_choice(get_args(OnError), on_error=on_error)
        require_truth(normalize=normalize)
        workers = available_cpus() if workers is None else workers
        require_positive(batch_size=batch_size, workers=workers)
        pixels = read_ahead(as_iterable(images), self._preprocessing, workers, ahead=2 * batch_size)
        return self._batches(pixels, batch_size, normalize, on_error)

    def classify(
        self, images: "Picture | Iterable[Picture]", top_k: int = 5, on_error: OnError = "raise", batch_size: int = 32
    ) -> list[Prediction]:
        """Return the ``top_k`` most probable classes of each image, by the classifier in the bundle.

        Where an image may have several, ``Prediction.assigned`` says which it has.

        Args:
            images: as in ``embed``.
            top_k: classes of each image; all classes if there are fewer.
            on_error: "raise" the first ImageError, "skip" the input, or "null" for a Prediction with ``error``.
            batch_size: images in one run of the model.

        Raises:
            MissingHeadError: the bundle was exported without labels.
            ImageError, ArgumentError: as in ``embed``.

        Examples:
            >>> import deploy
            >>> (prediction,) = deploy.load("models/bundle").classify("cat.jpg", top_k=2)
            >>> len(prediction.labels), prediction.probabilities[0] >= prediction.probabilities[1]
            (2, True)
        """
        return list(self.classify_iter(images, top_k, on_error, batch_size))

    def classify_iter(
        self, images: "Picture | Iterable[Picture]", top_k: int = 5, on_error: OnError = "raise", batch_size: int = 32
    ) -> Iterator[Prediction]:
        """Classify a stream of images in bounded memory, in order. Arguments and errors are those of ``classify``.

        Examples:
            >>> import deploy
            >>> predictions = deploy.load("models/bundle").classify_iter(["cat.jpg", "dog.png"], top_k=1)
            >>> [prediction.source for prediction in predictions]
            ['cat.jpg', 'dog.png']
        """
        require_positive(top_k=top_k)
        require_choice(get_args(OnError), on_error=on_error)
        if self._bundle.head is None:
            name = self._bundle.card["name"]
            raise MissingHeadError(f"{name}: was exported without a classifier; label some images, train, export again")
        # Rows of NaN keep vectors and sources aligned; _predictions drops the inputs to skip.
        keep_rows: OnError = "null" if on_error == "skip" else on_error
        parts = self.embed_iter(images, batch_size, normalize=False, on_error=keep_rows)
        return self._predictions(parts, top_k, skip=on_error == "skip")

    def verify(self) -> Fidelity:
        """Embed the golden images on this machine and compare the vectors with the reference in the bundle.

        The reference of fp32 is the trained network; that of another variant is its own output at export.

        Raises:
            GoldenMismatchError: the difference exceeds the tolerance in bundle.json.
            BundleFormatError: a golden image cannot be read.
            BundleInterfaceError, ModelMemoryError: the model does not run on this machine.

        Examples:
            >>> import deploy
            >>> deploy.load("models/bundle").verify().cosine_min > 0.999
            True
        """
        try:
            vectors = self.embed(self._bundle.golden_images).vectors
        except ImageError as error:
            raise BundleFormatError(f"golden images: {error}; export the bundle again") from error
        fidelity = compare(vectors, self._golden.golden_vectors)
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
            vectors = l2_normalize(vectors) if normalize else vectors
            ok = np.array([position not in errors for position in range(len(batch))])
            if on_error == "null":
                rows = np.full((len(batch), self._bundle.dim), np.nan, np.float32)
                rows[ok] = vectors
                vectors = rows
            yield Embeddings(vectors, sources, ok, errors)

    @property
    def takes_arrays(self) -> bool:
        """Whether images have a number of channels, so that arrays of numpy are image files."""
        return self._bundle.preprocessing.channels is not None

    @property
    def bundle(self) -> Bundle:
        """The bundle that this encoder was loaded from, without the weights."""
        return self._bundle

    def run(self, pixels: list[Samples]) -> NDArray[np.float32]:
        """Run the model on preprocessed pixels.

        Args:
            pixels: n arrays uint8 [size, size, 3], or uint16 [size, size, channels], as ``Preprocessing.apply``
                returns them.

        Returns:
            The raw output, float32 [n, dim].

        Raises:
            BundleInterfaceError, ModelMemoryError: onnxruntime cannot run the model, or it gives another shape.
        """
        if not pixels:
            return np.empty((0, self._bundle.dim), np.float32)
        try:
            features: NDArray[np.float32] = self._session.run([self._output], {self._input: np.stack(pixels)})[0]
        except Exception as error:  # onnxruntime's errors have no common base class
            raise refusal(self._bundle.card["name"], error) from error
        if features.shape != (len(pixels), self._bundle.dim):
            raise BundleInterfaceError(
                f"{self._bundle.card['name']}: the model gives {list(features.shape)} for {len(pixels)} images, not "
                f"{[len(pixels), self._bundle.dim]}; export the bundle again"
            )
        return features

    def _predictions(self, parts: Iterator[Embeddings], top_k: int, skip: bool) -> Iterator[Prediction]:
        head = self._bundle.head
        assert head is not None
        for part in parts:
            for position, (source, row) in enumerate(zip(part.sources, head.probabilities(part.vectors), strict=True)):
                if part.ok[position]:
                    order = np.argsort(-row, kind="stable")
                    best = order[:top_k]
                    probable = tuple(head.labels[i] for i in order if row[i] >= ASSIGNED)
                    yield Prediction(
                        source,
                        tuple(head.labels[i] for i in best),
                        tuple(float(row[i]) for i in best),
                        probable if head.multi_label else None,
                    )
                elif not skip:
                    yield Prediction(source, error=part.errors[position])


if not TYPE_CHECKING:
    __getattr__ = renamed("deploy.encoder", {"l2_normalised": "l2_normalize"})
