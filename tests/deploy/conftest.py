"""A bundle small enough to check by hand: the embedding is the mean color times a fixed matrix.

Also indexes of random vectors, and hand-made PNG files.
"""

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from deploy.artifact import publish
from deploy.bundle import FORMAT_VERSION, Bundle, Head, graph_promise, write_bundle
from deploy.images.preprocess import Preprocessing
from deploy.search.index import Index
from deploy.session import METADATA

SIZE, DIM, IMAGES = 8, 5, 3
LABELS = ("red", "green", "blue")
ENCODER = "a" * 64
MIXING = np.random.default_rng(7).normal(size=(3, DIM)).astype(np.float32)


def features_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute what the graph computes for one image: [size, size, 3] → [dim]."""
    mean: NDArray[np.float32] = pixels.reshape(-1, 3).mean(axis=0).astype(np.float32) / np.float32(255)
    return mean @ MIXING


def embedding_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    features = features_of(pixels)
    return features / np.linalg.norm(features)


def noise(seed: int, height: int = SIZE, width: int = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(pixels: NDArray[Any], format: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format, **options)
    return content.getvalue()


RGB = noise(0, 9, 13)


def png(
    depth: int, color_type: int, rows: NDArray[np.generic], extra: bytes = b"", size: tuple[int, int] = (0, 0)
) -> bytes:
    """Make a PNG by hand: Pillow cannot write 16-bit color. ``rows`` [height, ...] holds the big-endian samples."""
    width, height = size if any(size) else (rows.shape[1], rows.shape[0])
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    )


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def make_card(**changes: object) -> dict[str, Any]:
    card = {
        "format_version": FORMAT_VERSION,
        "name": "mean-color",
        "dim": DIM,
        "preprocessing": {"size": SIZE, "resize": SIZE + 2},
        "normalisation": {"mean": [0.0] * 3, "std": [1.0] * 3},
        "golden": {"tolerance": {"cosine_min": 0.9999, "max_abs": 1e-3}},
    }
    return card | changes


def make_model(
    card: dict[str, Any],
    mixing: NDArray[np.float32] = MIXING,
    input_size: int = SIZE,
    kind: int = TensorProto.UINT8,
    white: int = 255,
) -> onnx.ModelProto:
    """``white`` is the largest sample, and each row of ``mixing`` is for a channel."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "mixing"], ["features"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        onnx.numpy_helper.from_array(np.array(white, np.float32), "scale"),
        onnx.numpy_helper.from_array(mixing, "mixing"),
    ]
    shape = ["batch", input_size, input_size, len(mixing)]
    images = helper.make_tensor_value_info("images", kind, shape)
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", DIM])
    graph = helper.make_graph(nodes, "mean-color", [images], [features], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA: graph_promise(card)})
    return model


def make_bundle(card: dict[str, Any] | None = None, model: bytes | None = None, labels: bool = True) -> Bundle:
    card = card or make_card()
    preprocessing = Preprocessing(SIZE, SIZE + 2)
    golden = [noise(seed, 12 + seed, 20) for seed in range(IMAGES)]
    vectors = np.stack([embedding_of(preprocessing.apply(pixels)) for pixels in golden])
    head = Head(np.linalg.pinv(MIXING) * 50, np.zeros(3, np.float32), LABELS) if labels else None
    model = model or make_model(card).SerializeToString()
    return Bundle(card, model, head, tuple(encoded(pixels) for pixels in golden), vectors)


@pytest.fixture
def publish_bundle(tmp_path: Path) -> Callable[[Bundle], Path]:
    def publish_it(bundle: Bundle) -> Path:
        directory = tmp_path / "bundle"
        with publish(directory, replace=True) as work:
            write_bundle(work, bundle)
        return directory

    return publish_it


@pytest.fixture
def bundle(publish_bundle: Callable[[Bundle], Path]) -> Path:
    """A published bundle directory with a head that names the strongest color."""
    return publish_bundle(make_bundle())


def random_vectors(rows: int, dim: int = 7, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"{row}.jpg" for row in range(count)]


def build(vectors: NDArray[Any], **options: Any) -> Index:
    return Index.build(vectors, names(len(vectors)), ENCODER, **options)


def save_and_open(index: Index, directory: Path, **options: Any) -> Index:
    index.save(directory, **options)
    return Index.open(directory)


def rewrite(directory: Path, name: str, content: bytes | NDArray[Any]) -> None:
    """Replace a file of a published directory, and update the manifest."""
    files = {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "MANIFEST.sha256"}
    with publish(directory, replace=True) as work:
        for other, data in files.items():
            (work / other).write_bytes(data)
        if isinstance(content, bytes):
            (work / name).write_bytes(content)
        else:
            np.save(work / name, content)


def trials() -> list[psutil.Process]:
    """Return the children that try a candidate; a child of another test may end at any moment."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # or a zombie
            found += [child] if "deploy.candidate" in child.cmdline() else []
    return found
