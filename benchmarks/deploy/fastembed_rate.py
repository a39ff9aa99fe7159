"""Images a second of fastembed on a local model; runs in its own environment, without this project.

    python benchmarks/deploy/fastembed_rate.py MODEL_FOLDER IMAGE_FOLDER THREADS PARALLEL

Prints JSON: images a second after a first batch, and the vector of the first image.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}

from fastembed import ImageEmbedding  # type: ignore[import-not-found]  # it is in another environment


def main() -> None:
    model, images, threads, parallel = sys.argv[1:]
    # The name chooses only the reader of the model's output, its length scaled to 1; the files are local.
    encoder = ImageEmbedding("Qdrant/resnet50-onnx", threads=int(threads), specific_model_path=model)
    files = sorted(str(path) for path in Path(images).iterdir())
    stream = encoder.embed(files, batch_size=32, parallel=int(parallel) or None)
    first = next(iter(stream))
    began = time.perf_counter()
    rows = sum(1 for _ in stream)
    rate = (len(files) - 32) / (time.perf_counter() - began) if rows else 0.0
    print(json.dumps({"images_per_second": rate, "vector": [float(value) for value in first]}))


if __name__ == "__main__":
    main()
