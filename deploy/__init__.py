"""Embed images with an exported encoder: numpy, Pillow and onnxruntime, and no torch.

    import deploy
    encoder = deploy.load("models/bundle")
    vectors = encoder.embed(["cat.jpg", "dog.png"]).vectors    # float32 [2, dim], of length 1

Importing this package loads neither Pillow nor onnxruntime; loading a bundle does.
"""

import os
from typing import TYPE_CHECKING, Any

# The official onnxruntime wheels report usage to Microsoft since 1.29. Only this variable, set before onnxruntime is
# first imported, switches all of it off.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from deploy.encoder import Embeddings, Encoder, Prediction, load
from deploy.errors import DeployError, ImageError

if TYPE_CHECKING:
    from deploy.index import Index as Index
else:

    def __getattr__(name: str) -> Any:
        if name != "Index":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from deploy.index import Index

        return Index


__all__ = ["DeployError", "Embeddings", "Encoder", "ImageError", "Index", "Prediction", "load"]
