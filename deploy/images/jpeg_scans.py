"""Refuse a JPEG whose decoding never ends.

A progressive JPEG may hold any number of scans, and one of 31 bytes makes the decoder go over the whole image once
more: 20 MB of them keep a thread busy for an hour, with few pixels and little memory.
"""

import re

from deploy.errors import ImageError

MAX_SCANS = 100
"""As libtiff allows; cameras and encoders write 10 at most, and a file of two pictures twice that."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # but for stuffed bytes, restarts and fill bytes
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def check_scans(image: bytes) -> None:
    """Raise ImageError (``bomb``) for a JPEG with more than MAX_SCANS scans; other files pass."""
    if not image.startswith(b"\xff\xd8"):
        return
    position, scans = 2, 0
    while found := _MARKER.search(image, position):
        marker = image[found.end() - 1]
        if marker == _END_OF_IMAGE:  # a video or another picture may follow
            return
        scans += marker == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise ImageError("bomb", f"a JPEG of over {MAX_SCANS} scans takes for ever to decode; save it again")
        position = found.end() + int.from_bytes(image[found.end() : found.end() + 2], "big")
