"""The current model, and its replacement while requests are in flight."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.artifact import identity
from deploy.embeddings import l2_normalize
from deploy.encoder import Encoder, load
from deploy.errors import DeployError, IndexMismatchError
from deploy.images.preprocess import canonicalize
from deploy.registry import resolve
from deploy.search.index import Index
from deploy.server.metrics import Metrics

if TYPE_CHECKING:
    from PIL.Image import Image

POLL_SECONDS = 1.0


class Model:
    """A verified encoder, and the index to search unless another encoder made it."""

    def __init__(self, encoder: Encoder, index: Index | None = None, index_fault: str | None = None) -> None:
        self.encoder, self._bundle = encoder, encoder.bundle
        self.index, self.index_fault = index, index_fault
        self.info = encoder.info
        self.id, self.bundle_id = encoder.id, str(self.info["id"])
        self.name, self.version = str(self.info["name"]), self.info["version"]
        self.size, self.dim = self._bundle.preprocessing.size, self._bundle.dim
        self.labels: tuple[str, ...] = tuple(self.info["labels"])

    def pixels(self, image: "Image") -> NDArray[np.uint8]:
        """Decode and resize an opened image to uint8 [size, size, 3]; raise ImageError if it cannot be read."""
        return self._bundle.preprocessing.apply_to_picture(canonicalize(image)[0])

    def features(self, pixels: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Run the model: n arrays uint8 [size, size, 3] → the raw output, float32 [n, dim]."""
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


class Models:
    """Holds the current model and, after ``watch``, replaces it when the registry's CURRENT names another version.

    A request ends with the model that it began with. An unusable candidate is refused, and not tried again until it
    changes.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[Path], Model],
        check: Callable[[Path], object],
        metrics: Metrics,
        log: Callable[..., None],
    ) -> None:
        self._root, self._load, self._check, self._metrics, self._log = root, load, check, metrics, log
        self._refused: str | None = None
        self._ended = threading.Event()
        self.current = load(root)

    def watch(self) -> None:
        """Start a thread that polls the registry."""
        threading.Thread(target=self._watch, name="deploy-models", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def poll(self) -> None:
        """Check whether the registry has a new current version, and if so try it out and switch to it."""
        candidate = None
        try:
            directory = resolve(self._root)
            candidate = identity(directory)
            if candidate in (self.current.bundle_id, self._refused):
                return
            self._check(directory)
            model = self._load(self._root)
            if model.bundle_id != candidate:
                return  # CURRENT changed meanwhile and this version is unchecked; the next poll checks it
        except (DeployError, OSError) as error:
            self._refuse(candidate or str(error), error)
            return
        self._refused = None
        before, self.current = self.current, model
        self._metrics.count("simclr_model_changes_total", outcome="changed")
        self._log("model changed", model=model.id, version=model.version, before=before.id)

    def _refuse(self, candidate: str, error: Exception) -> None:
        if candidate == self._refused:
            return
        self._refused = candidate
        self._metrics.count("simclr_model_changes_total", outcome="refused")
        self._log("model refused", model=self.current.id, candidate=candidate[:64], error=str(error))

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            self.poll()
