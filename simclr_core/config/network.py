"""The networks: encoder, projection head, and how their weights begin."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from simclr_core.encoder_names import fixed_shape, unknown_encoder
from simclr_core.params import Block
from simclr_core.values import Positive


class EncoderConfig(Block):
    """The network whose output is kept. See ``simclr_core.model.encoder``."""

    name: str = Field(
        default="resnet18",
        description="network: resnet10, any classification model of torchvision, or timm/NAME with the extra timm",
    )
    width: Positive = Field(default=1.0, description="factor on the number of channels of a ResNet")
    stem: Literal["imagenet", "cifar", "compact"] = Field(
        default="imagenet",
        description="first layers of a ResNet. imagenet is a 7x7 convolution of stride 2 with max pooling, cifar a 3x3 "
        "convolution of stride 1, compact one of stride 2",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if (advice := unknown_encoder(name)) is not None:
            raise ValueError(f"the name of an encoder; {advice}")
        return name

    @model_validator(mode="after")
    def _shaped(self) -> Self:
        if (fault := fixed_shape(self.name, self.width, self.stem)) is not None:
            raise ValueError(f"a width and a stem that go with the name: {fault}")
        return self


class ProjectionHeadConfig(Block):
    """The network between encoder and loss, dropped after training. See ``simclr_core.model.projection_head``."""

    layers: int = Field(default=2, ge=0, le=8, description="number of layers; 0: identity, 1: linear")
    width: int = Field(default=2048, ge=1, description="units of each hidden layer")
    dim: int = Field(default=128, ge=1, description="length of the vectors that the loss compares")


class InitializationConfig(Block):
    """Fresh weights, and which of them are not trained. See ``simclr_core.model.initialization``."""

    scheme: Literal["torch", "simclr"] = Field(
        default="torch",
        description="how fresh weights are drawn. simclr is as its code does, torch as torch and torchvision do",
    )
    zero_last_gamma: bool = Field(
        default=False,
        description="begin residual blocks as the identity. The last BatchNorm of each of a ResNet then has weight 0",
    )
    without_last_beta: bool = Field(
        default=False, description="keep the bias of the last BatchNorm of the projection head at 0"
    )
    frozen_first_layer: bool = Field(
        default=False,
        description="keep the first convolution as it is drawn. Of a ViT that is the projection of the patches, "
        "whose training makes the rest unstable (MoCo v3)",
    )
