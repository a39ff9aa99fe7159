"""What the files for systemd, for containers and for Kubernetes have in common."""

from pathlib import Path

from pipeline.dvc.client import GRACE_SECONDS

ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "docs" / "deployment"
DOCKERFILE = DEPLOYMENT / "compose" / "Dockerfile"
SAVING_SECONDS = 2 * GRACE_SECONDS  # longer than a stage that is being canceled needs


def image_fault(image: str) -> str | None:
    name, _, tag = image.rpartition("/")[2].partition(":")
    return None if tag and "latest" not in tag else f"image {name} has no version"
