"""Selection: which files of a source are taken at all, by ``ingest.include`` and ``ingest.exclude``.

The patterns are those of .gitignore (https://git-scm.com/docs/gitignore), with capitals that do not matter: ``*.jpg``
and ``masks/`` on every level, ``camera 7/*.png`` from the source down, ``!`` for an exception.
"""

import re
from collections.abc import Sequence

from pathspec import GitIgnoreSpec

from pipeline.ingest.labels.names import unify

LEFT_OUT = "left out by ingest.include or ingest.exclude"
SIGNS = "＊？［］！＃＼／"


class Selection:
    """Without patterns, everything is taken. ``arrays``: arrays of numpy are images, as with prepare.channels."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = (), arrays: bool = False) -> None:
        self.arrays = arrays
        self._include = GitIgnoreSpec.from_lines(map(_folded, include)) if include else None
        self._exclude = GitIgnoreSpec.from_lines(map(_folded, exclude)) if exclude else None

    def excludes(self, path: str) -> bool:
        """Whether ``ingest.exclude`` names a path below a source, with forward slashes."""
        return self._exclude is not None and self._exclude.match_file(_folded(path))

    def leaves_out(self, path: str) -> bool:
        """Whether a file is not taken, by either list."""
        return self.excludes(path) or (self._include is not None and not self._include.match_file(_folded(path)))


def _folded(text: str) -> str:
    """As names compare: a keyboard and a file system may each write an accent in their own form. Wide forms of signs
    stay, since the narrow ones have a meaning in patterns."""
    return "".join(part if part in SIGNS else unify(part) for part in re.split(f"([{SIGNS}])", text))


ALL = Selection()
