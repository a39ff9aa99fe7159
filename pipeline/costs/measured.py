"""What was measured for a workspace: kept next to its timings, and of use as long as what it depends on is the same."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deploy.artifact import write_atomically
from deploy.failure import one_line
from deploy.session import available_cpus
from pipeline.costs.images import measure_images
from pipeline.costs.model import ImageCosts, Measured
from pipeline.errors import ParamsError
from pipeline.params import Params
from pipeline.preflight.images import Images
from simclr_core.monitoring.unit_costs import TrainingSet, UnitCosts

FILE = Path(".simclr") / "measured.json"
DECISIVE = {
    "encoder",
    "projection_head",
    "augmentation",
    "image_size",
    "resize",
    "batch_size",
    "micro_batch_size",
    "optimizer",
    "queue",
    "precision",
    "compile",
    "gradient_checkpointing",
    "monitor_images",
}
"""The keys of ``pretrain`` on which the cost of a step depends, or of the look at the end of an epoch."""


def measure(text: str, params: Params, contents: Sequence[bytes], images: Images) -> Measured:
    """Measure for a params.yaml with this ``text``, with some of the ``images``.

    Raises:
        ParamsError: the training does not run on this machine, and what it said.
    """
    image, sizes = measure_images(contents, params.prepared_side, params.prepare)
    data = TrainingSet(images.train.total(), len(images.classes), params.prepare.channels, sizes)
    return Measured(measure_units(text, data), image, available_cpus())


def measure_units(text: str, data: TrainingSet) -> UnitCosts:
    """Some real steps in a separate process, as params.yaml says with this ``text``.

    Raises:
        ParamsError: the training does not run on this machine, and what it said.
    """
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        (Path(folder) / "params.yaml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-P", "-m", "simclr_core", "--workspace", folder, "rate"]
        command += ["--images", str(data.images), "--classes", str(data.classes)]
        command += ["--channels", str(data.channels)] if data.channels else []
        command += ["--sizes", *(f"{height}x{width}" for height, width in data.sizes)] if data.sizes else []
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ParamsError(
            "a few steps of training failed on this machine: "
            f"{one_line(done.stderr) or f'exit code {done.returncode}'}; change pretrain in params.yaml, or choose a "
            "recipe with `simclr init --recipe`"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return _unit(found | {"start_seconds": time.monotonic() - started - found.pop("measured_seconds")})


def keep(root: Path, params: Params, measured: Measured) -> None:
    """Remember it for this workspace and these parameters."""
    write_atomically(root / FILE, json.dumps({"key": _key(params), **asdict(measured)}, indent=2) + "\n")


def read_measured(root: Path, params: Params) -> Measured | None:
    """What was measured for such parameters; None if nothing was."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        stored = json.loads((root / FILE).read_text(encoding="utf-8"))
        if stored["key"] == _key(params):
            return Measured(_unit(stored["unit"]), ImageCosts(**stored["image"]), int(stored["cores"]))
    return None


def _unit(stored: dict[str, Any]) -> UnitCosts:
    pairs = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}  # as JSON has them
    return UnitCosts(**(stored | pairs))


def _key(params: Params) -> str:
    decisive = [
        params.pretrain.model_dump(mode="json", include=DECISIVE),
        params.finetune.batch_size,
        params.prepared_side,
        params.prepare.model_dump(mode="json"),
        available_cpus(),
    ]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]
