"""Refuse a JPEG with so many scans that decoding it would take hours.

A progressive JPEG may contain any number of scans, and each scan, of as few as 31 bytes, makes the decoder process the
whole image once more: 20 MB of scans occupy a thread for an hour, with few pixels and little memory.
"""

import re

from deploy.errors import ImageError

MAX_SCANS = 100
"""The limit of libtiff. Cameras and encoders write at most 10, and a file with two pictures at most 20."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # excludes stuffed bytes, restarts and fill bytes
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def check_scans(image: bytes) -> None:
    """Raise ImageError (``bomb``) for a JPEG with more than MAX_SCANS scans; accept every other file."""
    if not image.startswith(b"\xff\xd8"):
        return
    position, scans = 2, 0
    while found := _MARKER.search(image, position):
        marker = image[found.end() - 1]
        if marker == _END_OF_IMAGE:  # a video or another picture may follow
            return
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise ImageError("bomb", f"a JPEG with over {MAX_SCANS} scans takes too long to decode; save it again")
        position = found.end() + int.from_bytes(image[found.end() : found.end() + 2], "big")
