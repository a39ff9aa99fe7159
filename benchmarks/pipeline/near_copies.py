"""Near copies in real collections: how many of the found pairs are copies, and how many of planted copies are found.

    apt-get download PACKAGE ... && for each: dpkg-deb -x PACKAGE.deb PACKAGES/PACKAGE
    python -m benchmarks.pipeline.near_copies PACKAGES --json benchmarks/results/FILE.json

Half an hour on two busy cores. The packages are Debian's, named in COLLECTIONS; those that are missing are left out.
Every picture is probed, and pairs are searched, as ``validate`` does it. Of SAMPLE pictures of each collection copies
are made by known CHANGES.

A found pair is right if one is a planted copy of the other, or if a person who looked at both called them one drawing;
all others count as wrong. Pairs are counted among the pictures as they are, and with one copy of each of the sample.
``recall`` is the share of the copies that are found, change by change, hashes and second look together.
"""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image, ImageDraw, ImageEnhance

from benchmarks import measure
from deploy.images.preprocess import canonicalize, open_image
from pipeline.validation.probe.probe import probe
from pipeline.validation.verdict.near_duplicates import near_pairs
from pipeline.validation.verdict.structure import confirm

SAMPLE = 60
LONGEST_SIDE = 500  # pixels of what is copied; larger ones are reduced first
DISTANCE = 3  # bits, the default of params.yaml
PATCH = (400, 300)  # pixels, of photographs
_HASHES = ("sha256", "phash", "dhash", "red_mean", "green_mean", "blue_mean")

Change = Callable[[Image.Image], bytes]


@dataclass(frozen=True)
class Collection:
    files: tuple[str, ...]  # globs below the package's folder
    same_name: bool = False  # files of one name are one drawing in several sizes
    same: tuple[tuple[str, str], ...] = ()  # names of files that a person called one drawing


COLLECTIONS = {
    "tuxpaint-stamps-default": Collection(("**/*.png",)),
    "gnome-icon-theme": Collection(("**/256x256/**/*.png",)),
    "iso-flags-png-320x240": Collection(("**/*.png",), same=(("fr", "bl"), ("mf", "sx"))),
    "fonts-noto-color-emoji": Collection(("**/*.ttf",)),
    "oxygen-icon-theme": Collection(
        ("**/256x256/**/*.png", "**/128x128/**/*.png"),
        same_name=True,
        same=(
            ("applications-education-school", "applications-education"),
            ("bookmarks", "favorites"),
            ("applications-education-preschool", "applications-toys"),
            ("kde", "start-here-kde"),
            ("applications-science", "applications-education-science"),
        ),
    ),
    "openclipart-png": Collection(
        ("**/*.png",),
        same_name=True,
        same=(
            ("cello_mo_02", "cello_mo_01"),
            ("source_java", "java"),
            ("peace_symbol_petri_lumme_01", "peace_symbol_transparen_01"),
            ("biohazard_01", "biohazard_symbol_01"),
            ("creation_day_7_number_ge_01", "creation_day_7_number_ge_04"),
            ("mime_empty", "empty"),
            ("mime_empty", "real"),
            ("empty", "real"),
            ("red_flower_03", "red_flower_01"),
            ("gnome-mime-application-x-svg", "gnome-mime-image-x-svg"),
            ("sweden", "_sweden__richard_torkar_01"),
            ("united_states", "united_states_daniel_mcr_01"),
        ),
    ),
    "moka-icon-theme": Collection(
        ("**/256x256/**/*.png",),
        same=(
            ("preferences-desktop-online-accounts", "applications-internet"),
            ("internet-news-reader", "application-rss+xml"),
            ("java", "applications-java"),
            ("system-help", "dialog-question"),
            ("fedora-utils", "fedorautils"),
            ("distributor-logo-linux-mint", "distributor-logo-linuxmint"),
            ("preferences-desktop-tweaks", "desktop-tweaks"),
        ),
    ),
    "ruby-gemojione": Collection(("**/assets/png/*.png",)),
}
PHOTOGRAPHS = ("mate-backgrounds", "**/nature/*.jpg")


def saved(format: str, **options: Any) -> Change:
    def change(image: Image.Image) -> bytes:
        content = io.BytesIO()
        image.save(content, format, **options)
        return content.getvalue()

    return change


def resized(scale: float, filter: Image.Resampling) -> Change:
    return lambda image: _png(image.resize((round(image.width * scale), round(image.height * scale)), filter))


def cropped(left: float, top: float, right: float, bottom: float) -> Change:
    def change(image: Image.Image) -> bytes:
        width, height = image.size
        across = (round(left * width), width - round(right * width))
        down = (round(top * height), height - round(bottom * height))
        return _png(image.crop((across[0], down[0], across[1], down[1])))

    return change


def watermarked(image: Image.Image) -> bytes:
    marked = image.copy()
    place = (image.width // 2, image.height * 7 // 8)
    ImageDraw.Draw(marked, "RGBA").text(
        place, "(c) 2026", fill=(255, 255, 255, 140), font_size=max(8, image.height // 14)
    )
    return _png(marked)


def _png(image: Image.Image) -> bytes:
    return saved("PNG", compress_level=1)(image)


CHANGES: dict[str, Change] = {
    "JPEG, quality 90": saved("JPEG", quality=90),
    "JPEG, quality 75": saved("JPEG", quality=75),
    "JPEG, quality 50": saved("JPEG", quality=50),
    "WebP, quality 80": saved("WEBP", quality=80),
    "64 colors, as in a GIF": lambda image: _png(image.quantize(64).convert("RGB")),
    "half the size": resized(0.5, Image.Resampling.LANCZOS),
    "3/4 of the size": resized(0.75, Image.Resampling.BICUBIC),
    "1.5 times the size": resized(1.5, Image.Resampling.BILINEAR),
    "1 % cut off on all sides": cropped(0.01, 0.01, 0.01, 0.01),
    "2 % cut off on the right": cropped(0, 0, 0.02, 0),
}
PHOTOGRAPH_CHANGES: dict[str, Change] = CHANGES | {
    "10 % brighter": lambda image: _png(image.point(lambda level: level * 1.1)),
    "10 % darker": lambda image: _png(image.point(lambda level: level * 0.9)),
    "15 % more contrast": lambda image: _png(ImageEnhance.Contrast(image).enhance(1.15)),
    "gray": lambda image: _png(image.convert("L").convert("RGB")),
    "a watermark": watermarked,
}


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("packages", type=Path, help="folder of unpacked packages")
    chosen = options.parse_args()
    results = measure.header("near copies", "pillow", "numpy")
    results["collections"] = {}
    for name in (*COLLECTIONS, PHOTOGRAPHS[0]):
        folder, collection = chosen.packages / name, COLLECTIONS.get(name)
        if not folder.is_dir():
            continue
        if collection:
            found = judged(dict(read(folder, collection)), CHANGES, collection)
        else:
            found = judged(dict(photographs(folder)), PHOTOGRAPH_CHANGES, Collection(()))
        results["collections"][name] = found
        print(name, found, flush=True)
        measure.write(results, chosen.json)


def read(folder: Path, collection: Collection) -> Iterable[tuple[str, bytes]]:
    """Name and content of each file, of a font each bitmap; files with the bytes of an earlier one are left out."""
    files = sorted({file for glob in collection.files for file in folder.glob(glob) if not file.is_symlink()})
    if files and files[0].suffix == ".ttf":
        from fontTools.ttLib import TTFont  # a dependency of matplotlib

        strike = TTFont(files[0])["CBDT"].strikeData[0]
        return [(name, glyph.imageData) for name, glyph in strike.items() if hasattr(glyph, "imageData")]
    return [(str(file.relative_to(folder)), file.read_bytes()) for file in files]


def photographs(folder: Path) -> Iterable[tuple[str, bytes]]:
    """Parts of photographs that overlap in nothing."""
    width, height = PATCH
    for file in sorted(folder.glob(PHOTOGRAPHS[1])):
        image = Image.open(file).convert("RGB")
        image.thumbnail((1600, 1600))
        for top in range(0, image.height - height + 1, height):
            for left in range(0, image.width - width + 1, width):
                yield f"{file.stem}/{left},{top}", _png(image.crop((left, top, left + width, top + height)))


def judged(contents: Mapping[str, bytes], changes: Mapping[str, Change], collection: Collection) -> dict[str, Any]:
    """Precision and recall of the near-copy search on pictures whose copies are known.

    Args:
        contents: bytes by name.
    """
    originals = comparable({name: probe(data) for name, data in contents.items()})
    names = sorted(originals["name"])
    copied = random.Random(0).sample(names, min(SAMPLE, len(names)))
    kinds = list(changes)
    planted: list[pl.DataFrame] = []
    total, found = Counter[str](), Counter[str]()
    for number, name in enumerate(copied):
        image, _ = canonicalize(open_image(contents[name], 100_000_000))
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        before = comparable({name: probe(_png(image))})
        if before.is_empty():
            continue
        copies = {kind: comparable({name: probe(change(image))}) for kind, change in changes.items()}
        others = {kind: copy for kind, copy in copies.items() if not copy["pixel_hash"].equals(before["pixel_hash"])}
        total.update(others.keys())
        found.update(kind for kind, copy in others.items() if search(pl.concat([before, copy])))
        planted.append(copies[kinds[number % len(kinds)]])
    as_is, with_copies = search(originals), search(pl.concat([originals, *planted]))
    return {
        "pictures": originals.height,
        "pairs": len(as_is),
        "right": sum(are_one(*pair, collection) for pair in as_is),
        "pairs_with_copies": len(with_copies),
        "right_with_copies": sum(are_one(*pair, collection) for pair in with_copies),
        "recall": {kind: round(found[kind] / total[kind], 2) for kind in kinds if total[kind]},
    }


def comparable(probed: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """One row for each different picture that the search compares: its name, size and what it is compared by."""
    rows = [{"name": name, **facts} for name, facts in probed.items() if facts["decodes"] and facts["hash_trusted"]]
    columns = ("name", *_HASHES, "sketch", "entropy", "luma_std", "width", "height", "pixel_hash")
    table = pl.DataFrame([{column: row[column] for column in columns} for row in rows], SCHEMA)
    return table.unique("pixel_hash", maintain_order=True)


def search(pictures: pl.DataFrame) -> list[tuple[str, str]]:
    """Names of the pictures that nearly look alike, pair by pair."""
    pictures = pictures.unique("sha256", maintain_order=True)
    pairs, _ = near_pairs(pictures.select(*_HASHES, aspect=pl.col("width") / pl.col("height")), DISTANCE)
    names = dict(pictures.select("sha256", "name").rows())
    confirmed = confirm(pairs, pictures.select("sha256", "sketch", "entropy", "luma_std"))
    return [(names[one], names[other]) for one, other in confirmed.select("first", "second").rows()]


def are_one(one: str, other: str, collection: Collection) -> bool:
    """Whether two pictures are one drawing, as far as a person has said."""
    if one == other:
        return True  # a copy that was planted
    names = {Path(one).stem, Path(other).stem}
    same_file = collection.same_name and len(names) == 1
    return same_file or any(names == set(pair) for pair in collection.same)


SCHEMA = pl.Schema(
    {
        "name": pl.String(),
        "sha256": pl.String(),
        "phash": pl.UInt64(),
        "dhash": pl.UInt64(),
        **dict.fromkeys(("red_mean", "green_mean", "blue_mean"), pl.Float64()),
        "sketch": pl.String(),
        "entropy": pl.Float64(),
        "luma_std": pl.Float64(),
        "width": pl.Int32(),
        "height": pl.Int32(),
        "pixel_hash": pl.String(),
    }
)


if __name__ == "__main__":
    main()
