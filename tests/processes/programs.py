"""Programs of the system that no package brings: where one is missing, the tests of what needs it are skipped."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest


def _needs(found: object, what: str) -> pytest.MarkDecorator:
    # Continuous integration has them all: there a missing one fails its tests.
    return pytest.mark.skipif(not (found or os.environ.get("CI")), reason=f"this machine has no {what}")


needs_curl = _needs(shutil.which("curl"), "curl")
needs_ssh_keygen = _needs(shutil.which("ssh-keygen"), "ssh-keygen (Debian's package openssh-client)")
needs_compiler = _needs(
    shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists(),
    "C++ compiler with Python's headers (Debian's packages g++ and python3-dev)",
)
