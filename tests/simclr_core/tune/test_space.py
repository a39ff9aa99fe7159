"""Only what makes sense for the present settings is searched, and the present ones are inside the bounds."""

import pytest

from simclr_core.config import PretrainConfig
from simclr_core.tune.space import OneOf, Range, as_params, describe_space, present_values, rounded, with_values

SMALL = {"encoder": {"name": "resnet10", "width": 0.5, "stem": "compact"}, "image_size": 28, "batch_size": 256}


def config(**changes: object) -> PretrainConfig:
    return PretrainConfig.model_validate({**SMALL, **changes})


def test_the_present_values_are_in_the_space() -> None:
    given = config(temperature=2.0, augmentation={"crop_scale": (0.01, 1.0)})
    space = describe_space(given, 8000)
    for key, value in present_values(given, space).items():
        bounds = space[key]
        if isinstance(bounds, OneOf):
            assert value in bounds.values, key
        else:
            assert bounds.low <= float(value) <= bounds.high, key


@pytest.mark.parametrize(
    ("changes", "images", "absent"),
    [
        ({"queue": {"size": 256}, "loss": "info_nce"}, 8000, {"loss"}),
        ({"augmentation": {"jitter_probability": 0.0}}, 8000, {"augmentation.jitter_strength"}),
        ({"init": "champion"}, 8000, {"encoder.width", "encoder.stem", "projection_head.layers"}),
        ({"encoder": {"name": "mobilenet_v2"}}, 8000, {"encoder.width", "encoder.stem"}),
        ({"projection_head": {"layers": 1}}, 8000, {"projection_head.layers", "projection_head.width"}),
    ],
)
def test_what_makes_no_sense_is_left_out(changes: dict[str, object], images: int, absent: set[str]) -> None:
    assert not absent & describe_space(config(**changes), images).keys()
    assert absent <= describe_space(config(), 8000).keys()


def test_a_batch_leaves_eight_steps() -> None:
    assert describe_space(config(), 2048)["batch_size"] == OneOf((128, 256))
    assert describe_space(config(), 4096)["batch_size"] == OneOf((128, 256, 512))


def test_values_are_written_as_they_were_tried() -> None:
    given = config()
    values = rounded({"temperature": 0.123456, "augmentation.crop_scale": 0.31234, "loss": "dcl"})
    changed = with_values(given, values)
    assert (changed.temperature, changed.augmentation.crop_scale, changed.loss) == (0.123, (0.312, 1.0), "dcl")
    assert as_params(given, values) == {
        "pretrain.temperature": "0.123",
        "pretrain.augmentation.crop_scale": "[0.312, 1.0]",
        "pretrain.loss": '"dcl"',
    }
    assert as_params(given, present_values(given, describe_space(given, 8000))) == {}
    assert isinstance(describe_space(given, 8000)["temperature"], Range)
