"""The project's addresses in the package's metadata: those of the public repository that builds it.

GitHub Actions names it in the environment. A build anywhere else names none, rather than one that may be wrong.
"""

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ProjectUrls(MetadataHookInterface):
    """Fills ``project.urls``, which pyproject.toml declares dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
        if not (server and name):
            return
        source = f"{server}/{name}"
        metadata["urls"] = {
            "Source": source,
            "Documentation": f"{source}/tree/main/docs",
            "Changelog": f"{source}/blob/main/CHANGELOG.md",
            "Issues": f"{source}/issues",
            "Security": f"{source}/security/policy",
        }
