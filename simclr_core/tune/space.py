"""What is searched, and in which bounds: keys of the block ``pretrain``, by what the present settings make sense of.

| key | bounds | left out |
|---|---|---|
| `temperature` | 0.05 to 1, logarithmic | |
| `augmentation.crop_scale` | lowest area 0.08 to 0.6 | |
| `augmentation.jitter_strength` | 0.1 to 1.25 | without color jitter |
| `projection_head.layers` | 2 or 3 | without a hidden layer |
| `projection_head.width` | half, once or twice the present | without a hidden layer |
| `encoder.width` | half, 0.7 times, once, 1.4 times or twice the present | where start or network give the shape |
| `encoder.stem` | compact, cifar or imagenet; imagenet from 64 pixels on | likewise |
| `learning_rate` | a quarter to four times the present, logarithmic | |
| `batch_size` | half, once or twice the present | with fewer than 8 steps in an epoch |
| `loss` | nt_xent or dcl | with a queue, or another loss |

The number of epochs is not drawn: it is what the same time allows. A present value out of these bounds widens them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simclr_core.config import PretrainConfig
from simclr_core.encoder_names import RESNETS

Value = float | int | str
Values = Mapping[str, Value]
FEWEST_STEPS = 8  # in an epoch
LARGE = 64  # pixels from which on a stem of stride 4 leaves something
LOWEST_CROP = "augmentation.crop_scale"  # the lower end is drawn, the upper stays


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; ``log``: as likely in each factor."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class OneOf:
    """A few values."""

    values: tuple[Value, ...]


Space = Mapping[str, Range | OneOf]


def describe_space(config: PretrainConfig, images: int) -> Space:
    """What makes sense to search from the present settings with this number of training ``images``."""
    return dict(_knobs(config, images))


def present_values(config: PretrainConfig, space: Space) -> dict[str, Value]:
    """The present value of each key of the space."""
    return {key: _read(config, key) for key in space}


def with_values(config: PretrainConfig, values: Mapping[str, Any]) -> PretrainConfig:
    """The settings with other values; a key is named as in ``Space``, or any other of the block.

    Raises:
        ValueError: pydantic's, for values that the block does not allow together.
    """
    document = config.model_dump(mode="python")
    for key, value in values.items():
        *parents, name = key.split(".")
        block = document
        for parent in parents:
            block = block[parent]
        block[name] = (value, block[name][1]) if key == LOWEST_CROP else value
    return PretrainConfig.model_validate(document)


def as_params(config: PretrainConfig, values: Values) -> dict[str, str]:
    """Those values that differ from the present ones, as YAML by the names that they have in params.yaml."""
    highest = config.augmentation.crop_scale[1]
    return {
        f"pretrain.{key}": json.dumps([value, highest]) if key == LOWEST_CROP else json.dumps(value)
        for key, value in values.items()
        if value != _read(config, key)
    }


def rounded(values: Mapping[str, Any]) -> dict[str, Value]:
    """Numbers with three digits, so that what is written into params.yaml is what was tried."""
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in values.items()}


def _knobs(config: PretrainConfig, images: int) -> Iterator[tuple[str, Range | OneOf]]:
    augmentation, head, encoder = config.augmentation, config.projection_head, config.encoder
    yield "temperature", _range(config.temperature, 0.05, 1.0, log=True)
    yield LOWEST_CROP, _range(augmentation.crop_scale[0], 0.08, min(0.6, augmentation.crop_scale[1]))
    if augmentation.jitter_probability and augmentation.jitter_strength:
        yield "augmentation.jitter_strength", _range(augmentation.jitter_strength, 0.1, 1.25)
    if config.init == "scratch":
        if head.layers >= 2:
            yield "projection_head.layers", _one_of(head.layers, 2, 3)
            yield "projection_head.width", _one_of(head.width, max(1, head.width // 2), 2 * head.width)
        if encoder.name in RESNETS:
            yield "encoder.width", _one_of(encoder.width, *(encoder.width * factor for factor in (0.5, 0.7, 1.4, 2)))
            stems = ("compact", "cifar", "imagenet") if config.image_size >= LARGE else ("compact", "cifar")
            yield "encoder.stem", _one_of(encoder.stem, *stems)
    yield "learning_rate", Range(config.learning_rate / 4, config.learning_rate * 4, log=True)
    batches = [size for size in (config.batch_size // 2, 2 * config.batch_size) if _fits(size, config, images)]
    if batches:
        yield "batch_size", _one_of(config.batch_size, *batches)
    if config.queue is None and config.loss in ("nt_xent", "dcl"):
        yield "loss", OneOf(("dcl", "nt_xent"))


def _fits(size: int, config: PretrainConfig, images: int) -> bool:
    least = config.micro_batch_size or 2
    return least <= size and FEWEST_STEPS * size <= images


def _range(present: float, low: float, high: float, log: bool = False) -> Range:
    return Range(min(low, present), max(high, present), log)


def _one_of(present: Value, *others: Value) -> OneOf:
    values = {float(f"{one:.3g}") if isinstance(one, float) else one for one in others} | {present}
    return OneOf(tuple(sorted(values, key=lambda one: (isinstance(one, str), one))))


def _read(config: PretrainConfig, key: str) -> Value:
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    value: Value = found[0] if key == LOWEST_CROP else found
    return value
