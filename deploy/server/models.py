"""The current model, and its replacement while requests are in flight."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import identity
from deploy.embeddings import l2_normalize
from deploy.encoder import Encoder, load
from deploy.errors import BundleError, CandidateError, DeployError, IndexMismatchError, ModelMemoryError
from deploy.images.full_depth import FullDepth, Samples, open_full_depth
from deploy.images.preprocess import canonicalize, open_image
from deploy.registry import resolve, version, versions
from deploy.search.index import Index
from deploy.server import background
from deploy.server.metrics import Metrics, Statistics

if TYPE_CHECKING:
    from PIL.Image import Image

FIRST_DELAY, LONGEST_DELAY = 5.0, 600.0
"""Seconds until a candidate that got no verdict is tried again; each attempt doubles them."""

FORESEEN = (DeployError, OSError, MemoryError)
NO_VERDICT = (CandidateError, ModelMemoryError)
"""They say that something happened to the attempt, such as the OOM killer, and nothing about the bundle."""


class Model:
    """A verified encoder, and the index to search unless another encoder made it."""

    def __init__(self, encoder: Encoder, index: Index | None = None, index_fault: str | None = None) -> None:
        self.encoder, self._bundle = encoder, encoder.bundle
        self.index, self.index_fault = index, index_fault
        self.info = encoder.info
        self.statistics = Statistics()
        self.id, self.bundle_id = encoder.id, str(self.info["id"])
        self.name, self.version = str(self.info["name"]), self.info["version"]
        self.preprocessing, self.dim = self._bundle.preprocessing, self._bundle.dim
        self.labels: tuple[str, ...] = tuple(self.info["labels"])
        self.multi_label = bool(self._bundle.head and self._bundle.head.multi_label)

    def open(self, data: bytes, max_pixels: int) -> "Image | FullDepth":
        """Read the header of an image file; raise ImageError if it is too large or cannot be read."""
        channels = self.preprocessing.channels
        return open_full_depth(data, channels, max_pixels) if channels else open_image(data, max_pixels)

    def weight(self, image: "Image | FullDepth") -> int:
        """The pixels of an opened image; of more than three channels, those of an RGB image of the same memory."""
        return image.width * image.height * max(3, self.preprocessing.bands) // 3

    def pixels(self, image: "Image | FullDepth") -> Samples:
        """Decode and resize an opened image as the model takes it; raise ImageError if it cannot be read."""
        if isinstance(image, FullDepth):
            return self.preprocessing.apply(image.read()[0])
        return self.preprocessing.apply_to_picture(canonicalize(image, self.preprocessing.background)[0])

    def features(self, pixels: list[Samples]) -> NDArray[np.float32]:
        """Run the model: n arrays [size, size, 3 or channels] → the raw output, float32 [n, dim]."""
        return self.encoder.run(pixels)

    def vectors(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scale raw outputs, float32 [n, dim], to length 1."""
        return l2_normalize(features)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Classify raw outputs: float32 [n, dim] → [n, labels]. The model must have labels."""
        assert self._bundle.head is not None
        return self._bundle.head.probabilities(features)


def load_model(root: Path, threads: int | None, variant: str, index: Path | None, trust: Path | None = None) -> Model:
    """Load a bundle, or the current version of a registry, and verify its golden images.

    If another encoder made the index, the model is still usable, but searches are refused.

    Raises:
        DeployError: as in ``deploy.load`` and ``Encoder.verify``, or the index cannot be read.
    """
    encoder = load(root, threads, variant=variant, trust=trust)
    encoder.verify()
    if index is None:
        return Model(encoder)
    try:
        return Model(encoder, Index.open(index, encoder))
    except IndexMismatchError as error:
        return Model(encoder, None, str(error))


@dataclass(frozen=True)
class Candidate:
    """What CURRENT names and the server does not serve, after the last attempt.

    Attributes:
        key: the bundle's id, or the error if CURRENT names no bundle.
        attempts: how often it was tried.
        error: the reason.
        next_attempt: on the clock of ``time.monotonic``; None after a verdict, which is final for this bundle.
    """

    key: str
    attempts: int
    error: Exception
    next_attempt: float | None

    @property
    def state(self) -> str:
        return "refused" if self.next_attempt is None else "retrying"


class Models:
    """Holds the current model and, after ``watch``, replaces it when the registry's CURRENT names another version.

    A request ends with the model that it began with. A candidate that is unusable is refused, and not tried again until
    it changes. One that got no verdict, because its trial was killed, took too long or had no memory, or because its
    files could not be read as they were published, is tried again after a growing delay.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[Path], Model],
        check: Callable[[Path], object],
        metrics: Metrics,
        log: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._load, self._check, self._metrics, self._log = root, load, check, metrics, log
        self._clock = clock
        self.candidate: Candidate | None = None
        self._ended = threading.Event()
        self.current = load(root)

    def watch(self) -> None:
        """Start a thread that polls the registry."""
        background.watch("registry", self._metrics, self.poll, self._ended)

    def close(self) -> None:
        self._ended.set()

    def directory(self, model: Model) -> Path:
        """Where the bundle of a model was found."""
        return self._root / str(model.version) if model.version else self._root

    def history(self) -> dict[str | None, str]:
        """Return each released version of the registry with the reason why it is not served; none for a bundle."""
        reasons: dict[str | None, str] = dict.fromkeys(versions(self._root), "CURRENT names another version")
        candidate = self.candidate
        if candidate:
            with suppress(DeployError):
                reasons[version(self._root)] = f"{candidate.state}: {type(candidate.error).__name__}"
        return reasons

    def poll(self) -> None:
        """Check whether the registry has a new current version, and if so try it out and switch to it.

        What no one foresaw is raised, and the version tried again as after any other failure.
        """
        key = None
        try:
            directory = resolve(self._root)
            key = identity(directory)
            if key == self.current.bundle_id:
                self.candidate = None
                return
            if not self._is_due(key):
                return
            self._check(directory)
            model = self._load(self._root)
            if model.bundle_id != key:
                return  # CURRENT changed meanwhile and this version is unchecked; the next poll checks it
        except Exception as error:
            if key or self._is_due(str(error)):
                self._record(key or str(error), error)
            if not isinstance(error, FORESEEN):
                raise
            return
        self.candidate = None
        before, self.current = self.current, model
        self._metrics.count("simclr_model_changes_total", outcome="changed")
        self._log("model changed", model=model.id, version=model.version, before=before.id)

    def _is_due(self, key: str) -> bool:
        known = self.candidate
        if known is None or known.key != key:
            return True
        return known.next_attempt is not None and self._clock() >= known.next_attempt

    def _record(self, key: str, error: Exception) -> None:
        attempts = self.candidate.attempts + 1 if self.candidate and self.candidate.key == key else 1
        final = isinstance(error, BundleError) and not isinstance(error, NO_VERDICT)
        delay = min(FIRST_DELAY * 2.0 ** min(attempts - 1, 20), LONGEST_DELAY)
        self.candidate = Candidate(key, attempts, error, None if final else self._clock() + delay)
        outcome = "refused" if final else "failed"
        self._metrics.count("simclr_model_changes_total", outcome=outcome)
        again = {} if final else {"attempts": attempts, "again_in_seconds": delay}
        self._log(f"model {outcome}", model=self.current.id, candidate=key[:64], error=str(error), **again)
