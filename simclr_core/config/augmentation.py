"""How an image becomes a view, and the presets of it."""

from typing import Any, Literal

from pydantic import Field, model_validator

from simclr_core.params import Block
from simclr_core.values import CropScale, Probability, Range

CROP_SCALE = "area of the crop over the area of the image: [lowest, highest]"


# What a preset sets; a key given next to it wins. `imagenet` and `cifar` are SimCLR's sections A and B.9. The other two
# are ours: gray images have no color to drop, and medical ones carry meaning in color and texture but have no upside.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {},  # the defaults
    "cifar": {"jitter_strength": 0.5, "blur": 0.0},
    "grayscale": {"crop_scale": (0.2, 1.0), "grayscale": 0.0, "blur": 0.0},
    "medical": {
        "crop_scale": (0.3, 1.0),
        "jitter_strength": 0.25,
        "grayscale": 0.0,
        "blur": 0.0,
        "rotation": 0.75,
    },
}


class AugmentationConfig(Block):
    """How an image becomes a view; `python -m simclr_core augment-sheet` draws it. See ``simclr_core.augmentation``."""

    preset: Literal["imagenet", "cifar", "grayscale", "medical"] | None = Field(
        default=None, exclude=True, description="defaults for keys left out here; null: imagenet"
    )
    crop_scale: CropScale = Field(default=(0.08, 1.0), description=CROP_SCALE)
    crop_ratio: Range = Field(default=(0.75, 4 / 3), description="width of the crop over its height: [lowest, highest]")
    flip: Probability = Field(default=0.5, description="probability of a horizontal flip")
    jitter_strength: float = Field(
        default=1.0,
        ge=0,
        le=1.25,  # brightness 1 +- 0.8 s must not turn negative
        description="strength s of the color jitter. Brightness, contrast, and saturation change by a factor of up to "
        "1 ± 0.8 s, and hue turns by up to 0.2 s of the circle",
    )
    jitter_probability: Probability = Field(default=0.8, description="probability of the color jitter")
    grayscale: Probability = Field(
        default=0.2, description="probability of dropping the color; of no use where images are gray already"
    )
    blur: Probability = Field(
        default=0.5, description="probability of a Gaussian blur; small images need none (SimCLR section B.9)"
    )
    mode: Literal["exact", "fused"] = Field(
        default="exact",
        description="how views are computed; fused is faster. It turns hue in YIQ and clamps only at the end",
    )
    jitter_order: Literal["fixed", "random"] = Field(
        default="fixed",
        description="order of the color changes. Fixed is brightness, contrast, saturation, hue; random is drawn for "
        "each image",
    )
    rotation: Probability = Field(
        default=0.0, description="probability of a turn by 90, 180, or 270 degrees, for images that have no top"
    )
    solarize: Probability = Field(
        default=0.0, description="probability of inverting the bright half of the pixel range"
    )
    extra_crops: int = Field(default=0, ge=0, le=16, description="more views of each image, from smaller parts of it")
    extra_crop_scale: CropScale = Field(
        default=(0.05, 0.14),  # SwAV
        description="area of an extra crop over the area of the image: [lowest, highest]",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="how a crop is resized; SimCLR takes bicubic"
    )
    second_blur: Probability | None = Field(
        default=None,
        description="probability of the blur in the second view; null: as in the others. BYOL: 1.0 and 0.1",
    )
    second_solarize: Probability | None = Field(
        default=None, description="probability of solarizing the second view; null: as the others. BYOL: 0.0 and 0.2"
    )
    extra_crop_size: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description="side of an extra crop, in pixels; null: image_size. Views of less than half the side take a "
        "quarter of the time; SwAV has 96 next to 224. ViT and MaxViT have one size",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[preset], **given} if isinstance(preset, str) and preset in PRESETS else given
