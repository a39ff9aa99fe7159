"""Publish the tests' small bundle: `python -m tests.deploy.tiny_bundle DIRECTORY`, for where no test can make it."""

import sys
from pathlib import Path

from deploy.artifact import publish
from deploy.bundle import write_bundle
from tests.deploy.conftest import make_bundle


def main(directory: Path) -> None:
    with publish(directory) as work:
        write_bundle(work, make_bundle())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
