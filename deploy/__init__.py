"""Embed images with an exported encoder: numpy, Pillow and onnxruntime, and no torch.

    import deploy
    encoder = deploy.load("models/bundle")
    vectors = encoder.embed(["cat.jpg", "dog.png"]).vectors    # float32 [2, dim], of length 1

Importing this package costs next to nothing: each name is imported when it is first asked for (PEP 562), Pillow and
onnxruntime when a bundle is loaded.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The official onnxruntime wheels report usage to Microsoft since 1.29. Only this variable, set before onnxruntime is
# first imported, switches all of it off.
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
    from deploy.encoder import Embeddings, Encoder, Prediction, load
    from deploy.search.index import Index
else:
    _MODULES = dict.fromkeys(("Embeddings", "Encoder", "Prediction", "load"), "deploy.encoder") | {
        "Index": "deploy.search.index"
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


__all__ = ["DeployError", "Embeddings", "Encoder", "ImageError", "Index", "Prediction", "load"]
