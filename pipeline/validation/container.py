"""What a file's bytes say about themselves before anything is decoded: its container, and what lies behind its end.

Only signatures are trusted. The extension is a claim, and holding it against the signature is one of the checks.
"""

import re
from collections.abc import Callable

EXTENSIONS = {
    "jpeg": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "png": ("png", "apng"),
    "gif": ("gif",),
    "webp": ("webp",),
    "bmp": ("bmp", "dib"),
    "tiff": ("tif", "tiff"),
}
"""The containers that are decoded, and what their files are usually called."""

TERMINATED = ("jpeg", "png", "gif", "webp")
"""The containers that always tell where they end."""

_SIGNATURES = (
    (rb"\xff\xd8\xff", "jpeg"),
    (rb"\x89PNG\r\n\x1a\n", "png"),
    (rb"GIF8[79]a", "gif"),
    (rb"RIFF....WEBP", "webp"),
    (rb"BM....\0\0\0\0", "bmp"),
    (rb"II[*+]\0|MM\0[*+]", "tiff"),
    (rb"....ftyp(avif|avis)", "avif"),
    (rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "heif"),
    (rb"....ftyp", "mp4"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "jpeg_xl"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "jpeg_2000"),
    (rb"8BPS", "photoshop"),
    (rb"\x00\x00\x01\x00", "icon"),
    (rb"v/1\x01", "openexr"),
    (rb".{128}DICM", "dicom"),
    (rb"%PDF", "pdf"),
    (rb"%!PS", "postscript"),
    (rb"PK\x03\x04", "zip"),
    (rb"\x1f\x8b", "gzip"),
    (rb"version https://git-lfs", "git_lfs_pointer"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", "svg"),
    (rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(?i:!doctype html|html|head|body)", "html"),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "xml"),
    (rb"\s*[{\[]\s*[\"{\[\]}]", "json"),
)
_PATTERNS = [(re.compile(pattern, re.DOTALL), name) for pattern, name in _SIGNATURES]
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte, fill, nor a restart inside the scan


def sniff(data: bytes) -> str:
    """The container that the first bytes tell of, a short name; ``unknown`` if none, ``empty`` without any byte."""
    if not data:
        return "empty"
    return next((name for pattern, name in _PATTERNS if pattern.match(data[:1024])), "unknown")


def trailing_bytes(data: bytes, container: str) -> int | None:
    """How many bytes follow the end that the container declares; None where it declares none, or not well."""
    find_end = _ENDS.get(container)
    try:
        end = find_end(data) if find_end else None
    except IndexError:
        return None
    return len(data) - end if end is not None and end <= len(data) else None


def _jpeg_end(data: bytes) -> int | None:
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        position = marker.end()
        code = data[position - 1]
        if code == 0xD9:
            return position
        if code not in (0x01, 0xD8):  # these two stand alone; the others begin with their length
            position += int.from_bytes(data[position : position + 2], "big")
    return None


def _png_end(data: bytes) -> int | None:
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        position += 12 + length
        if kind == b"IEND":
            return position
    return None


def _gif_end(data: bytes) -> int | None:
    position = 13 + _gif_palette_bytes(data[10])
    while (block := data[position]) != 0x3B:
        if block == 0x2C:
            position += 11 + _gif_palette_bytes(data[position + 9])
        elif block == 0x21:
            position += 2
        else:
            return None
        while length := data[position]:
            position += 1 + length
        position += 1
    return position + 1


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _webp_end(data: bytes) -> int | None:
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2 if 8 + size < len(data) else 8 + size


def _bmp_end(data: bytes) -> int | None:
    return int.from_bytes(data[2:6], "little") or None  # some writers leave it 0


_ENDS: dict[str, Callable[[bytes], int | None]] = {
    "jpeg": _jpeg_end,
    "png": _png_end,
    "gif": _gif_end,
    "webp": _webp_end,
    "bmp": _bmp_end,
}
