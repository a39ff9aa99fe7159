"""The measurements of `benchmarks.deploy.encoder` that run inside one process.

python -m benchmarks.deploy.encoder_measurements onnxruntime|torch ENCODER_FOLDER THREADS     prints milliseconds
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import deploy
from benchmarks.deploy.random_encoders import TorchEncoder
from deploy.encoder import Encoder
from deploy.folders.folder import Options, embed_files, image_files
from deploy.images.inputs import map_ahead, read_pixels
from deploy.images.preprocess import canonicalize, open_image
from deploy.latency import latencies, photo

LATENCY_SECONDS = 3.0
BATCH_SIZE = 8


def p50(kind: str, directory: Path, threads: int) -> float:
    """Median milliseconds from the bytes of a JPEG file to its vector."""
    encoder: Encoder | TorchEncoder = (
        TorchEncoder(directory, threads) if kind == "torch" else deploy.load(directory / "bundle", threads=threads)
    )
    return 1000 * statistics.median(latencies(encoder.embed, photo(), LATENCY_SECONDS))


def folder_rates(bundle: Path, photos: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Images a second of decoding alone, inference alone, and files to a published directory, which take turns.

    ``of_both_alone``: decoding alone and inference alone, each on all threads, one after the other, over the folder's
    time; 1 means that no core was ever idle. ``of_split``: the slower of decoding and inference with half of the
    threads each, which is what two stages side by side could reach at best, over the folder's time.
    """
    encoder, files = deploy.load(bundle, threads=1), image_files([photos])
    half = max(1, threads // 2)
    seconds: dict[str, list[float]] = {}
    options = Options(batch_size=BATCH_SIZE, threads=threads)
    pixels = _decoded(encoder, files, threads)  # also warms up
    with tempfile.TemporaryDirectory() as out:
        measurements: dict[str, Callable[[str], object]] = {
            "decode": lambda _: _decoded(encoder, files, threads),
            "decode_half": lambda _: _decoded(encoder, files, half),
            "inference": lambda _: _inferred(encoder, pixels, threads),
            "inference_half": lambda _: _inferred(encoder, pixels, half),
            "folder": lambda turn: embed_files(encoder, files, Path(out, turn), options),
        }
        for turn in range(rounds):
            for name, measured in measurements.items():
                began = time.perf_counter()
                measured(str(turn))
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    both, split = [], []
    for decode, decode_half, inference, inference_half, folder in zip(*seconds.values(), strict=True):
        both.append((decode + inference) / folder)
        split.append(max(decode_half, inference_half) / folder)
    rates = {
        f"{name}_images_per_second": round(len(files) / statistics.median(taken)) for name, taken in seconds.items()
    }
    ratios = {"of_both_alone": round(statistics.median(both), 3), "of_split": round(statistics.median(split), 3)}
    return {"files": len(files), **rates, **ratios}


def _decoded(encoder: Encoder, files: list[str], threads: int) -> list[NDArray[np.uint8]]:
    preprocessing = encoder.bundle.preprocessing
    read = map_ahead(lambda file: read_pixels(file, preprocessing), files, threads, ahead=2 * BATCH_SIZE)
    return [pixels for pixels in read if isinstance(pixels, np.ndarray)]


def _inferred(encoder: Encoder, pixels: list[NDArray[np.uint8]], threads: int) -> None:
    batches = [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
    for _ in map_ahead(encoder.run, batches, threads, ahead=2 * threads):
        pass


def unusual_inputs(directory: Path) -> dict[str, Any]:
    """Cosine of the vector that deploy gives for a file, and that of the training path for what `prepare` stored.

    Prepare stores a canonical copy, here without loss, and torch computes the features of its pixels.
    """
    served, trained = deploy.load(directory / "bundle"), TorchEncoder(directory)
    cosines = {}
    for name, data in files_of_every_kind().items():
        stored = io.BytesIO()
        canonicalize(open_image(data))[0].save(stored, "PNG")
        cosines[name] = round(float(served.embed(data).vectors[0] @ trained.embed(stored.getvalue())[0]), 7)
    return {"cosine_min": min(cosines.values()), "cosines": cosines}


def files_of_every_kind() -> dict[str, bytes]:
    image = Image.open(io.BytesIO(photo())).convert("RGB").resize((320, 240))
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257 + 3)
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L").resize(image.size))
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "rgb_jpeg": (image, "JPEG", {}),
        "cmyk_jpeg": (image.convert("CMYK"), "JPEG", {}),
        "gray_jpeg": (image.convert("L"), "JPEG", {}),
        "gray16_png": (gray16, "PNG", {}),
        "gray16_tiff": (gray16, "TIFF", {}),
        "palette_png": (image.quantize(64), "PNG", {}),
        "palette_gif": (image.quantize(64), "GIF", {}),
        "palette_transparent_png": (image.quantize(64), "PNG", {"transparency": 3}),
        "alpha_png": (alpha, "PNG", {}),
        "alpha_webp": (alpha, "WEBP", {"lossless": True}),
        "gray_alpha_png": (alpha.convert("LA"), "PNG", {}),
        "bilevel_png": (image.convert("1"), "PNG", {}),
        "bmp": (image, "BMP", {}),
    }
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[274] = orientation
        kinds[f"exif_{orientation}_jpeg"] = (image, "JPEG", {"exif": exif})
    files = {}
    for name, (picture, kind, options) in kinds.items():
        content = io.BytesIO()
        picture.save(content, kind, **options)
        files[name] = content.getvalue()
    return files


if __name__ == "__main__":
    print(p50(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
