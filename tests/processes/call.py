"""A function that is called in a process forked from one that has imported torch: see tests/processes/warm.py."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(file: Path, function: Callable[[], object]) -> subprocess.Popen[bytes]:
    """Start the process. What it calls is at the top of a module, or a partial of such a function, and goes through a
    new file."""
    file.write_bytes(pickle.dumps(function))
    return subprocess.Popen([sys.executable, "-u", "-m", __name__, str(file)], cwd=ROOT)


if __name__ == "__main__":
    pickle.loads(Path(sys.argv[1]).read_bytes())()
