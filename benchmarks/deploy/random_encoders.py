"""Encoders with random weights for `benchmarks.deploy.encoder`: as a bundle, for fastembed, and in eager torch.

What they compute does not matter to their speed, and no weights have to be fetched.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.images.preprocess import Preprocessing, decode

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"resnet18": (224, 256), "resnet50": (224, 256), "vit_s_16": (224, 256), "small": (32, 36)}
"""Side that the encoder sees, and side to which the image is resized before the crop."""


def build(name: str) -> Any:
    """The torch module: "small" is a narrow ResNet-18 for 32 x 32 pixels, "vit_s_16" the ViT-S/16 of DeiT."""
    from torchvision.models import VisionTransformer

    from simclr_core.model.encoder import Encoder, build_encoder

    if name == "small":
        return build_encoder("resnet18", width=0.25, stem="compact")
    if name != "vit_s_16":
        return build_encoder(name)
    import torch

    vit = VisionTransformer(224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)
    vit.heads = torch.nn.Identity()
    return Encoder(vit, 384)


def write(name: str, directory: Path) -> None:
    """Write ``bundle``, ``weights.safetensors`` and ``fastembed`` into the new ``directory``."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    encoder = build(name).eval()
    directory.mkdir(parents=True)
    save_file(encoder.state_dict(), directory / "weights.safetensors")
    _write_bundle(name, encoder, directory / "bundle")
    _write_fastembed(name, encoder, directory / "fastembed")


def _write_bundle(name: str, encoder: Any, directory: Path) -> None:
    from deploy.artifact import publish
    from deploy.bundle import FORMAT_VERSION, Bundle, graph_promise, write_bundle
    from deploy.encoder import l2_normalize
    from deploy.session import METADATA
    from simclr_core.evaluation.features import encode
    from simclr_core.export.onnx_graph import ServedEncoder, export_graph

    size, resize = SIZES[name]
    card = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "dim": encoder.feature_dim,
        "preprocessing": {"size": size, "resize": resize},
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
        "golden": {"tolerance": {"cosine_min": 0.9999, "max_abs": 1e-3}},
    }
    golden = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(golden).save(content, "PNG")
    vectors = l2_normalize(
        encode(encoder, Preprocessing(size, resize).apply(golden)[None], MEAN, STD).numpy(force=True)
    )
    graph = export_graph(ServedEncoder(encoder, MEAN, STD), size, 20, {METADATA: graph_promise(card)})
    with publish(directory) as work:
        write_bundle(work, Bundle(card, graph, None, (content.getvalue(),), vectors))


def _write_fastembed(name: str, encoder: Any, directory: Path) -> None:
    """The same weights with the float input that fastembed gives, and the same preprocessing in its words."""
    import torch

    size, resize = SIZES[name]
    directory.mkdir()
    torch.onnx.export(
        encoder,
        (torch.zeros(2, 3, size, size),),
        directory / "model.onnx",
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    config = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": resize}}
    config |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True}
    config |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD, "resample": 2}
    (directory / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")


class TorchEncoder:
    """The encoder in eager torch, from the bytes of a file to the vector."""

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        import torch
        from safetensors.torch import load_file

        from simclr_core.evaluation.features import normalize

        if threads:
            torch.set_num_threads(threads)
        with torch.device("meta"):  # no time is lost on weights that are replaced at once
            self._model = build(directory.name)
        self._model.load_state_dict(load_file(directory / "weights.safetensors"), assign=True)
        self._model.eval()
        self._preprocessing = Preprocessing(*SIZES[directory.name])
        self._torch, self._normalize = torch, normalize

    def embed(self, picture: bytes) -> NDArray[np.float32]:
        pixels = self._preprocessing.apply(decode(picture))[None]
        with self._torch.inference_mode():
            features = self._model(self._normalize(self._torch.from_numpy(pixels), MEAN, STD))
            vector: NDArray[np.float32] = self._torch.nn.functional.normalize(features, dim=1).numpy()
            return vector
