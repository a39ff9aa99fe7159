"""Export a bundle as a model for the onnxruntime backend of Triton Inference Server.

    MODELS/NAME/config.pbtxt       the interface, batching and instances
    MODELS/NAME/1/model.onnx       the variant's graph, unchanged from the bundle
    MODELS/NAME/README.md          what the client must do: preprocessing, vectors of length 1, classes
    MODELS/NAME/MANIFEST.sha256

`tritonserver --model-repository=MODELS` serves it. Fields: model_config.proto of triton-inference-server/common.
"""

import json
import re
from pathlib import Path

import numpy as np

from deploy.artifact import publish
from deploy.bundle import FP16, FP32, INT8, Bundle, read_bundle
from deploy.errors import ArgumentError, as_path
from deploy.images.preprocess import Preprocessing
from deploy.processor import CPU_PROVIDER
from deploy.registry import resolve
from deploy.session import open_session

MAX_BATCH = 64  # the default of `simclr-deploy serve --max-images`
DEVICES = {INT8: "KIND_CPU", FP16: "KIND_GPU"}
"""Where an instance of a variant runs; fp32 runs on a GPU if there is one."""

CONFIG = """\
# {name}, {variant}, of bundle {id}
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch}
input [ {{ name: {input} data_type: TYPE_{kind} dims: [ {size}, {size}, {bands} ] }} ]
output [ {{ name: {output} data_type: TYPE_FP32 dims: [ {dim} ] }} ]
instance_group [ {{ count: 1 kind: {device} }} ]
"""
# As in deploy.session. The backend has its own numbers for the levels: 1 is ORT_ENABLE_EXTENDED.
FP16_CONFIG = "optimization { graph { level: 1 } }\n"

README = """\
# {name}, {variant}

Bundle {id}
as a model for Triton. It needs onnxruntime 1.18 or newer.

The client does the preprocessing and must use this code: another resize silently gives other vectors. Triton returns
the raw output: scale it to length 1, so that a dot product is a cosine similarity. Classes need the head, which stays
in the bundle. The client needs numpy and Pillow, not onnxruntime:

```python
from pathlib import Path
import numpy as np
import tritonclient.http as triton
from deploy.encoder import l2_normalize
from deploy.images.preprocess import Preprocessing

pixels = {preprocessing}.read(Path("{file}").read_bytes())
images = triton.InferInput({input}, [1, {size}, {size}, {bands}], "{kind}")
images.set_data_from_numpy(pixels[np.newaxis])
answer = triton.InferenceServerClient("127.0.0.1:8000").infer("{name}", [images])
vector = l2_normalize(answer.as_numpy({output}))[0]
```

Triton does not batch the requests of several clients. Where batching is faster, as on many GPUs, add
`dynamic_batching {{ }}` to `config.pbtxt`.
"""


def export_triton(
    bundle: str | Path, repository: str | Path, variant: str = FP32, trust: str | Path | None = None
) -> Path:
    """Publish a variant of a bundle, or of a registry's current version, in a Triton model repository.

    Returns:
        The model's directory, which has the bundle's name.

    Raises:
        ArgumentError: the bundle does not have this variant, its name is not a valid model name, the repository
            already has a model of that name, or an argument has a wrong type.
        DeployError: the bundle cannot be used, as in ``deploy.load``.
    """
    repository, trusted = as_path(repository=repository), None if trust is None else as_path(trust=trust)
    loaded = read_bundle(resolve(bundle), trusted)
    name, variants = str(loaded.card["name"]), (FP32, *loaded.variants)
    if not isinstance(variant, str) or variant not in variants:
        raise ArgumentError(f"variant={variant!r}; this bundle has {', '.join(variants)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ArgumentError(
            f"the bundle's name {name!r} is not a valid model name; export it with letters, digits and . _ - only"
        )
    if (repository / name).exists():
        raise ArgumentError(f"{repository / name}: already exists; choose another directory, or remove it")
    config, readme = _documents(loaded, variant)
    with publish(repository / name) as work:
        (work / "config.pbtxt").write_text(config, encoding="utf-8")
        (work / "README.md").write_text(readme, encoding="utf-8")
        (work / "1").mkdir()
        (work / "1" / "model.onnx").write_bytes(loaded.variant(variant).model)
    return repository / name


def _documents(bundle: Bundle, variant: str) -> tuple[str, str]:
    """Return config.pbtxt and README.md. Names in the graph are quoted, so that none is read as a setting."""
    session = open_session(bundle, variant, threads=1, providers=[CPU_PROVIDER])
    facts = {
        "name": bundle.card["name"],
        "id": bundle.id,
        "variant": variant,
        "input": json.dumps(session.get_inputs()[0].name),
        "output": json.dumps(session.get_outputs()[0].name),
        "size": bundle.preprocessing.size,
        "preprocessing": _spelled(bundle.preprocessing),
        "bands": bundle.preprocessing.bands,
        "kind": np.dtype(bundle.preprocessing.dtype).name.upper(),
        "file": "cells.npy" if bundle.preprocessing.channels else "cat.jpg",
        "dim": bundle.dim,
        "max_batch": MAX_BATCH,
        "device": DEVICES.get(variant, "KIND_AUTO"),
    }
    config = CONFIG.format(**facts) + (FP16_CONFIG if variant == FP16 else "")
    return config, README.format(**facts)


def _spelled(preprocessing: Preprocessing) -> str:
    fields = ", ".join(f"{name}={value!r}" for name, value in preprocessing.to_json().items())
    return f"Preprocessing({fields})"
