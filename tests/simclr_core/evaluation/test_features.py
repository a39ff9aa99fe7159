"""Features are the raw h of the encoder in evaluation mode, in the order of the images."""

import numpy as np
import torch
from torch import nn

from simclr_core.evaluation.features import encode, normalize
from simclr_core.model.encoder import build_encoder

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_normalize_is_the_formula_channel_by_channel() -> None:
    images = pixels(2)
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    normalized = normalize(torch.from_numpy(images), MEAN, STD).numpy()
    np.testing.assert_allclose(normalized, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_features_are_the_encoders_output_one_image_at_a_time() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet10", 0.125, "compact")
    images = pixels(7)
    features = encode(encoder, images, MEAN, STD, batch_size=3).numpy()
    encoder.eval()
    with torch.no_grad():
        alone = [encoder(normalize(torch.from_numpy(image[None]), MEAN, STD))[0].numpy() for image in images]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.stack(alone), atol=1e-5)
    assert not np.allclose(np.linalg.norm(features, axis=1), 1)


def test_modes_and_statistics_of_every_module_are_left_as_they_were() -> None:
    encoder = build_encoder("resnet10", 0.125, "compact").train()
    encoder.backbone.bn1.eval()  # frozen on purpose, while the rest trains
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = [module.training for module in encoder.modules()]
    encode(encoder, pixels(4), MEAN, STD)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_modes_are_restored_when_the_encoder_fails() -> None:
    class Failing(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory")

    encoder = Failing(2, 2).train()
    try:
        encode(encoder, pixels(1), MEAN, STD)
    except RuntimeError:
        assert encoder.training
    else:
        raise AssertionError("the error was hidden")


def test_no_images_give_no_rows_of_the_right_width() -> None:
    encoder = build_encoder("resnet10", 0.125, "compact")
    assert encode(encoder, pixels(0), MEAN, STD).shape == (0, encoder.feature_dim)


def test_channels_at_full_depth_are_scaled_by_theirs() -> None:
    images = np.random.default_rng(0).integers(0, 65_536, (2, 4, 4, 5), np.uint16)
    mean, std = np.linspace(0.1, 0.5, 5), np.linspace(0.2, 0.3, 5)
    expected = (images / 65_535 - mean) / std
    found = normalize(torch.from_numpy(images), mean.tolist(), std.tolist()).numpy()
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-6)
