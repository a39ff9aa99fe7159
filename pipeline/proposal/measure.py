"""How fast this machine trains what is about to be proposed, by a few real steps in a separate process."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.failure import one_line
from pipeline.errors import ParamsError
from pipeline.proposal.training import Training
from pipeline.recipes.recipe import overlay, params_of


def measure(base: str, training: Training) -> float:
    """Images a second; ``base`` is the text of the template's params.yaml.

    Raises:
        ParamsError: the training does not run on this machine, and what it said.
    """
    encoder = f"{{name: {training.encoder}, width: {training.width}, stem: {training.stem}}}"
    changes = f"pretrain:\n  encoder: {encoder}\n  image_size: {training.side}\n  resize: null\n"
    changes += f"  batch_size: {training.batch}\n"
    with TemporaryDirectory() as folder:
        text = overlay(params_of(training.recipe, base), changes)
        (Path(folder) / "params.yaml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-P", "-m", "simclr_core", "--workspace", folder, "rate"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ParamsError(
            f"a few steps of {training.encoder} at {training.side} pixels failed on this machine: "
            f"{one_line(done.stderr) or f'exit code {done.returncode}'}; choose a recipe with `simclr init --recipe`"
        )
    rate: float = json.loads(done.stdout.splitlines()[-1])["images_per_second"]
    return rate
