"""What DVC says of a failure, in our words where its own name no next step."""

from pathlib import Path

from pipeline.redact import redactor

NO_GIT = "is not a git repository"


def explain(root: Path, reason: str) -> str:
    """The reason as part of an error message about the workspace at ``root``, without secrets."""
    if NO_GIT in reason:
        return (
            f"{root}: is not a Git repository, and DVC works only in one; restore its .git folder from a copy or a "
            "clone, or begin a new history with `git init && git add --all && git commit`"
        )
    return redactor(root)(reason)
