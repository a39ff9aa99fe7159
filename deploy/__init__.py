"""Embed images with an exported encoder. Needs numpy, Pillow and onnxruntime, but not torch.

Examples:
    >>> import deploy
    >>> encoder = deploy.load("models/bundle")
    >>> vectors = encoder.embed(["cat.jpg", "dog.png"]).vectors  # float32 [2, dim], each row of length 1
    >>> similarity = float(vectors[0] @ vectors[1])  # cosine similarity

Importing this package is cheap: each name is imported on first access (PEP 562), and Pillow and onnxruntime when a
bundle is loaded.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Since 1.29 the official onnxruntime wheels report usage to Microsoft. Only this variable switches all of it off, and
# only if it is set before onnxruntime is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from deploy.errors import DeployError, ImageError
from deploy.moved import keep_old_names

keep_old_names(
    "deploy",
    {
        "cli": "index_cli:index serve_cli:serve",
        "folders": "folder embedding_writers unfinished progress",
        "images": "preprocess image_faults jpeg_scans inputs",
        "search": "index index_files:files index_export:export exact_search:exact approximate_search:approximate "
        "few_shot",
    },
)

if TYPE_CHECKING:
    from deploy.embeddings import Embeddings, Prediction
    from deploy.encoder import Encoder, load
    from deploy.search.index import Index
else:
    _MODULES = {
        "Embeddings": "deploy.embeddings",
        "Encoder": "deploy.encoder",
        "Index": "deploy.search.index",
        "Prediction": "deploy.embeddings",
        "load": "deploy.encoder",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


__all__ = ["DeployError", "Embeddings", "Encoder", "ImageError", "Index", "Prediction", "load"]
