"""One image stored in every way that is read: what Pillow writes, and what it reads and others write."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms

FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
"""Extension → the format as Pillow calls it."""

Encode = Callable[[Image.Image], bytes]
"""RGB image → file."""


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(image: Image.Image, *, interlaced: bool = False, deep: bool = False) -> bytes:
    """RGB, with the seven passes of Adam7 or 16 bits a channel, neither of which Pillow writes."""
    pixels = np.asarray(image).astype(">u2") * 257 if deep else np.asarray(image)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = []
    for top, left, down, right in passes if interlaced else [(0, 0, 1, 1)]:
        rows += [b"\0" + row.tobytes() for row in pixels[top::down, left::right] if row.size]  # filter 0: none
    header = struct.pack(">IIBBBBB", *image.size, 16 if deep else 8, 2, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def bmp(image: Image.Image, *, kind: str) -> bytes:
    """``rle`` (8 bits, run lengths), ``565`` (16 bits), ``top_down`` (negative height) or ``core`` (header of OS/2)."""
    width, height = image.size
    rows = np.asarray(image)[::-1]
    bits, compression, palette = {"rle": (8, 1, 1024), "565": (16, 3, 12)}.get(kind, (24, 0, 0))
    if kind == "rle":
        indexed = image.quantize(200)
        levels = np.frombuffer(indexed.convert("RGB").tobytes(), np.uint8).reshape(-1, 3)
        table = np.zeros((256, 4), np.uint8)
        table[np.asarray(indexed).ravel(), :3] = levels[:, ::-1]
        between = table.tobytes()
        lines = [b"".join(b"\1" + bytes([level]) for level in row) for row in np.asarray(indexed)[::-1]]
        body = b"\0\0".join(lines) + b"\0\1"
    elif kind == "565":
        red, green, blue = (rows[..., channel].astype(np.uint16) for channel in range(3))
        between = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
        body = ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2").tobytes()
    else:
        between, order = b"", -1 if kind == "top_down" else 1
        body = b"".join(row[:, ::-1].tobytes() + bytes(-width * 3 % 4) for row in rows[::order])
    if kind == "core":
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        tall = -height if kind == "top_down" else height
        header = struct.pack("<IiiHHIIiiII", 40, width, tall, 1, bits, compression, len(body), 0, 0, palette and 256, 0)
        header = header[:32] + struct.pack("<II", 256 if kind == "rle" else 0, 0)
    offset = 14 + len(header) + len(between)
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + header + between + body


def tiff(size: tuple[int, int], pieces: Sequence[bytes], order: str = "<", **tags: int) -> bytes:
    """An uncompressed 8-bit RGB TIFF of strips or, with ``tile_width`` and ``tile_height``, of tiles.

    Further tags by the names below replace what such an image has.
    """
    names = {"width": 256, "height": 257, "compression": 259, "photometric": 262, "samples": 277, "rows": 278}
    names |= {"planar": 284, "tile_width": 322, "tile_height": 323, "sample_format": 339, "bits": 258}
    values = {"width": size[0], "height": size[1], "compression": 1, "photometric": 2, "samples": 3, "planar": 1} | tags
    tiled = "tile_width" in tags
    if not tiled:
        values.setdefault("rows", size[1])
    entries = {names[name]: (4, [value]) for name, value in values.items()}
    entries[258] = (3, [tags.get("bits", 8)] * values["samples"])
    entries[324 if tiled else 273] = (4, [0] * len(pieces))
    entries[325 if tiled else 279] = (4, [len(piece) for piece in pieces])
    position = 8 + 2 + 12 * len(entries) + 4
    spilled, directory = b"", b""
    extents = {tag: len(listed) * (2 if kind == 3 else 4) for tag, (kind, listed) in entries.items()}
    start = position + sum(extent + extent % 2 for extent in extents.values() if extent > 4)
    offsets = [start + sum(len(piece) for piece in pieces[:index]) for index in range(len(pieces))]
    entries[324 if tiled else 273] = (4, offsets)
    for tag, (kind, listed) in sorted(entries.items()):
        value = struct.pack(f"{order}{len(listed)}{'H' if kind == 3 else 'I'}", *listed)
        if len(value) > 4:
            where = struct.pack(f"{order}I", position + len(spilled))
            spilled += value + bytes(len(value) % 2)
        else:
            where = value.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(listed)) + where
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return begin + directory + bytes(4) + spilled + b"".join(pieces)


def _planes(image: Image.Image) -> bytes:
    return tiff(image.size, [channel.tobytes() for channel in image.split()], planar=2)


def _tiles(image: Image.Image) -> bytes:
    boxes = [(x, y, x + 16, y + 16) for y in range(0, image.height, 16) for x in range(0, image.width, 16)]
    return tiff(image.size, [image.crop(box).tobytes() for box in boxes], tile_width=16, tile_height=16)


def _gray16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def _faded(image: Image.Image) -> Image.Image:
    """With alpha from 0 to 255."""
    faded = image.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(image.size))
    return faded


def srgb_profile() -> bytes:
    """Made by littlecms, without the time of its making."""
    return _undated(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def _undated(profile: bytes) -> bytes:
    return profile[:24] + bytes(12) + profile[36:]  # ICC.1, 7.2: the date and time field


def _lab(image: Image.Image) -> Image.Image:
    converted = image.convert("LAB")
    converted.info["icc_profile"] = _undated(converted.info["icc_profile"])
    return converted


def _ycck(image: Image.Image) -> bytes:
    """CMYK turned into luma, chroma and black, as Photoshop does."""
    channels = [ImageChops.invert(one) for one in ImageChops.invert(image).convert("YCbCr").split()]
    cmyk = encoded(Image.merge("CMYK", [*channels, Image.new("L", image.size)]), "JPEG", quality=90, subsampling=0)
    transform = cmyk.index(b"Adobe") + 11
    return cmyk[:transform] + b"\2" + cmyk[transform + 1 :]  # Adobe TN 5116: 2 is YCCK


def _as(format: str, convert: Callable[[Image.Image], Image.Image] | str = "RGB", **options: Any) -> Encode:
    """``convert``: a mode, or a function."""
    return lambda image: encoded(
        image.convert(convert) if isinstance(convert, str) else convert(image), format, **options
    )


def _palette(colors: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.quantize(colors)


ENCODINGS: dict[str, Encode] = {
    "jpeg.jpg": _as("JPEG"),
    "progressive.jpg": _as("JPEG", progressive=True),
    "full_chroma.jpg": _as("JPEG", quality=95, subsampling=0),
    "half_chroma.jpg": _as("JPEG", subsampling=1),
    "restarts.jpg": _as("JPEG", restart_marker_blocks=3),
    "optimized.jpg": _as("JPEG", optimize=True, quality=40),
    "rgb.jpg": _as("JPEG", keep_rgb=True),
    "gray.jpg": _as("JPEG", "L"),
    "progressive_gray.jpg": _as("JPEG", "L", progressive=True),
    "cmyk.jpg": _as("JPEG", "CMYK"),
    "progressive_cmyk.jpg": _as("JPEG", "CMYK", progressive=True),
    "ycck.jpg": _ycck,
    "phone.jpg": lambda image: encoded(image, "MPO", save_all=True, append_images=[image.resize((32, 32))]),
    "png.png": _as("PNG"),
    "stored.png": _as("PNG", compress_level=0),
    "interlaced.png": lambda image: png(image, interlaced=True),
    "deep.png": lambda image: png(image, deep=True),
    "gray.png": _as("PNG", "L"),
    "gray16.png": _as("PNG", _gray16),
    "bilevel.png": _as("PNG", "1"),
    "gray_alpha.png": _as("PNG", lambda image: _faded(image).convert("LA")),
    "alpha.png": _as("PNG", _faded),
    "palette.png": _as("PNG", _palette(200)),
    "palette4.png": _as("PNG", _palette(16), bits=4),
    "palette2.png": _as("PNG", _palette(4), bits=2),
    "palette_alpha.png": _as("PNG", _palette(64), transparency=3),
    "gif.gif": _as("GIF", _palette(200)),
    "sequential.gif": _as("GIF", _palette(100), interlace=0),
    "transparent.gif": _as("GIF", _palette(64), transparency=3),
    "gray.gif": _as("GIF", "L"),
    "webp.webp": _as("WEBP"),
    "lossless.webp": _as("WEBP", lossless=True),
    "alpha.webp": _as("WEBP", _faded),
    "lossless_alpha.webp": _as("WEBP", _faded, lossless=True),
    "tiff.tif": _as("TIFF"),
    "lzw.tif": _as("TIFF", compression="tiff_lzw"),
    "deflate.tif": _as("TIFF", compression="tiff_adobe_deflate"),
    "packbits.tif": _as("TIFF", compression="packbits"),
    "jpeg.tif": _as("TIFF", compression="jpeg"),
    "fax.tif": _as("TIFF", "1", compression="group4"),
    "big.tif": _as("TIFF", big_tiff=True),
    "gray16.tif": _as("TIFF", _gray16),
    "palette.tif": _as("TIFF", _palette(200)),
    "cmyk.tif": _as("TIFF", "CMYK"),
    "lab.tif": _as("TIFF", _lab),
    "alpha.tif": _as("TIFF", _faded),
    "motorola.tif": lambda image: tiff(image.size, [image.tobytes()], ">"),
    "planes.tif": _planes,
    "tiles.tif": _tiles,
    "bmp.bmp": _as("BMP"),
    "gray.bmp": _as("BMP", "L"),
    "bilevel.bmp": _as("BMP", "1"),
    "palette.bmp": _as("BMP", _palette(200)),
    "alpha.bmp": _as("BMP", _faded),
    "run_length.bmp": lambda image: bmp(image, kind="rle"),
    "high_color.bmp": lambda image: bmp(image, kind="565"),
    "top_down.bmp": lambda image: bmp(image, kind="top_down"),
    "os2.bmp": lambda image: bmp(image, kind="core"),
}
"""By file name. Width and height are multiples of 16, as tiles are."""
