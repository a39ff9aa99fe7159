"""The graph of approximate search against hnswlib's and faiss's, with equal parameters, threads and recall.

    python -m benchmarks.deploy.approximate --json benchmarks/results/FILE.json

10,000 × 512 float32 in clusters of about 100, M = 16, ef_construction = 128, k = 10, with 64 candidates. Ours is the
whole `Index.search`: it scales queries, scores candidates again from the exact vectors, and returns the ids. Each turn
asks other queries; those that come alone in a series. The libraries take turns; milliseconds of a turn are of CPU time,
which other work on the machine changes least, and of wall time. It alone needs `pip install hnswlib==0.8.0
faiss-cpu==1.15.1`.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.deploy.search import DIM, Vectors, vectors_and_queries
from benchmarks.measure import header, parser, write
from deploy.search import approximate
from deploy.search.index import Index

ROWS, CLUSTERS, K = 10_000, 100, 10
BUILDS = 3
ROUNDS = {1: 64, 16: 64, 256: 11}  # by the number of queries that come together
SERIES = {1: 32, 16: 4, 256: 1}  # of such searches in a turn

Search = Callable[[Vectors, int], NDArray[Any]]
Maker = Callable[[Vectors, int, Path], Search]


def ours(vectors: Vectors, _: int, folder: Path) -> Search:
    ids = [f"{row}.jpg" for row in range(len(vectors))]
    Index.build(vectors, ids, "random").save(folder / "index", approximate=True, replace=True)
    index = Index.open(folder / "index")
    return lambda queries, _: index.search(queries, K, approximate=True).rows  # on the cores that it may use


def hnswlib(vectors: Vectors, threads: int, _: Path) -> Search:
    import hnswlib

    graph = hnswlib.Index("ip", DIM)
    graph.init_index(len(vectors), ef_construction=approximate.EXPANSION, M=approximate.CONNECTIVITY)
    graph.add_items(vectors, num_threads=threads)
    graph.set_ef(approximate.CANDIDATES)
    return lambda queries, threads: graph.knn_query(queries, K, num_threads=threads)[0]


def faiss(vectors: Vectors, threads: int, _: Path, kind: str = "float32") -> Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    if kind == "float32":
        graph = faiss.IndexHNSWFlat(DIM, approximate.CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
    else:
        half = faiss.ScalarQuantizer.QT_fp16
        graph = faiss.IndexHNSWSQ(DIM, half, approximate.CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
        graph.train(vectors)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = approximate.EXPANSION, approximate.CANDIDATES
    graph.add(vectors)

    def search(queries: Vectors, threads: int) -> NDArray[Any]:
        faiss.omp_set_num_threads(threads)
        nearest: NDArray[Any] = graph.search(queries, K)[1]
        return nearest

    return search


def faiss_float16(vectors: Vectors, threads: int, folder: Path) -> Search:
    return faiss(vectors, threads, folder, "float16")


LIBRARIES: dict[str, Maker] = {
    "ours": ours,
    "hnswlib": hnswlib,
    "faiss": faiss,
    "faiss_float16": faiss_float16,
}


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, wall seconds, and what the function returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return time.process_time() - cpu, time.perf_counter() - wall, value


def take_turns(functions: Mapping[str, Callable[[int], Any]], rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Medians and ratios to ours, and what each function of the number of the round returned last."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    values: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(functions)[:: 1 if number % 2 else -1]:
            cpu, wall, values[name] = timed(partial(functions[name], number))
            taken[name].append((cpu, wall))
    report: dict[str, Any] = {}
    for name, pairs in taken.items():
        ratio, wall_ratio = (
            statistics.median(one[place] / other[place] for one, other in zip(taken["ours"], pairs, strict=True))
            for place in (0, 1)
        )
        report[name] = {
            "cpu_milliseconds": round(1000 * statistics.median(cpu for cpu, _ in pairs), 3),
            "wall_milliseconds": round(1000 * statistics.median(wall for _, wall in pairs), 3),
            "ours_over_it": round(ratio, 2),
            "ours_over_it_wall": round(wall_ratio, 2),
        }
    return report, values


def build(make: Maker, vectors: Vectors, threads: int, folder: Path, _: int) -> Search:
    return make(vectors, threads, folder)


def ask(search: Search, queries: Vectors, count: int, threads: int, number: int) -> None:
    for one in range(number * SERIES[count], (number + 1) * SERIES[count]):
        start = one * count % len(queries)
        search(queries[start : start + count], threads)


def run() -> list[dict[str, Any]]:
    vectors, queries = vectors_and_queries(ROWS, CLUSTERS)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]
    results = []
    cores = sorted(os.sched_getaffinity(0))
    for threads in (1, 2):
        os.sched_setaffinity(0, cores[:threads])
        with tempfile.TemporaryDirectory() as folder:
            makers = {name: partial(build, make, vectors, threads, Path(folder)) for name, make in LIBRARIES.items()}
            built, searches = take_turns(makers, BUILDS)
            results.append({"what": "build", "threads": threads, **built})
            for count, rounds in ROUNDS.items():
                askers = {name: partial(ask, search, queries, count, threads) for name, search in searches.items()}
                asked, _ = take_turns(askers, rounds)
                for name, search in searches.items():
                    pairs = zip(search(queries, threads).tolist(), truth.tolist(), strict=True)
                    asked[name]["recall"] = round(statistics.mean(len(set(a) & set(b)) / K for a, b in pairs), 4)
                results.append({"what": f"{count} queries", "threads": threads, **asked})
    return results


def main() -> None:
    arguments = parser(__doc__).parse_args()
    about = header("approximate", "numpy", "usearch", "hnswlib", "faiss-cpu")
    about |= {"rows": ROWS, "dim": DIM, "k": K, "connectivity": approximate.CONNECTIVITY, "results": run()}
    write(about, arguments.json)


if __name__ == "__main__":
    main()
