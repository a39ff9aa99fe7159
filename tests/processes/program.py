"""`python -c CODE`, in a form that starts warm: see tests/processes/warm.py."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(code: str, *arguments: object) -> list[str]:
    """What runs the code, with these arguments in ``sys.argv``; start it in the folder ``ROOT``."""
    return [sys.executable, "-u", "-m", __name__, code, *map(str, arguments)]


if __name__ == "__main__":
    code = sys.argv.pop(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
