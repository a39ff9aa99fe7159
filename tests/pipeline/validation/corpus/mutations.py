"""A seeded mutator: photographs in every format, damaged in every way. The same number gives the same bytes."""

import hashlib
import random
import re
import struct
from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import matplotlib
from PIL import Image

from tests.pipeline.validation.corpus.encodings import ENCODINGS

SIZE = (96, 64)  # pixels; one probe takes about two milliseconds
LONGEST = 2000  # bytes of a run that is lost, inserted or moved
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
LAYOUTS = ("B", "<H", ">H", "<I", ">I")

SKLEARN = Path(str(distribution("scikit-learn").locate_file("sklearn/datasets/images")))
MATPLOTLIB = Path(matplotlib.get_data_path()) / "sample_data"
PHOTOGRAPHS = (
    *(SKLEARN / name for name in ("china.jpg", "flower.jpg")),
    *(MATPLOTLIB / name for name in ("grace_hopper.jpg", "logo2.png", "Minduka_Present_Blue_Pack.png")),
)
WHOLE = PHOTOGRAPHS[2:]  # small enough to be mutated as their camera or program has written them

Mutate = Callable[[bytes, random.Random], bytes]

FIELDS = (
    (re.compile(rb"\xff[\xc0-\xfe]"), 2),  # JPEG: the length of a segment stands behind its marker
    (re.compile(rb"[A-Za-z]{3}[A-Z ]"), -4),  # PNG: that of a chunk before its name
    (re.compile(rb"VP8[ XL]|ALPH|EXIF|ICCP|RIFF"), 4),  # WebP: behind it
    (re.compile(rb"\x2c\0\0\0\0"), 5),  # GIF: the size of a frame
    (
        re.compile(rb"[\xfe\xff\0-\x45]\x01[\1-\5]\0|\x01[\xfe\xff\0-\x45]\0[\1-\5]"),
        4,
    ),  # TIFF: count and value of a tag
)


def mutation(seed: int) -> bytes:
    """One to three faults in one file; a few files stay as they are, since a splice may find its own original."""
    chance = random.Random(seed)
    data = _original(chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = chance.choice(MUTATORS)(data, chance)
    return data


def digest(count: int) -> str:
    """Of the first mutations."""
    return hashlib.sha256(b"".join(mutation(seed) for seed in range(count))).hexdigest()


@cache
def _photograph(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize(SIZE)


@cache
def _stored(path: Path, encoding: str | None) -> bytes:
    return ENCODINGS[encoding](_photograph(path)) if encoding else path.read_bytes()


def _original(chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        return _stored(chance.choice(WHOLE), None)
    return _stored(chance.choice(PHOTOGRAPHS), chance.choice(list(ENCODINGS)))


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    """Beginning and end of a run anywhere in the data; short ones are as likely as long ones."""
    length = min(int(LONGEST ** chance.random()), len(data))
    begin = chance.randint(0, len(data) - length)
    return begin, begin + length


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def zero_run(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + bytes(end - begin) + data[end:]


def randomize_run(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + chance.randbytes(end - begin) + data[end:]


def cut_tail(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randint(0, len(data))]


def cut_run(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + data[end:]


def insert(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:begin] + chance.randbytes(end - begin) + data[begin:]


def repeat_run(data: bytes, chance: random.Random) -> bytes:
    begin, end = _span(data, chance)
    return data[:end] + data[begin:end] * chance.choice((1, 1, 2, 20)) + data[end:]


def swap_blocks(data: bytes, chance: random.Random) -> bytes:
    first, second = sorted((_span(data, chance), _span(data, chance)))
    if first[1] > second[0]:
        return data
    between = data[first[1] : second[0]]
    return data[: first[0]] + data[slice(*second)] + between + data[slice(*first)] + data[second[1] :]


def splice(data: bytes, chance: random.Random) -> bytes:
    """The beginning of one file and the end of another, of any format."""
    other = _original(chance)
    return data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]


def edit_header(data: bytes, chance: random.Random) -> bytes:
    return _written(data, chance.randint(0, min(64, len(data))), chance)


def stretch_field(data: bytes, chance: random.Random) -> bytes:
    """An extreme number where a length, a count, a size or an offset stands."""
    places = [match.start() + behind for pattern, behind in FIELDS for match in pattern.finditer(data)]
    return _written(data, max(0, chance.choice(places)) if places else 0, chance)


def _written(data: bytes, position: int, chance: random.Random) -> bytes:
    layout = chance.choice(LAYOUTS)
    size = struct.calcsize(layout)
    number = chance.choice((*EXTREMES, len(data), chance.getrandbits(32))) & ((1 << 8 * size) - 1)
    return data[:position] + struct.pack(layout, number) + data[position + size :]


MUTATORS: tuple[Mutate, ...] = (
    flip_bits,
    zero_run,
    randomize_run,
    cut_tail,
    cut_run,
    insert,
    repeat_run,
    swap_blocks,
    splice,
    edit_header,
    edit_header,
    stretch_field,
    stretch_field,
)
