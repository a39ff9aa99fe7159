"""How a TIFF arranges its samples: what Pillow would decode wrongly, or cannot open, is refused by name.

``tests/deploy/images/test_tiff_matrix.py`` compares the others with tifffile. Tags and their values are those of TIFF
6.0, and of BigTIFF.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any

from deploy.errors import ImageError

WIDTH, HEIGHT, STRIPS, TILES = 256, 257, 273, 324
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, MAX_SAMPLE = 254, 258, 259, 262, 277, 281
PLANES, COLORMAP, EXTRA, FORMAT = 284, 320, 338, 339
DEPTH = 32997  # ImageDepth, of SGI: slices of one picture
GRAY, SEPARATE, UNCOMPRESSED, PREVIEW, ALPHA, UNSIGNED = (0, 1), 2, 1, 1, (1, 2), (1, 4)
COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
"""Photometric interpretation → the samples of a pixel that are colors. Others are alpha, or bands without a meaning."""

NAMES = {0: "gray with 0 as white", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000, 50001)
"""Those that Pillow decodes; see PIL.TiffImagePlugin.COMPRESSION_INFO."""

MOST_DIRECTORIES, MOST_ENTRIES = 1000, 512  # read, so that no file takes long; others count as the end of the chain
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

Tags = Mapping[int, Any]


def check_layout(tags: Tags) -> None:
    """Refuse what Pillow opens and decodes wrongly.

    Raises:
        ImageError: ``unsupported_layout``; ``unsupported_depth`` for numbers with a sign.
    """
    if first(tags, FORMAT, 1) not in UNSIGNED and first(tags, BITS, 1) == 8:
        raise _refused_depth(tags)
    if (slices := first(tags, DEPTH, 1)) > 1:
        raise ImageError("unsupported_layout", f"a TIFF of {slices} slices is not supported; store one file for each")
    if first(tags, SAMPLES, 1) > 1 and first(tags, PLANES, 1) == SEPARATE and not _separates(tags):
        raise _refused_layout(tags)
    if first(tags, PHOTOMETRIC, 0) == 3 and max(tags.get(COLORMAP, (0,))) < 256:
        raise ImageError("unsupported_layout", "its palette ends at 255, not at 65,535, as TIFF has it; store it again")


def _separates(tags: Tags) -> bool:
    """Return whether Pillow decodes these separate planes rightly; all but uncompressed ones are for libtiff."""
    color, extra = first(tags, PHOTOMETRIC, 0), first(tags, EXTRA, -1)
    if first(tags, COMPRESSION, 1) != UNCOMPRESSED:
        return color not in GRAY or extra not in ALPHA
    return first(tags, BITS, 1) == 8 and (extra == -1 or (color == 2 and extra == 2))


def drops_bands(tags: Tags) -> bool:
    """Return whether a pixel has samples that are neither color nor alpha: they are not decoded."""
    colors = COLORS.get(first(tags, PHOTOMETRIC, 0), 99)
    return first(tags, SAMPLES, 1) > colors + (first(tags, EXTRA, 0) in ALPHA)


def why_unopened(file: IO[bytes]) -> ImageError | None:
    """Return the refusal of a TIFF that Pillow does not open, if its first directory is sound and says why."""
    tags = next(directories(file), {})
    sizes = all(first(tags, tag, default) for tag, default in ((WIDTH, 0), (HEIGHT, 0), (BITS, 1)))
    sound = sizes and (STRIPS in tags or TILES in tags) and first(tags, COMPRESSION, 1) in COMPRESSIONS
    if not sound or first(tags, SAMPLES, 1) < COLORS.get(first(tags, PHOTOMETRIC, 0), 1 << 16):
        return None
    known_depth = first(tags, FORMAT, 1) in UNSIGNED and first(tags, BITS, 1) in (1, 2, 4, 8, 16)
    return _refused_layout(tags) if known_depth else _refused_depth(tags)


def has_pages(file: IO[bytes]) -> bool:
    """Return whether a TIFF holds a second picture that is not a reduced copy, as overviews and previews are."""
    kinds = (first(tags, SUBFILE, 0) & PREVIEW for tags in directories(file))
    next(kinds, None)
    return 0 in kinds


def directories(file: IO[bytes]) -> Iterator[dict[int, int]]:
    """Yield for each directory of the chain the first number of each of its tags; damage ends the chain."""
    file.seek(0)
    header = file.read(16)
    order, is_big = "<" if header[:1] == b"I" else ">", b"+" in header[2:4]
    count_type, entry_size, word = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    seen: set[int] = set()
    try:
        (position,) = struct.unpack_from(order + word, header, 8 if is_big else 4)
        while position and position not in seen and len(seen) < MOST_DIRECTORIES:
            seen.add(position)
            file.seek(position)
            (count,) = struct.unpack(order + count_type, file.read(struct.calcsize(count_type)))
            entries = file.read(min(count, MOST_ENTRIES) * entry_size)
            end = file.read(struct.calcsize(word)) if count <= MOST_ENTRIES else bytes(8)
            yield dict(_numbers(file, entries, order, is_big))
            (position,) = struct.unpack_from(order + word, end)
    except (OSError, OverflowError, struct.error):
        return


def _numbers(file: IO[bytes], entries: bytes, order: str, is_big: bool) -> Iterator[tuple[int, int]]:
    layout = order + ("HHQ8s" if is_big else "HHI4s")
    for tag, kind, count, value in struct.iter_unpack(layout, entries):
        if kind not in _TYPES or not count:
            continue
        size = struct.calcsize(_TYPES[kind])
        if size * count > len(value):
            file.seek(int.from_bytes(value, "little" if order == "<" else "big"))
            value = file.read(size)
        yield tag, struct.unpack_from(order + _TYPES[kind], value)[0]


def first(tags: Tags, tag: int, default: int) -> int:
    """Return the first number of a tag."""
    value = tags.get(tag, default)
    value = value[0] if isinstance(value, tuple | bytes) and value else value
    return value if isinstance(value, int) else default


def _refused_depth(tags: Tags) -> ImageError:
    kind = {1: "unsigned", 2: "signed", 3: "floating-point"}.get(first(tags, FORMAT, 1), "other")
    what = f"a TIFF of {kind} samples of {first(tags, BITS, 1)} bits"
    return ImageError("unsupported_depth", f"{what} is not supported; store 8 or 16 bits without sign")


def _refused_layout(tags: Tags) -> ImageError:
    samples, color = first(tags, SAMPLES, 1), NAMES.get(first(tags, PHOTOMETRIC, 0), "L*a*b*")
    planes = " in separate planes" if samples > 1 and first(tags, PLANES, 1) == SEPARATE else ""
    what = f"a TIFF of {samples} band{'s' * (samples > 1)} of {first(tags, BITS, 1)} bits{planes}, declared as {color},"
    remedy = "store gray or RGB, with one alpha band at most, interleaved, of 8 bits"
    return ImageError("unsupported_layout", f"{what} is not supported; {remedy}")
