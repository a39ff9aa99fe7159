"""How much sooner two nodes of a Ray cluster have validated 20,000 images than one, each with one core.

    python -m benchmarks.pipeline.nodes --json benchmarks/results/FILE.json

The nodes are processes on this machine, which needs two cores and the extra ``ray``; the driver, which reads answers,
shares them. Both clusters take turns, each new, and have answered once before the clock starts.
"""

import io
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measure
from pipeline import params
from pipeline import workspace as workspaces
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches, tars
from pipeline.validation.probe.ray_engine import flat_map
from pipeline.validation.probe.scan import Limits, scan
from tests.processes import ray_cluster

IMAGES, SIDE, ROUNDS = 20_000, 160, 1
LIMITS = Limits(max_megabytes=50.0, max_megapixels=80.0, memory_megabytes=2048, timeout_seconds=20.0)


def main() -> None:
    options = measure.parser(__doc__)
    chosen = options.parse_args()
    with measure.kept_folder(None) as folder:
        workspace = workspaces.create(folder / "workspace")
        params.override(workspace, {"ingest.shard_megabytes": "4", "ingest.settle_seconds": "0"})
        (workspace.inbox / "unlabeled").mkdir(parents=True, exist_ok=True)
        for number in range(IMAGES):
            (workspace.inbox / "unlabeled" / f"{number:05d}.jpg").write_bytes(picture(number))
        ingest(workspace)
        [batch] = batches(workspace.raw)
        measurements = {
            f"{nodes} nodes": partial(measure.in_fresh_process, validated, workspace.raw, folder, nodes)
            for nodes in (1, 2)
        }
        seconds = measure.interleaved(measurements, ROUNDS)
        results: dict[str, Any] = measure.header("nodes", "ray", "pillow")
        results |= {"images": IMAGES, "side": SIDE, "tars": len(tars(batch)), "cores_of_a_node": 1}
        results["seconds"] = measure.compared(seconds, 2)
        print(results)
        measure.write(results, chosen.json)


def validated(raw: Path, folder: Path, nodes: int) -> float:
    """Seconds of one scan on a new cluster, in a process that has not used Ray: it keeps the first token it sees."""
    with ray_cluster.started(nodes, cores=1) as cluster:
        os.environ.update(cluster.variables)
        list(flat_map(reversed, [[number] for number in range(4 * nodes)]))
        began = time.perf_counter()
        _, facts = scan(raw, folder / f"facts-{time.time()}", limits=LIMITS, engine="ray")
        assert facts.select(["sha256"]).height == IMAGES
        return time.perf_counter() - began


def picture(number: int) -> bytes:
    """A smooth JPEG."""
    chance = np.random.default_rng(number)
    small = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
    return data.getvalue()


if __name__ == "__main__":
    main()
