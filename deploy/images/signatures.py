"""What the name and the first bytes of a file say that it is, before anything is decoded.

Only signatures are trusted. The suffix is a claim: it makes a file worth reading, and validation holds it against the
signature.
"""

import re

EXTENSIONS = {
    "jpeg": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "png": ("png", "apng"),
    "gif": ("gif",),
    "webp": ("webp",),
    "bmp": ("bmp", "dib"),
    "tiff": ("tif", "tiff"),
    "avif": ("avif", "avifs"),
    "heif": ("heic", "heif", "hif"),
    "npy": ("npy",),
}
"""The containers that are decoded, HEIF by an extra, and what their files are usually called.

An array of numpy (npy) can hold anything, and is an image only where images have a number of channels."""

OTHER_EXTENSIONS = ("jxl", "jp2", "j2k", "jpf", "psd", "exr", "dcm", "dicom")
"""Usual names of image files that are not decoded; validation says what to do with them."""

_ARRAYS = "npy"
DECODED = EXTENSIONS.keys() - {_ARRAYS}
"""The containers of pictures."""

NOT_DECODED = {
    "photoshop": "Photoshop",
    "pdf": "PDF",
    "postscript": "PostScript",
    "svg": "SVG",
    "fits": "FITS",
    "openexr": "OpenEXR",
    "icon": "icon",
    "jpeg_2000": "JPEG 2000",
    "jpeg_xl": "JPEG XL",  # see docs/decisions/heic-by-an-extra.md
}
"""Other containers of pictures, as people call them."""

HEAD_BYTES = 1024
"""How much of a file is looked at."""

_SIGNATURES = (
    (rb"\xff\xd8\xff", "jpeg"),
    (rb"\x93NUMPY", "npy"),
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
    (rb"SIMPLE  =", "fits"),
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
_IMAGES = {*EXTENSIONS, "jpeg_xl", "jpeg_2000", "photoshop", "openexr", "dicom", "git_lfs_pointer"} - {_ARRAYS}
_SUFFIXES = (
    *(f".{one}" for container, names in EXTENSIONS.items() if container != _ARRAYS for one in names),
    *(f".{one}" for one in OTHER_EXTENSIONS),
)


def sniff(data: bytes) -> str:
    """The container that the first bytes tell of, a short name; ``unknown`` if none, ``empty`` without any byte."""
    if not data:
        return "empty"
    return next((name for pattern, name in _PATTERNS if pattern.match(data[:HEAD_BYTES])), "unknown")


def is_image(path: str, data: bytes, arrays: bool = False) -> bool:
    """Whether a file is to be taken for an image: by its name, even if it is damaged, or by its first bytes.

    Args:
        arrays: whether arrays of numpy are images, as they are where images have a number of channels.

    >>> is_image("holiday/beach.JPG", b"")
    True
    >>> is_image("holiday/waves.ogg", b"OggS")
    False
    >>> is_image("cells/a.npy", b""), is_image("cells/a.npy", b"", arrays=True)
    (False, True)
    """
    return named_as_image(path, arrays) or sniff(data) in _IMAGES or (arrays and sniff(data) == _ARRAYS)


def named_as_image(path: str, arrays: bool = False) -> bool:
    """Whether the name of a file says that it is an image."""
    return path.lower().endswith(_SUFFIXES) or (arrays and is_array(path))


def is_array(path: str) -> bool:
    """Whether the name of a file says that it is an array of numpy."""
    return path.lower().endswith(f".{_ARRAYS}")
