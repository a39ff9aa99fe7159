"""Files damaged in one region, as a disk or a network does it, or as a whole, as programs do it."""

from collections.abc import Callable, Iterator

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.pipeline.validation.corpus.corpus import Example, flipped, picture
from tests.pipeline.validation.corpus.encodings import ENCODINGS, Encode, encoded
from tests.pipeline.validation.corpus.regions import REGIONS, UNSEEN

RUN = 40  # bytes that a fault of the disk or the network zeroes


def damaged_files() -> Iterator[Example]:
    """Each with separate pixels, so that none is a duplicate."""
    seed = 1000
    for subject, encode in SUBJECTS.items():
        stem, _, extension = subject.rpartition(".")
        find = REGIONS[extension]
        for number in range(len(find(encode(picture(seed))))):
            for damage in DAMAGES:
                seed += 1
                data = encode(picture(seed))
                region = find(data)[number]
                damaged = DAMAGES[damage](data, region.offset)
                if damaged != data:
                    name = f"{stem}_{region.name}_{damage}.{extension}"
                    yield Example(name, damaged, getattr(region, damage))
        for damage, (function, expected) in WHOLE.items():
            seed += 1
            yield Example(
                f"{stem}_{damage}.{extension}",
                function(encode(picture(seed))),
                expected.get(subject, expected[extension]),
            )


def zeroed(data: bytes, position: int) -> bytes:
    run = min(RUN, len(data) - position)
    return data[:position] + bytes(run) + data[position + run :]


def cut(data: bytes, position: int) -> bytes:
    return data[:position]


DAMAGES = {"flipped": flipped, "zeroed": zeroed, "cut": cut}


def _half_zero(data: bytes) -> bytes:
    return cut(data, len(data) // 2).ljust(len(data), b"\0")


def _holed(data: bytes) -> bytes:
    return data[: len(data) // 3] + data[2 * len(data) // 3 :]


def _stuttering(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 - 300 :]


BMP_SHIFTED = "accepted corrupt"  # every pixel from there on is another one's
WHOLE: dict[str, tuple[Callable[[bytes], bytes], dict[str, str]]] = {
    "sent_as_text": (
        lambda data: data.replace(b"\n", b"\r\n"),
        {
            "jpg": "suspect_stream corrupt",
            "png": "not_an_image",
            "gif": "corrupt truncated",
            "webp": "bomb corrupt truncated",
            "tif": "corrupt truncated",
            "raw.tif": UNSEEN,
            "bmp": BMP_SHIFTED,
        },
    ),
    "decoded_as_utf8": (
        lambda data: data.decode("utf-8", "replace").encode(),
        {
            "jpg": "not_an_image",
            "png": "not_an_image",
            "gif": "corrupt truncated bomb",
            "webp": "not_an_image corrupt truncated",
            "tif": "corrupt truncated",
            "bmp": BMP_SHIFTED,
        },
    ),
    "half_zero": (  # an interrupted download into a file that was given its full length
        _half_zero,
        {
            "jpg": "suspect_stream truncated",
            "png": "corrupt",
            "gif": "corrupt truncated",
            "webp": "corrupt",
            "tif": "corrupt truncated",
            "raw.tif": UNSEEN,
            "bmp": UNSEEN,
        },
    ),
    "holed": (
        _holed,
        {
            "jpg": "suspect_stream corrupt",
            "png": "corrupt truncated",
            "gif": "corrupt truncated",
            "webp": "truncated",
            "tif": "truncated",
            "bmp": "truncated",
        },
    ),
    "stuttering": (
        _stuttering,
        {
            "jpg": "suspect_stream corrupt",
            "png": "corrupt",
            "gif": "corrupt truncated",
            "webp": "corrupt",
            "tif": "corrupt truncated",
            "raw.tif": UNSEEN,
            "bmp": UNSEEN,
        },
    ),
    "all_zero": (
        lambda data: bytes(len(data)),
        dict.fromkeys(("jpg", "png", "gif", "webp", "tif", "bmp"), "not_an_image"),
    ),
}


def _exif() -> Image.Exif:
    block = Image.Exif()
    block[271] = "a camera whose name is long enough to be damaged in several places"
    return block


def _text() -> PngInfo:
    text = PngInfo()
    text.add_text("Comment", "taken by a camera whose name is long enough to be damaged")
    return text


def _jpeg(**options: int) -> Encode:
    return lambda image: encoded(image, "JPEG", exif=_exif(), quality=90, **options)


def _tiff(compression: str) -> Encode:
    return lambda image: encoded(image, "TIFF", description="d" * 60, compression=compression)


SUBJECTS: dict[str, Encode] = {
    "baseline.jpg": _jpeg(),
    "progressive.jpg": _jpeg(progressive=True),
    "restarts.jpg": _jpeg(restart_marker_blocks=3),
    "cmyk.jpg": lambda image: _jpeg()(image.convert("CMYK")),
    "rgb.png": lambda image: encoded(image, "PNG", pnginfo=_text()),
    "palette.png": lambda image: encoded(image.quantize(200), "PNG", pnginfo=_text()),
    "palette.gif": lambda image: encoded(image.quantize(200), "GIF", comment=b"drawn by hand " * 10),
    "lossy.webp": lambda image: encoded(image, "WEBP", exif=_exif()),
    "lossless.webp": lambda image: encoded(image, "WEBP", exif=_exif(), lossless=True),
    "alpha.webp": lambda image: encoded(image.convert("RGBA"), "WEBP", exif=_exif()),
    "raw.tif": _tiff("raw"),
    "lzw.tif": _tiff("tiff_lzw"),
    "deflate.tif": _tiff("tiff_adobe_deflate"),
    "rgb.bmp": ENCODINGS["bmp.bmp"],
    "palette.bmp": ENCODINGS["palette.bmp"],
}
