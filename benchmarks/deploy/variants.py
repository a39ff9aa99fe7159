"""The int8 variant compared with fp32: images a second and size of the file, ResNet-18, ResNet-50 and ViT-S, in one
run.

    python -m benchmarks.deploy.variants --json benchmarks/results/FILE.json

Weights are random, which changes neither speed nor size; what int8 costs in accuracy is measured at every export, on
the trained encoder. The variants take turns on the same pixels, in batches of 1 and 8.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models import VisionTransformer

import deploy  # noqa: F401  # switches onnxruntime's telemetry off
from deploy.processor import int8_instruction
from simclr_core.export.onnx_graph import ServedEncoder, export_graph
from simclr_core.export.quantize import int8_graphs
from simclr_core.model.encoder import build_encoder

SIDE = 224
CALIBRATION_IMAGES = 32
ROUNDS = 15
BATCHES, THREADS = (1, 8), (1, 2)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vit_s() -> nn.Module:
    """ViT-S/16, which torchvision does not name (Touvron et al. 2021: DeiT-S)."""
    network: nn.Module = VisionTransformer(SIDE, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)
    network.heads = nn.Identity()
    return network


ENCODERS = {
    "resnet18": lambda: build_encoder("resnet18"),
    "resnet50": lambda: build_encoder("resnet50"),
    "vit_s": vit_s,
}


def graph(name: str) -> bytes:
    torch.manual_seed(0)
    encoder = ENCODERS[name]().train()
    with torch.no_grad():
        for _ in range(2):  # batch norms that have seen data
            encoder(torch.randn(8, 3, SIDE, SIDE))
    return export_graph(ServedEncoder(encoder.eval(), MEAN, STD), SIDE, 20, {})


def pictures(count: int) -> NDArray[np.uint8]:
    """Smooth noise: something with the spectrum of a photograph."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 14, 14, 3)).astype(np.uint8)
    return coarse.repeat(SIDE // 14, axis=1).repeat(SIDE // 14, axis=2)


def session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other one's threads would be slowed
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def images_per_second(models: dict[str, bytes], threads: int, batch: int) -> dict[str, list[float]]:
    sessions = {name: session(model, threads) for name, model in models.items()}
    pixels = pictures(batch)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 2):
        for name, one in sessions.items():
            began = time.perf_counter()
            one.run(None, {"images": pixels})
            if number >= 2:  # the first rounds allocate
                rates[name].append(batch / (time.perf_counter() - began))
    return rates


def measure() -> dict[str, Any]:
    results = []
    for name in ENCODERS:
        fp32 = graph(name)
        models = {"fp32": fp32, **int8_graphs(fp32, pictures(CALIBRATION_IMAGES))}
        vectors = {kind: session(model, 2).run(None, {"images": pictures(8)})[0] for kind, model in models.items()}
        for threads in THREADS:
            for batch in BATCHES:
                rates = images_per_second(models, threads, batch)
                for method in models.keys() - {"fp32"}:
                    ratios = sorted(int8 / fp for int8, fp in zip(rates[method], rates["fp32"], strict=True))
                    row = {
                        "encoder": name,
                        "int8": method,
                        "threads": threads,
                        "batch": batch,
                        "fp32_images_per_second": round(statistics.median(rates["fp32"]), 1),
                        "int8_images_per_second": round(statistics.median(rates[method]), 1),
                        "times_faster_median": round(statistics.median(ratios), 2),
                        "times_faster_quartiles": [round(ratios[len(ratios) * q // 4], 2) for q in (1, 3)],
                        "size_ratio": round(len(models[method]) / len(fp32), 4),
                        "cosine_mean": round(mean_cosine(vectors[method], vectors["fp32"]), 5),
                    }
                    results.append(row)
                    print(json.dumps(row), flush=True)
    machine = (
        f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {int8_instruction()}"
    )
    return {
        "benchmark": "variants",
        "machine": machine,
        **{name: version(name) for name in ("torch", "torchvision", "onnxruntime")},
        "results": results,
    }


def mean_cosine(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / lengths).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = measure()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
