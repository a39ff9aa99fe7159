"""From the trained encoder to the bundle that `deploy` serves: ONNX, head, golden images, provenance, and a gate.

    python -m simclr_core export        in a workspace; writes models/bundle and reports/export.json

The bundle is published only when onnxruntime, fed with the files of real test images, gives the embeddings that torch
gives; a smaller variant goes with it only when it loses next to nothing (``variants``). Its bytes depend on the inputs,
the installed versions and the processor alone.
"""

import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deploy.artifact import identity, publish
from deploy.bundle import FORMAT_VERSION, FP32, MULTI_LABEL_VERSION, Bundle, graph_promise, model_file, write_bundle
from deploy.encoder import Encoder, Fidelity, compare, l2_normalize
from deploy.images.full_depth import resize_samples
from deploy.images.npy import array_bytes, stored_samples
from deploy.images.preprocess import decode
from deploy.session import METADATA
from simclr_core import reports
from simclr_core.config import ExportConfig
from simclr_core.data.golden import GOLDEN_IMAGES, PARITY_IMAGES, parity_positions
from simclr_core.data.shards import ShardedImages
from simclr_core.errors import DatasetError, ParityError
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.served_accuracy import (
    LabeledImages,
    accuracies,
    ask,
    classifier_results,
    served_features,
)
from simclr_core.export.latency import latencies
from simclr_core.export.model_card import license_note, model_card
from simclr_core.export.onnx_graph import ServedEncoder, export_graph
from simclr_core.export.sbom import bill_of_materials
from simclr_core.export.served_pixels import compare_served
from simclr_core.export.trained import Trained, calibrate_head, choose_model
from simclr_core.export.variants import Variants, build_variants, calibration_pixels
from simclr_core.model.model_directory import Model
from simclr_core.params import read_block
from simclr_core.reporter import emit, record_timing
from simclr_core.reports import ClassifierResults, ExportReport, NoResults, ServedAccuracy, VariantReport

COSINE_MIN, MAX_ABS = 0.99999, 1e-4
"""The gate, on embeddings of length 1. A correct graph stays within 3e-7; a wrong mean or resize gives over 1e-3."""

GOLDEN_TOLERANCE = {"cosine_min": 0.9999, "max_abs": 1e-3}
"""Wider than the gate, for the processors and library versions that users have."""

PARITY_BATCHES = (1, 3, 17, PARITY_IMAGES)
GOLDEN_SIDE = 128
LATENCY_RUNS = 100
PRODUCERS = ("simclr-pipeline", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "pillow", "numpy")


def run(workspace: Path) -> None:
    """Export the encoder that ``params.yaml`` names.

    Raises:
        SimclrError: ConfigError, CheckpointError, DatasetError, or ParityError, and no bundle was written.
        ImageError: an image of the parity check cannot be decoded.
    """
    began = time.perf_counter()
    config = read_block(workspace / "params.yaml", "export", ExportConfig)
    prepared = workspace / "data" / "prepared"
    emit("start", stage="export", message=f"exporting the {config.source} encoder")
    trained = choose_model(workspace, config.source)
    pictures = parity_pictures(prepared)
    bundle = build_bundle(trained, pictures[:GOLDEN_IMAGES], config.name, config.license, config.opset)
    encoder = Encoder(bundle)
    parity = check_parity(encoder, trained.model, pictures)
    encoder.verify()
    images = LabeledImages.of(prepared)
    features = served_features(encoder, images)
    bundle = replace(bundle, head=calibrate_head(trained, features, images))
    answers = ask(features, images, bundle.head)
    reference = accuracies(answers, images.sets)
    calibration = calibration_pixels(prepared, bundle.preprocessing)
    variants = build_variants(bundle, config.variants, calibration, pictures, images, answers, config.max_loss)
    results = classifier_results(features, images, bundle.head)
    bundle = complete(bundle, reference, results, variants)
    directory = workspace / "models" / "bundle"
    with publish(directory, replace=True) as work:
        write_bundle(work, bundle)
    bundle_id = identity(directory)
    report = ExportReport(
        images=parity.images,
        cosine_min=round(parity.cosine_min, 9),
        max_abs=float(f"{parity.max_abs:.3g}"),
        passed=True,
        bundle=bundle_id,
        source=trained.directory.relative_to(workspace).as_posix(),
        megabytes=round(len(bundle.model) / 1e6, 3),
        variants={FP32: reference, **variants.facts},
        left_out=variants.left_out,
        results=results,
        served=compare_served(lambda images: encoder.embed(images).vectors, prepared),
    )
    reports.write(workspace, report)
    latency = single_image_latency(encoder, pictures)
    faster = {f"{name}_times_faster": times_faster(bundle, name, pictures) for name in bundle.variants}
    record_timing("export", workspace=workspace, seconds=time.perf_counter() - began, p50_ms=latency * 1000, **faster)
    left_out = "".join(f"; {name} left out: {reason}" for name, reason in variants.left_out.items())
    emit("end", stage="export", message=f"bundle {bundle_id[:12]}, largest difference {parity.max_abs:.1e}{left_out}")


def parity_pictures(prepared: Path) -> list[bytes]:
    """Encoded images of ``parity_positions``.

    Where there are fewer than 64 in all, these are all of them: the gate ``onnx_parity`` says how much that proves.

    Raises:
        DatasetError: there are none.
    """
    splits = {split: ShardedImages(prepared / split) for split in ("test", "train")}
    chosen = parity_positions(*map(len, splits.values()))
    if not chosen:
        raise DatasetError(f"{prepared}: no images to compare onnxruntime with PyTorch on; ingest some")
    return [splits[split].read(position) for split, position in chosen]


def build_bundle(trained: Trained, golden: list[bytes], name: str, license: str, opset: int) -> Bundle:
    """The encoder that is served, in float32, with its golden images: ``golden`` are encoded images."""
    card = trained.model.card
    served = ServedEncoder(trained.model.encoder, card["mean"], card["std"])
    preprocessing = trained.model.preprocessing
    golden_images = tuple(_small_array(one) if preprocessing.channels else _small_png(one) for one in golden)
    golden_vectors = reference_embeddings(trained.model, golden_images)
    labels = trained.head.labels if trained.head else ()
    several = bool(trained.head and trained.head.multi_label)
    contents = {
        "format_version": MULTI_LABEL_VERSION if several else FORMAT_VERSION,
        "name": name,
        "license": license,
        "dim": golden_vectors.shape[1],
        "classes": len(labels),
        **({"multi_label": True} if several else {}),
        "encoder": card["encoder"],
        "head_layers": card.get("head_layers", 0),
        "preprocessing": card["preprocessing"],
        "normalisation": {"mean": card["mean"], "std": card["std"]},
        "golden": {"images": len(golden_images), "tolerance": GOLDEN_TOLERANCE},
        "parity": {"cosine_min": COSINE_MIN, "max_abs": MAX_ABS},
        "metrics": trained.metrics,
        "provenance": {
            "kind": card["kind"],
            "model": identity(trained.directory),
            "data_digest": card["data_digest"],
            "trained_by": card.get("producer"),
            "init": card.get("init", "scratch"),
        },
        "producer": {package: version(package) for package in PRODUCERS} | {"opset": opset},
    }
    pixels = torch.uint16 if preprocessing.channels else torch.uint8
    graph = export_graph(served, preprocessing.size, opset, {METADATA: graph_promise(contents)}, pixels)
    return Bundle(contents, graph, trained.head, golden_images, golden_vectors)


def complete(
    bundle: Bundle, reference: ServedAccuracy, results: ClassifierResults | NoResults, variants: Variants
) -> Bundle:
    """The bundle with its variants, and with the texts and the bill of materials that name them."""
    measured: dict[str, VariantReport | ServedAccuracy] = {FP32: reference, **variants.facts}
    card = {
        **bundle.card,
        "variants": {name: asdict(one) for name, one in measured.items()},
        "left_out": variants.left_out,
        "results": asdict(results),
    }
    labels = bundle.head.labels if bundle.head else ()
    models = {model_file(name): bundle.model if name == FP32 else variants.passed[name].model for name in measured}
    documents = {
        "MODEL_CARD.md": model_card(card, labels, measured, results),
        "LICENSE.txt": license_note(card["name"], card["license"]),
        "sbom.cdx.json": bill_of_materials(card, models, measured),
    }
    return replace(bundle, card=card, variants=variants.passed, documents=documents)


def times_faster(bundle: Bundle, variant: str, pictures: Sequence[bytes]) -> float:
    """Than fp32, from the bytes of one image file to its embedding, in turns and on one thread."""
    encoders = [Encoder(bundle, threads=1, variant=name) for name in (FP32, variant)]
    exact, fast = latencies(encoders, pictures, LATENCY_RUNS // 2)
    return exact / fast


def check_parity(encoder: Encoder, model: Model, pictures: Sequence[bytes]) -> Fidelity:
    """Compare the served embeddings of image files with torch's, in batches of several sizes.

    Raises:
        ParityError: over the tolerance for at least one image.
    """
    reference = reference_embeddings(model, pictures)
    runs = [compare(encoder.embed(pictures, batch_size=size).vectors, reference) for size in PARITY_BATCHES]
    worst = Fidelity(len(pictures), min(run.cosine_min for run in runs), max(run.max_abs for run in runs))
    if not (worst.cosine_min >= COSINE_MIN and worst.max_abs <= MAX_ABS):  # written so that NaN fails
        raise ParityError(
            f"onnxruntime and torch differ over {worst.images} images: cosine {worst.cosine_min:.7f} (at least "
            f"{COSINE_MIN}), difference {worst.max_abs:.2g} (at most {MAX_ABS}); nothing was written; try another "
            "export.opset, or other versions of torch, onnxscript and onnxruntime"
        )
    return worst


def reference_embeddings(model: Model, pictures: Sequence[bytes]) -> NDArray[np.float32]:
    """Embeddings of length 1 as the trained network gives them: float32 [n, dim]."""
    pixels = np.stack([model.preprocessing.read(picture) for picture in pictures])
    return l2_normalize(encode(model.encoder, pixels, model.card["mean"], model.card["std"]).numpy(force=True))


def single_image_latency(encoder: Encoder, pictures: Sequence[bytes]) -> float:
    """Median seconds from the bytes of one image file to its embedding."""
    durations = []
    for run in range(LATENCY_RUNS):
        began = time.perf_counter()
        encoder.embed(pictures[run % len(pictures)])
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def _small_array(picture: bytes) -> bytes:
    """A copy of at most 128 pixels a side, at full depth."""
    samples = stored_samples(picture)
    height, width = samples.shape[:2]
    scale = min(1.0, GOLDEN_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return array_bytes(samples if scale == 1 else resize_samples(samples, size))


def _small_png(picture: bytes) -> bytes:
    """A copy of at most 128 pixels a side. PNG, because JPEG decoders differ in the last bit."""
    image = Image.fromarray(decode(picture))
    image.thumbnail((GOLDEN_SIDE, GOLDEN_SIDE))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
