"""HEIF containers: HEIC, which the extra ``heic`` decodes, and AVIF, which Pillow decodes.

Phones write them. Both are boxes of ISO/IEC 14496-12 with the items of ISO/IEC 23008-12. See
``docs/decisions/heic-by-an-extra.md``.
"""

from io import BytesIO
from typing import TYPE_CHECKING

from deploy.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install pi-heif"
NAMES = (".heic", ".heif", ".hif")
ADVICE = f"HEIC files are read with the extra heic: install it with `{INSTALL}`, or convert them to JPEG or PNG"

_HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AV1 = {b"avif", b"avis"}
_ANY = {b"mif1", b"msf1"}
_SRGB_PRIMARIES, _SRGB_TRANSFERS = {1, 2}, {1, 2, 6, 13}  # ITU-T H.273; 2: not said


def is_heic(data: bytes) -> bool:
    """Whether a file is a HEIF container, and not one that says that its pictures are coded as AVIF."""
    if data[4:8] != b"ftyp":
        return False
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 256), 4))}
    return data[8:12] in _HEVC | _ANY and (bool(brands & _HEVC) or not brands & _AV1)


def open_heic(data: bytes) -> "Image":
    """Read the header of a HEIC file.

    Raises:
        ImageError: ``unsupported_format``: the extra is not installed.
    """
    if not is_installed():
        raise ImageError("unsupported_format", ADVICE)
    from pi_heif import options
    from pi_heif.as_plugin import HeifImageFile

    options.DECODE_THREADS = 1  # images are decoded side by side
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    image: Image = HeifImageFile(BytesIO(data))
    return image


def is_unread(name: str) -> bool:
    """Whether a file is HEIC by its name, and cannot be read here."""
    return name.lower().endswith(NAMES) and not is_installed()


def is_installed() -> bool:
    """Whether HEIC files can be read here."""
    from importlib.util import find_spec

    return find_spec("pi_heif") is not None


def bit_depth(data: bytes) -> int:
    """Bits of a channel, by the first pixel information property (``pixi``); 8 without one."""
    start = data.find(b"pixi")
    return data[start + 9] if 0 <= start < len(data) - 9 and data[start + 8] else 8


def is_other_than_srgb(data: bytes) -> bool:
    """Whether the first color property without a profile (``colr`` of type ``nclx``) tells of another color space."""
    start = data.find(b"colrnclx") + 8
    primaries, transfer = (int.from_bytes(data[at : at + 2], "big") for at in (start, start + 2))
    return start >= 8 and (primaries not in _SRGB_PRIMARIES or transfer not in _SRGB_TRANSFERS)


def is_cut_short(data: bytes) -> bool:
    """Whether the last of the outermost boxes ends behind the end of the file."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:  # 0: to the end of the file; else it is damaged
            return False
        position += size
    return position != len(data)
