"""Whether a trusted key still vouches for the model that is served: keys are taken back while a server runs.

A new model is checked when it is loaded. This looks again at the one in use when the file of keys or its signature
changes, and every hour, because a key may also expire. Until a trusted version is served, requests for results get 503.
"""

import time
from collections.abc import Callable
from pathlib import Path

from deploy.artifact import check_trust, identity
from deploy.errors import DeployError, UntrustedError
from deploy.server import background
from deploy.server.limits import RefusedError
from deploy.server.metrics import Metrics
from deploy.server.models import Model, Models
from deploy.trust.signature import signature_of

HOUR = 3600


class Trust:
    """Looks again who signed the current model; ``refuse`` raises once no trusted key did."""

    def __init__(self, signers: Path, models: Models, metrics: Metrics, log: Callable[..., None]) -> None:
        self._signers, self._models, self._metrics, self._log = signers, models, metrics, log
        self._known, self._doubted, self._revoked = "", "", ""

    def watch(self) -> None:
        """Start a thread that looks each second."""
        background.watch("trust", self._metrics, self.poll)

    def is_revoked(self, model: Model) -> bool:
        return model.bundle_id == self._revoked

    def refuse(self, model: Model) -> None:
        """Raise RefusedError (503) if no trusted key vouches for the model."""
        if self.is_revoked(model):
            message = "no trusted key vouches for this model any more; promote a version that one of them signed"
            raise RefusedError(503, "untrusted", message)

    def poll(self) -> None:
        """Look again if something changed. Two looks must find the same, since a file may be half written."""
        model = self._models.current
        state = self._state(model)
        if state == self._known:
            return
        directory = self._models.directory(model)
        try:
            if identity(directory) == model.bundle_id:
                check_trust(directory, self._signers)
        except UntrustedError as error:
            if state != self._doubted:
                self._doubted = state
                return
            if not self.is_revoked(model):
                self._metrics.count("simclr_model_changes_total", outcome="revoked")
            self._revoked = model.bundle_id
            self._log("model revoked", model=model.id, version=model.version, error=str(error))
        except (DeployError, OSError) as error:  # nothing is known about the keys, as where their file is gone
            self._log("trust kept", model=model.id, error=str(error))
        else:
            if self.is_revoked(model):
                self._log("model trusted", model=model.id, version=model.version)
            self._revoked = ""
        self._known = state

    def _state(self, model: Model) -> str:
        """What changes whenever another look is due."""
        files = (self._signers, signature_of(self._models.directory(model)))
        return f"{model.bundle_id} {int(time.time() // HOUR)} {[_stamp(file) for file in files]}"


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)
