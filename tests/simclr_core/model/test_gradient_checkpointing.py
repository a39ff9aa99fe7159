"""Computed twice, kept once: the same gradients, statistics moved once, names unchanged, less memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from simclr_core.errors import UnknownEncoderError
from simclr_core.model.batch_norm import synchronize
from simclr_core.model.encoder import build_encoder
from simclr_core.model.gradient_checkpointing import blocks, recompute_blocks
from tests.repetitions import repeated, some

WITHOUT_BLOCKS = {
    "alexnet",
    "inception_v3",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
}


def two(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """The same encoder, as it is and with its blocks computed twice."""
    torch.manual_seed(0)
    plain = build_encoder(name, **arguments)
    recomputed = copy.deepcopy(plain)
    assert recompute_blocks(recomputed) > 0
    return plain, recomputed


def step(encoder: nn.Module, images: Tensor) -> None:
    torch.manual_seed(1)  # for networks that draw: stochastic depth
    torch.autograd.backward(encoder(images).square().mean())


def images(side: int) -> Tensor:
    return torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.seconds
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [
        ("resnet10", {"width": 0.125, "stem": "compact"}, 16),
        ("mobilenet_v3_small", {}, 32),
        ("vit_b_32", {"image_size": 32}, 32),
        ("swin_t", {}, 32),
    ],
)
def test_gradients_and_statistics_are_the_same(name: str, arguments: dict[str, Any], side: int) -> None:
    plain, recomputed = two(name, **arguments)
    for _ in range(2):  # the second over the accumulated gradients and moved statistics of the first
        step(plain, images(side))
        step(recomputed, images(side))
    expected = dict(plain.named_parameters())
    for parameter_name, parameter in recomputed.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[parameter_name].grad, rtol=1e-6, atol=1e-6)
    # num_batches_tracked among them: a second count would be 4
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    for buffer_name, buffer in recomputed.named_buffers():
        assert torch.equal(buffer, dict(plain.named_buffers())[buffer_name]), buffer_name


def test_a_copy_is_independent() -> None:
    _, encoder = two("resnet10", width=0.125, stem="compact")
    momentum = copy.deepcopy(encoder)
    before = momentum.backbone.layer1[0].conv1.weight.clone()
    with torch.no_grad():
        encoder.backbone.layer1[0].conv1.weight.zero_()
    assert torch.equal(momentum.backbone.layer1[0].conv1.weight, before)
    step(momentum, images(16))
    assert momentum.backbone.layer1[0].conv1.weight.grad is not None
    assert encoder.backbone.layer1[0].conv1.weight.grad is None


def test_evaluation_is_the_same_and_moves_nothing() -> None:
    plain, recomputed = two("resnet10", width=0.125, stem="compact")
    with torch.no_grad():
        assert torch.equal(plain.eval()(images(16)), recomputed.eval()(images(16)))
    assert all(torch.equal(*pair) for pair in zip(plain.buffers(), recomputed.buffers(), strict=True))


def kept_bytes(encoder: nn.Module, batch: Tensor) -> int:
    """What the forward pass has allocated and not freed: the activations that wait for the backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        features = encoder(batch)
    assert features.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.events())


def test_less_memory_waits_for_the_backward_pass() -> None:
    plain, recomputed = two("resnet18", width=0.25, stem="cifar")
    assert kept_bytes(recomputed, images(32)) < 0.5 * kept_bytes(plain, images(32))


CLASSIFIERS = [name for name in torchvision.models.list_models(module=torchvision.models) if "regnet" not in name]


@repeated
@pytest.mark.slow
@pytest.mark.parametrize("name", some(CLASSIFIERS, 12))
def test_every_torchvision_classifier_has_blocks_or_is_refused(name: str) -> None:
    with torch.device("meta"):
        found = len(list(blocks(build_encoder(name))))
    assert (found == 0) == (name in WITHOUT_BLOCKS)


def test_a_network_without_blocks_is_explained() -> None:
    with torch.device("meta"):
        vgg = build_encoder("vgg11")
    with pytest.raises(UnknownEncoderError, match=r"set pretrain\.gradient_checkpointing: false"):
        recompute_blocks(vgg)


def one_of_two(rank: int) -> list[dict[str, Tensor]]:
    """Gradients and buffers of a step on half the batch: of the network as it is, and with blocks computed twice."""
    results = []
    for encoder in two("resnet10", width=0.125, stem="compact"):
        model = nn.parallel.DistributedDataParallel(synchronize(encoder), gradient_as_bucket_view=True)
        step(model, images(16)[2 * rank : 2 * rank + 2])
        gradients = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
        results.append({**gradients, **dict(encoder.named_buffers())})
    return results


@pytest.mark.slow
def test_batch_normalization_over_all_ranks_too(on_ranks: Callable[..., list[Any]]) -> None:
    for plain, recomputed in on_ranks(2, one_of_two):
        assert plain.keys() == recomputed.keys()
        for name, expected in plain.items():
            torch.testing.assert_close(recomputed[name], expected, rtol=1e-6, atol=1e-7, msg=name)
