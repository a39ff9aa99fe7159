"""The stage ``export``: the bundle that is served."""

from typing import Literal

from pydantic import Field

from simclr_core.params import Block
from simclr_core.values import ArtifactName, Variants


class ExportConfig(Block):
    """The bundle that is served."""

    name: ArtifactName = Field(default="simclr-encoder", description="name of the encoder and of its versions")
    source: Literal["pretrained", "finetuned", "distilled"] = Field(
        default="pretrained", description="which network is served"
    )
    opset: int = Field(
        default=20,
        ge=18,
        le=25,  # above, torch silently writes opset 18
        description="version of the ONNX operators",
    )
    license: str = Field(default="proprietary", description="license of the weights, which are yours")
    variants: Variants = Field(
        default=("fp32", "int8"),
        description="versions of the ONNX file; one that loses accuracy is left out. fp32 must be among them",
    )
    max_loss: float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="percentage points that a version may lose to fp32. A larger loss that a paired test shows on the "
        "same test images leaves it out",
    )
