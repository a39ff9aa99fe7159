"""Folders as people have them, drawn small: what each holds, and what a sensible proposal for it is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

RANDOM = np.random.default_rng(7)


class Expected(NamedTuple):
    """``sides`` are the lowest and highest sensible resolution, in pixels."""

    recipe: str
    sides: tuple[int, int]
    keys: Mapping[str, object] = MappingProxyType({})
    note: str = ""


def photograph(width: int, height: int, detail: float = 0.2) -> Image.Image:
    """A colored scene: smooth at large scale, with some fine texture."""
    coarse = RANDOM.integers(0, 255, (5, 7, 3)).astype(np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    noise = RANDOM.normal(0, 255 * detail, (height // 2 + 1, width // 2 + 1, 1))
    fine = np.repeat(np.repeat(noise, 2, 0), 2, 1)[:height, :width]
    return Image.fromarray((scene + fine).clip(0, 255).astype(np.uint8))


def gray(image: Image.Image) -> Image.Image:
    return image.convert("L")


def drawing(side: int) -> Image.Image:
    """Flat color on a transparent ground."""
    image = np.zeros((side, side, 4), np.uint8)
    top, left = RANDOM.integers(0, side // 2, 2)
    image[top : top + side // 2, left : left + side // 2] = [*RANDOM.integers(0, 255, 3), 255]
    return Image.fromarray(image)


def part(side: int, scratch: bool) -> Image.Image:
    """A gray disk, always in the same place; a defect is a line of one pixel."""
    y, x = np.mgrid[:side, :side]
    disk = np.where(np.hypot(x - side / 2, y - side / 2) < side * 0.4, 170.0, 40.0)
    pixels = disk + RANDOM.normal(0, 4, (side, side))
    if scratch:
        row = int(RANDOM.integers(side // 3, side // 2))
        pixels[row, side // 3 : side // 2] -= 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def deep(side: int) -> Image.Image:
    """A microscope picture with 16 bits a pixel, of another field each time."""
    cells = gray(photograph(side, side, 0.1))
    return Image.fromarray(np.asarray(cells, np.uint16) * 201 + 3)


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def fill(folder: Path, pattern: str, count: int, make: Callable[[], Image.Image]) -> None:
    """``pattern`` has the number of the image at its ``{}``."""
    for number in range(count):
        save(folder / pattern.format(number), make())


def write(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


Folder = Callable[[Path], None]
CASES: dict[str, tuple[Folder, Expected]] = {}


def case(expected: Expected) -> Callable[[Folder], Folder]:
    """Decorator: the folder that this function fills is to be proposed for so."""

    def register(make: Folder) -> Folder:
        CASES[make.__name__] = make, expected
        return make

    return register


@case(Expected("photos-small", (48, 96)))
def photographs(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def nested_by_date(folder: Path) -> None:
    fill(folder, "2026/11/{}.jpg", 40, lambda: photograph(240, 180))
    fill(folder, "2025/02/{}.jpg", 40, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96), {"ingest.class_folders": True, "ingest.hold_out": 0.25}))
def a_folder_for_each_class(folder: Path) -> None:
    for name in ("cats", "dogs", "birds", "fish"):
        fill(folder, name + "/{}.jpg", 20, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96), {"ingest.hold_out": 0.25}))
def labeled_without_a_test_set(folder: Path) -> None:
    for name in ("cats", "dogs"):
        fill(folder, f"labeled/{name}" + "/{}.jpg", 40, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def labeled_and_tested(folder: Path) -> None:
    for name in ("cats", "dogs"):
        fill(folder, f"labeled/{name}" + "/{}.jpg", 40, lambda: photograph(240, 180))
        fill(folder, f"test/{name}" + "/{}.jpg", 10, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96), note="label images of another class"))
def one_class_only(folder: Path) -> None:
    fill(folder, "labeled/cats/{}.jpg", 70, lambda: photograph(240, 180))
    fill(folder, "test/cats/{}.jpg", 10, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96), note="test images are labeled 'fish', and no training image is"))
def a_class_that_only_the_test_set_has(folder: Path) -> None:
    for name in ("cats", "dogs"):
        fill(folder, f"labeled/{name}" + "/{}.jpg", 40, lambda: photograph(240, 180))
        fill(folder, f"test/{name}" + "/{}.jpg", 5, lambda: photograph(240, 180))
    fill(folder, "test/fish/{}.jpg", 5, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def image_net_style(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            fill(folder, f"{split}/{name}" + "/{}.jpg", 40 if split == "train" else 8, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def videos_and_notes_among_images(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    for number in range(60):
        write(folder / f"clip{number}.mp4", b"\0\0\0\x18ftypmp42")
        write(folder / f"note{number}.docx", b"PK\x03\x04")


@case(Expected("photos-small", (48, 96)))
def files_without_a_suffix(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    for path in list(folder.iterdir()):
        path.rename(path.with_suffix(""))


@case(Expected("photos-small", (48, 96), note="cannot be decoded"))
def a_tenth_is_damaged(folder: Path) -> None:
    fill(folder, "{}.jpg", 90, lambda: photograph(240, 180))
    for path in sorted(folder.iterdir())[:9]:
        path.write_bytes(path.read_bytes()[:300])


@case(Expected("photos-small", (48, 96), note="nearly a copy"))
def every_picture_twice(folder: Path) -> None:
    for number in range(50):
        image = photograph(240, 180)
        save(folder / f"{number}.jpg", image)
        image.save(folder / f"{number}-small.jpg", quality=60)


@case(
    Expected(
        "photos-small",
        (28, 96),
        {"validate.max_megapixels": 178},
        note="only 3 training images, and validate.min_images needs 64",
    )
)
def scans_of_nine_thousand_pixels(folder: Path) -> None:
    fill(folder, "detail {}.png", 2, lambda: photograph(300, 300))
    save(folder / "whole.png", photograph(60, 60).resize((9_000, 9_000), Image.Resampling.NEAREST))


@case(Expected("photos-small", (48, 96), note="only 5 training images, and validate.min_images needs 64"))
def five_images(folder: Path) -> None:
    fill(folder, "{}.jpg", 5, lambda: photograph(240, 180))


@case(Expected("cpu-small", (28, 32)))
def tiny_gray_images(folder: Path) -> None:
    fill(folder, "{}.png", 300, lambda: gray(photograph(28, 28)))


@case(Expected("cpu-small", (28, 32)))
def tiny_color_images(folder: Path) -> None:
    fill(folder, "{}.png", 300, lambda: photograph(32, 32))


@case(Expected("icons-transparent", (28, 64)))
def icons(folder: Path) -> None:
    fill(folder, "{}.png", 200, lambda: drawing(64))


@case(Expected("icons-transparent", (28, 96), {"ingest.class_folders": True}))
def icons_in_classes_with_sounds(folder: Path) -> None:
    for name in ("animals", "food", "town"):
        fill(folder, name + "/{}.png", 30, lambda: drawing(120))
        for number in range(100):
            write(folder / name / f"{number}.ogg", b"OggS")


@case(Expected("inspection", (64, 96)))
def parts_with_scratches(folder: Path) -> None:
    fill(folder, "ok{}.png", 80, lambda: part(200, False))
    fill(folder, "bad{}.png", 40, lambda: part(200, True))


@case(Expected("inspection", (64, 96), {"ingest.class_folders": True}))
def parts_in_good_and_bad(folder: Path) -> None:
    fill(folder, "good/{}.png", 80, lambda: part(200, False))
    fill(folder, "bad/{}.png", 40, lambda: part(200, True))


@case(Expected("microscopy-medical", (48, 96), {"prepare.channels": 1}))
def sixteen_bit_microscopy(folder: Path) -> None:
    fill(folder, "{}.png", 80, lambda: deep(160))


@case(Expected("photos-small", (48, 96), note="more than 8 bits"))
def sixteen_bit_gray_among_colors(folder: Path) -> None:
    fill(folder, "{}.png", 10, lambda: deep(160))
    fill(folder, "{}.jpg", 70, lambda: photograph(240, 180))


def multispectral(side: int) -> np.ndarray:
    """Five channels of 16 bits, which use a part of their range."""
    return np.dstack([np.asarray(deep(side)) // (8 * number) for number in range(1, 6)])


@case(Expected("microscopy-medical", (48, 96), {"prepare.channels": 5}))
def multispectral_tiffs(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(80):
        tifffile.imwrite(folder / f"{number}.tif", multispectral(160), photometric="minisblack", planarconfig="contig")


@case(Expected("microscopy-medical", (48, 96), {"prepare.channels": 5}))
def arrays_with_channels_first(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(80):
        np.save(folder / f"{number}.npy", np.moveaxis(multispectral(160), 2, 0))


@case(Expected("photos-small", (48, 96)))
def photographs_with_masks_as_arrays(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    for number in range(20):
        np.save(folder / f"mask {number}.npy", np.zeros((180, 240), np.uint8))


@case(Expected("photos-small", (48, 96), {"pretrain.augmentation.grayscale": 0.0}))
def gray_photographs(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: gray(photograph(240, 180)))


@case(Expected("photos-small", (48, 96)))
def panoramas(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(600, 120))


@case(Expected("photos-small", (28, 64)))
def thumbnails_of_sixty_pixels(folder: Path) -> None:
    fill(folder, "{}.jpg", 200, lambda: photograph(80, 60))


@case(Expected("photos-small", (28, 32)))
def blurred_pictures_lose_nothing_at_a_low_resolution(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180, 0.0))


@case(Expected("photos-small", (48, 96)))
def all_sizes(folder: Path) -> None:
    for side in (50, 100, 200, 300):
        fill(folder, f"{side}-" + "{}.jpg", 25, lambda side=side: photograph(side + 20, side))  # type: ignore[misc]


@case(Expected("photos-small", (48, 96)))
def camera_folders_are_not_classes(folder: Path) -> None:
    for name in ("100CANON", "101CANON", "DCIM"):
        fill(folder, name + "/{}.jpg", 30, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def batches_are_not_classes(folder: Path) -> None:
    for name in ("batch_1", "batch_2", "part-3"):
        fill(folder, name + "/{}.jpg", 30, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def most_images_lie_outside_the_folders(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    fill(folder, "best/{}.jpg", 5, lambda: photograph(240, 180))
    fill(folder, "other/{}.jpg", 5, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def a_table_of_labels(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    rows = [
        f"{number}.jpg,{'cat' if number % 2 else 'dog'},{'test' if number > 60 else 'train'}" for number in range(80)
    ]
    write(folder / "labels.csv", ("path,label,split\n" + "\n".join(rows) + "\n").encode())


@case(Expected("photos-small", (48, 96)))
def hidden_files_and_leftovers(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    fill(folder, ".thumbnails/{}.png", 80, lambda: drawing(64))
    write(folder / "Thumbs.db")


@case(Expected("photos-small", (48, 96)))
def phone_pictures_on_their_side(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    for number in range(80):
        path = folder / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(240, 180).save(path, exif=exif)


@case(Expected("photos-small", (48, 96)))
def an_inbox(folder: Path) -> None:
    fill(folder, "unlabeled/{}.jpg", 60, lambda: photograph(240, 180))
    for name in ("cats", "dogs"):
        fill(folder, f"labeled/{name}" + "/{}.jpg", 12, lambda: photograph(240, 180))
        fill(folder, f"test/{name}" + "/{}.jpg", 12, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def printers_colors(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180).convert("CMYK"))


@case(Expected("photos-small", (48, 96)))
def palettes(folder: Path) -> None:
    fill(folder, "{}.gif", 80, lambda: photograph(240, 180).convert("P"))


@case(Expected("photos-small", (48, 96)))
def a_few_transparent_ones_among_photographs(folder: Path) -> None:
    fill(folder, "{}.jpg", 80, lambda: photograph(240, 180))
    fill(folder, "logo{}.png", 10, lambda: drawing(64))


@case(Expected("photos-small", (48, 96)))
def names_in_other_scripts(folder: Path) -> None:
    fill(folder, "Фото {}.jpg", 40, lambda: photograph(240, 180))
    fill(folder, "写真 {}.jpg", 40, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96), {"ingest.class_folders": True}))
def classes_in_other_scripts(folder: Path) -> None:
    for name in ("кошки", "犬"):
        fill(folder, name + "/{}.jpg", 40, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def a_single_folder(folder: Path) -> None:
    fill(folder, "images/{}.jpg", 80, lambda: photograph(240, 180))


@case(Expected("photos-small", (48, 96)))
def a_folder_for_each_image(folder: Path) -> None:
    fill(folder, "case {}/image.jpg", 80, lambda: photograph(240, 180))
