"""Make the sample of the demo from the full Fashion-MNIST, reproducibly.

    python -m pipeline.sample.make /usr/share/datasets/fashion-mnist     (Debian's package dataset-fashion-mnist)

Takes the first 800 training and 200 test images of each class that are not a pixel duplicate of an earlier one, and
writes them as PNG files in one archive: ``unlabeled/``, ``test/<class>/`` and a ``labels.csv`` that names the training
images' classes for evaluation.
"""

import gzip
import io
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ARCHIVE = Path(__file__).with_name("fashion-mnist-10k.tar.xz")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


def main(source: Path) -> None:
    seen: set[bytes] = set()
    labels = ["path,label\n"]
    members: list[tuple[str, bytes]] = []
    for number, name, pixels in _first_of_each_class(source, "train", 800, seen):
        path = f"unlabeled/{number:05d}.png"
        labels.append(f"{path},{name}\n")
        members.append((path, _png(pixels)))
    for number, name, pixels in _first_of_each_class(source, "t10k", 200, seen):
        members.append((f"test/{name}/{number:05d}.png", _png(pixels)))
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path, data in [("labels.csv", "".join(labels).encode()), *members]:
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    print(f"{len(members)} images, {ARCHIVE.stat().st_size / 1e6:.1f} MB in {ARCHIVE.name}")


def _first_of_each_class(
    source: Path, part: str, count: int, seen: set[bytes]
) -> Iterator[tuple[int, str, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]]:
    images = np.frombuffer(gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    taken: Counter[int] = Counter()
    for number, (pixels, label) in enumerate(zip(images.reshape(-1, 28, 28), labels, strict=True)):
        if taken[int(label)] < count and pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            taken[int(label)] += 1
            yield number, CLASSES[label], pixels


def _png(pixels: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return content.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
