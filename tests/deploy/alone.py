"""What an application developer has: the wheel with its base dependencies, and nothing that trains.

    python -I tests/deploy/alone.py BUNDLE        in an environment into which only the wheel was installed

Embeds an image in Python and at the command line, and ends with 1 when torch or its kin could be imported.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import deploy
from deploy.cli.main import main as command_line

TRAINING = ("torch", "torchvision", "onnx", "onnxscript", "dagster", "dvc", "great_expectations", "pydantic", "pandas")


def main(bundle: Path) -> None:
    present = [name for name in TRAINING if find_spec(name)]
    if present:
        raise SystemExit(f"error: {', '.join(present)} can be imported here; install the wheel alone")
    encoder = deploy.load(bundle)
    fidelity = encoder.verify()
    picture = bundle / "golden" / "00.png"
    vector = encoder.embed(picture).vectors
    if command_line(["classify", str(bundle), str(picture)]):
        raise SystemExit("error: simclr-deploy classify failed")
    print(f"deploy {deploy.__file__}: {vector.shape[1]} numbers of {picture.name}, golden images {fidelity.images}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
