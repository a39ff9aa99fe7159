"""The encoder as an ONNX graph: pixels [batch, size, size, channels] in, h [batch, dim] out, and nothing about this
machine. Pixels are uint8 RGB, or uint16 of images with a number of channels."""

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from google.protobuf.message import Message
from torch import Tensor, nn

from simclr_core.errors import ConfigError
from simclr_core.evaluation.features import normalize


class ServedEncoder(nn.Module):
    """The encoder with scaling, mean and standard deviation in front: what is served takes pixels as they are."""

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor) -> Tensor:
        # Without contiguous(), torch traces the average pool of channels-last images as a gather over computed indices.
        features: Tensor = self.encoder(normalize(images, self.mean, self.std).contiguous())
        return features


def export_graph(
    served: ServedEncoder, size: int, opset: int, metadata: dict[str, str], pixels: torch.dtype = torch.uint8
) -> bytes:
    """Trace, optimize, strip and check the graph; returns the ONNX file with the weights inside.

    Args:
        metadata: entries of the file's ``metadata_props``.
        pixels: torch.uint8, or torch.uint16 of images at full depth.

    Raises:
        ConfigError: torch cannot write this opset; it would take another one without an error.
    """
    for name in ("onnx_ir", "onnxscript"):  # a line for every pass of their optimizer
        logging.getLogger(name).setLevel(logging.ERROR)
    example = torch.zeros(2, size, size, len(served.mean), dtype=pixels)  # a batch of 1 would be taken for a constant
    program = torch.onnx.export(
        served.eval(),
        (example,),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=["features"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    written = model.opset_import[0].version
    if written != opset:
        fault = f"export.opset: given {opset}, which torch {torch.__version__} turned into {written}; allowed: 18 to 25"
        raise ConfigError(Path("params.yaml"), [fault])
    strip(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def strip(message: Message) -> None:
    """Clear documentation and metadata at every level: torch writes stack traces with absolute paths into each node."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for child in value if descriptor.is_repeated else [value]:
                strip(child)
