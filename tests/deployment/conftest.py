"""What the files for systemd, for containers and for Kubernetes have in common."""

import re
from pathlib import Path

from pipeline.dvc.client import GRACE_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "docs" / "deployment"
DOCKERFILE = DEPLOYMENT / "compose" / "Dockerfile"
SAVING_SECONDS = 2 * GRACE_SECONDS  # longer than a stage that is being canceled needs


def image_fault(image: str) -> str | None:
    """Ours are built here; every other one is named by its digest, and by the tag that says what it is."""
    named, _, digest = image.partition("@")
    name, _, tag = named.rpartition("/")[2].partition(":")
    if not tag or "latest" in tag:
        return f"image {name} has no version"
    if not name.startswith("simclr-") and not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        return f"image {name} has no digest"
    return None
