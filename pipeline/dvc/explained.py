"""What DVC says of a failure, in our words where its own name no next step."""

import os
import re
from pathlib import Path

from deploy.failure import ADVICE
from pipeline.errors import BusyError, DvcError
from pipeline.redact import redactor

NO_GIT = "is not a git repository"
CHATTER = re.compile(r"unexpected error - |\[Errno \d+\] | ?Having any troubles\?.*")
REFUSED = re.compile(
    r"\(40[13]\)|Forbidden|Unauthorized|Access ?Denied|InvalidAccessKeyId|SignatureDoesNotMatch|locate credentials"
)
BLOCKED = re.compile(r"is busy, it is being blocked by: \(PID (\d+)\): (.*?) If there are no processes")


def failure(root: Path, what: str, reason: str) -> DvcError | BusyError:
    """What to raise when DVC failed at ``what``: another ``dvc`` is at work on the same files, or its own words."""
    if found := BLOCKED.search(reason):
        holder = f"process {found[1]} ({redactor(root)(found[2])})"
        return BusyError(f"{root}: busy with {holder}; wait until it ends, or stop it with `kill -INT {found[1]}`")
    return DvcError(explain(root, f"{what}: {reason}"))


def explain(root: Path, reason: str) -> str:
    """The reason as part of an error message about the workspace at ``root``, without secrets."""
    if NO_GIT in reason:
        return (
            f"{root}: is not a Git repository, and DVC works only in one; restore its .git folder from a copy or a "
            "clone, or begin a new history with `git init && git add --all && git commit`"
        )
    return redactor(root)(CHATTER.sub("", reason)) + advise(reason)


def advise(reason: str) -> str:
    """The next step, as the end of a sentence, where the words of a storage or of the system name only the cause."""
    if REFUSED.search(reason):
        return (
            "; the storage was reached and refused: correct its credentials in the environment, or with "
            "`dvc remote modify --local NAME OPTION VALUE`, and run again"
        )
    return next((f"; {advice}" for code, advice in ADVICE.items() if code and os.strerror(code) in reason), "")
