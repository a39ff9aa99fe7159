"""What the page shows: the images of an explorer, by the numbers of their rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

MOST_DETAILS = 500  # rows in one request


class Picture(NamedTuple):
    """The bytes of an image file that a browser shows, and its media type."""

    data: bytes
    kind: str


class Near(NamedTuple):
    """Rows that resemble something, most first, and their cosines."""

    rows: Sequence[int]
    cosines: Sequence[float]


class Collection(Protocol):
    """Images by row, from 0. Safe to ask from many threads."""

    @property
    def points(self) -> bytes:
        """Every row as ``columns.pack`` writes it: the columns ``x``, ``y`` and ``tile``, the place of its thumbnail on
        the sheets, 0 for an image without one; and whatever points can be colored by."""

    def sheet(self, number: int) -> Picture | None:
        """A sheet of thumbnails; None if no sheet has this number."""

    def picture(self, row: int) -> Picture | None:
        """The image in full; None if it cannot be shown."""

    def details(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """What is known of each row, by name: ``path``, and what else there is."""

    def near(self, row: int, most: int) -> Near:
        """The images that resemble that of a row most, without it; empty for a row without a vector."""

    def find(self, picture: bytes, most: int) -> Near:
        """The images that resemble this image file most.

        Raises:
            ImageError: it cannot be read.
        """

    def search(self, text: str) -> Sequence[int]:
        """The rows whose path contains the text, whatever its capitals."""

    def listed(self, names: Sequence[str]) -> Sequence[int]:
        """The rows that have one of these paths or SHA-256."""


Action = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""What the page may ask to be done, from the JSON of its request to that of the answer."""
