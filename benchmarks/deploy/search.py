"""Exact search against the bare matrix product that no exact search can do without, and approximate search compared
with it.

    python -m benchmarks.deploy.search --json benchmarks/results/FILE.json

100,000 × 512 float32, k = 10, queries alone and in batches. An index in a file is opened in a fresh process and takes
turns with `queries @ vectors.T` on the same vectors in memory; ratios are of the medians. Approximate search comes
after them, because its threads continue for a while. Recall is of the exact ten, among vectors in 1,000 clusters.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.search.index import Index

ROWS, DIM, CLUSTERS, K = 100_000, 512, 1_000, 10
ROUNDS = {1: 200, 16: 50, 256: 10}  # by the number of queries that come together
ENCODER = "random"

Vectors = NDArray[np.float32]


def vectors_and_queries(rows: int, clusters: int) -> tuple[Vectors, Vectors]:
    """Unit vectors in clusters, and 256 queries near them."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((clusters, DIM), np.float32)
    vectors, queries = (
        centers[random.integers(0, clusters, count)] + random.standard_normal((count, DIM), np.float32)
        for count in (rows, max(ROUNDS))
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), queries


def build(directory: Path) -> float:
    """Seconds to write the index and its graph."""
    vectors, _ = vectors_and_queries(ROWS, CLUSTERS)
    index = Index.build(vectors, [f"{row}.jpg" for row in range(ROWS)], ENCODER)
    began = time.perf_counter()
    index.save(directory, approximate=True)
    return time.perf_counter() - began


def take_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if number >= 2:  # the first rounds bring the file into memory
                taken[name].append(time.perf_counter() - began)
    return taken


def measure(directory: Path) -> dict[str, Any]:
    """In this process, which must have done nothing else."""
    began = time.perf_counter()
    index = Index.open(directory, ENCODER)
    opened = time.perf_counter() - began
    vectors, queries = vectors_and_queries(ROWS, CLUSTERS)
    exact, fast = index.search(queries, K), index.search(queries, K, approximate=True)
    shared = [len(set(one) & set(other)) for one, other in zip(exact.rows.tolist(), fast.rows.tolist(), strict=True)]
    results = []
    for count, rounds in ROUNDS.items():
        batch = queries[:count]
        functions: dict[str, Callable[[], object]] = {
            "matrix_product": lambda batch=batch: batch @ vectors.T,  # type: ignore[misc]
            "exact": lambda batch=batch: index.search(batch, K),  # type: ignore[misc]
        }
        taken = take_turns(functions, rounds)
        taken |= take_turns({"approximate": lambda batch=batch: index.search(batch, K, approximate=True)}, rounds)  # type: ignore[misc]
        medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
        row: dict[str, Any] = {"queries": count, "rounds": rounds}
        for name, seconds in taken.items():
            row[f"{name}_milliseconds"] = [
                round(1000 * value, 2) for value in (medians[name], min(seconds), max(seconds))
            ]
        row["exact_over_matrix_product"] = round(medians["exact"] / medians["matrix_product"], 3)
        row["exact_over_approximate"] = round(medians["exact"] / medians["approximate"], 1)
        results.append(row)
        print(json.dumps(row), flush=True)
    return {
        "open_and_verify_seconds": round(opened, 3),
        "recall_at_10": sum(shared) / exact.rows.size,
        "results": results,
    }


def run() -> dict[str, Any]:
    process = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        with process.Pool(1) as builder:
            seconds = builder.apply(build, (Path(folder, "index"),))
        with process.Pool(1) as searcher:
            measured = searcher.apply(measure, (Path(folder, "index"),))
    return {
        "benchmark": "search",
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        **{name: version(name) for name in ("numpy", "usearch")},
        "rows": ROWS,
        "dim": DIM,
        "k": K,
        "milliseconds": "median, smallest, largest",
        "write_with_graph_seconds": round(seconds, 1),
        **measured,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = run()
    print(json.dumps({name: value for name, value in results.items() if name != "results"}))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
