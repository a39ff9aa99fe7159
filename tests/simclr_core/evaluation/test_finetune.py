"""Fine-tuning: the right start, the right labels, honest intervals, and a test split that chooses nothing."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn

from deploy.artifact import publish
from simclr_core.config import FinetuneConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.data.shards import ShardedImages
from simclr_core.data.shares import is_shareable
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.data.transfer import send
from simclr_core.errors import CheckpointError, LabelError
from simclr_core.evaluation import classifier_training, finetune
from simclr_core.evaluation.finetune import L2_COUNT, confidence_interval, with_head_layers
from simclr_core.evaluation.images import EvaluationImages, outputs
from simclr_core.evaluation.linear_probe import Probe, fit_probe, ranked_classes
from simclr_core.evaluation.logistic_regression import LinearHead
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import load_model, save_model
from simclr_core.model.projection_head import build_projection_head
from simclr_core.reporter import EVENTS
from tests.sentences import assert_plain
from tests.simclr_core.conftest import CARD, put_in_group, relabel
from tests.simclr_core.fake_cuda import count, fake_cuda


@pytest.fixture
def workspace(pretrained: Path) -> Path:
    return pretrained


@pytest.fixture(autouse=True)
def plain_events(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every message that the stage reports is a sentence for a person, also of one seed."""
    path = tmp_path_factory.mktemp("reported") / "events.jsonl"
    monkeypatch.setenv(EVENTS, str(path))
    yield
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        assert_plain(json.loads(line)["message"])


def report(workspace: Path, fraction: str = "0.5") -> dict[str, Any]:
    return json.loads((workspace / "reports" / f"finetune-{fraction}.json").read_text())


@pytest.mark.seconds
def test_the_report_is_the_mean_over_the_seeds(workspace: Path) -> None:
    finetune.run(workspace, "0.5")
    found = report(workspace)
    assert (found["fraction"], found["labels"], found["seeds"], found["reason"]) == ("0.5", 24, [0, 1], None)
    for prefix in ("", "scratch_"):
        values = found[f"{prefix}top1_per_seed"]
        assert len(values) == 2
        assert found[f"{prefix}top1"] == pytest.approx(np.mean(values), abs=1e-3)
        spread = abs(values[0] - values[1]) / 2  # standard error of two values
        assert found[f"{prefix}ci95"] == pytest.approx(math.tan(0.475 * math.pi) * spread, abs=1e-3)  # Cauchy
        assert found[f"{prefix}interval"] == asdict(estimate([one / 100 for one in values], 40, 24))
    assert found["scores"]["top1"]["top1"] == found["top1_per_seed"][0]
    assert {one["labels"] for one in found["scores"]["per_class"].values()} == {6}


@pytest.mark.seconds
def test_the_model_of_the_first_seed_is_saved_and_loads(workspace: Path) -> None:
    finetune.run(workspace, "0.5")
    model = load_model(workspace / "models" / "finetuned" / "0.5")
    assert model.head["weight"].shape == (4, model.encoder.feature_dim)
    assert model.head["bias"].shape == (4,)
    assert (model.card["kind"], model.card["config"]["seed"]) == ("finetuned", 0)
    assert model.card["classes"] == ["circle", "cross", "square", "stripes"]


@pytest.mark.seconds
def test_each_run_starts_at_its_encoder_and_uses_its_own_labels(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, np.ndarray, float, int]] = []
    heads: list[LinearHead | None] = []
    train = finetune.train_classifier

    def spy(start: Any, card: Any, images: Any, known: Any, augmentation: Any, optimization: Any, seed: int) -> Any:
        weight = start.encoder.backbone.conv1.weight.detach().clone()
        heads.append(start.head)
        seen.append((weight, known.positions, optimization.peak_rate, seed))
        return train(start, card, images, known, augmentation, optimization, seed)

    monkeypatch.setattr(finetune, "train_classifier", spy)
    keep(workspace, start="probe")
    finetune.run(workspace, "0.5")
    pretrained = load_model(workspace / "models" / "pretrained").encoder.backbone.conv1.weight
    (first, own, rate, seed), (scratch, same, faster, _), (again, other, _, next_seed), (fresh, *_) = seen
    assert torch.equal(first, pretrained)
    assert torch.equal(again, pretrained)  # the first run did not train the original
    assert not torch.equal(scratch, pretrained)
    assert not torch.equal(scratch, fresh)
    assert faster == rate == 0.05
    assert [head is not None for head in heads] == [True, False, True, False]  # from scratch nothing is known
    images = ShardedImages(workspace / "data" / "prepared" / "train")
    assert own.tolist() == same.tolist() == subset(images.labels, images.keys, "0.5", 0).tolist()
    assert other.tolist() == subset(images.labels, images.keys, "0.5", 1).tolist()
    assert (seed, next_seed) == (0, 1)


@pytest.mark.seconds
def test_training_starts_at_the_probe_of_the_same_labels(workspace: Path) -> None:
    """Without a step, the network answers as the probe does."""
    model = load_model(workspace / "models" / "pretrained")
    prepared = workspace / "data" / "prepared"
    train, test = (EvaluationImages.of(ShardedImages(prepared / split)) for split in ("train", "test"))
    (bank,), (queries,) = (outputs([model.encoder], split, model) for split in (train, test))

    def fit(seed: int) -> Probe:
        draw = LabelDraw("0.5", subset(train.labels, train.keys, "0.5", seed))
        return fit_probe(bank, train.labels, train.keys, 4, draw, L2_COUNT, seed)

    probe = fit(0)
    begin = classifier_training.Start(copy.deepcopy(model.encoder), probe.head)
    known = classifier_training.Labels(train.positions, train.labels, 4)
    augmentation = classifier_training.few_label_augmentation(model.card, (0.8, 1.0))
    nothing = classifier_training.Optimization(0, 8, 0.01)
    images = TrainingImages(train.images)
    network, _ = finetune.train_classifier(begin, model.card, images, known, augmentation, nothing, 0)
    (logits,) = outputs([network], test, model)
    expected = probe.head.logits(torch.from_numpy(queries)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    finetune.run(workspace, "0.5")
    found = report(workspace)
    right = [np.mean(ranked_classes(fit(seed), queries)[:, 0] == test.labels) for seed in (0, 1)]
    assert found["probe"] == asdict(estimate(right, 40, 24))


@pytest.mark.seconds
@pytest.mark.parametrize(("fraction", "labels"), [("0.1", 4), ("0.5", 24)])
def test_the_rate_does_not_shrink_with_a_batch_of_few_labels(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, fraction: str, labels: int
) -> None:
    rates = []
    train = finetune.train_classifier

    def spy(*arguments: Any) -> Any:
        rates.append((arguments[5].peak_rate, arguments[5].batch_size))
        return train(*arguments)

    monkeypatch.setattr(finetune, "train_classifier", spy)
    finetune.run(workspace, fraction)
    assert rates == [(0.05, min(8, labels))] * 4


def test_the_rate_grows_with_the_batch_where_the_parameters_say_so() -> None:
    rates = {
        scaling: finetune.plan(FinetuneConfig(learning_rate_scaling=scaling, batch_size=16), "0.1", 100).peak_rate
        for scaling in ("linear", "sqrt", "none")
    }
    assert rates == {"linear": 0.05 / 16, "sqrt": pytest.approx(0.2), "none": 0.05}


def tune_in_a_group(rank: int, workspace: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        put_in_group(patch, rank, dist.get_world_size())
        finetune.run(workspace, "0.5")


@pytest.mark.seconds
def test_processes_of_a_group_share_each_batch(
    workspace: Path, tmp_path: Path, on_ranks: Callable[..., list[Any]]
) -> None:
    """The statistics of BatchNorm and the gradients are those of the whole batch, so it ends at the same network."""
    keep(workspace, min_steps=5, epochs=1, seeds=[0])
    copies = [Path(shutil.copytree(workspace, tmp_path / name)) for name in ("alone", "shared")]
    for world, copied in enumerate(copies, 1):
        on_ranks(world, tune_in_a_group, copied)
    alone, shared = (load_model(one / "models" / "finetuned" / "0.5") for one in copies)
    for name, tensor in alone.encoder.state_dict().items():
        torch.testing.assert_close(shared.encoder.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(shared.head["weight"], alone.head["weight"], atol=1e-5, rtol=1e-3)
    for name in ("labels", "probe", "test_images"):
        assert report(copies[0])[name] == report(copies[1])[name]


@pytest.mark.parametrize(("batch", "processes", "shared"), [(64, 8, True), (63, 8, False), (8, 8, False), (3, 1, True)])
def test_a_batch_that_cannot_be_shared_equally_is_left_to_one(batch: int, processes: int, shared: bool) -> None:
    assert is_shareable(batch, processes) is shared


@pytest.mark.seconds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_a_gpu_waits_for_nothing(dtype: torch.dtype) -> None:
    with fake_cuda() as gpu:
        encoder = build_encoder("resnet10", 0.125, "compact")
        network = torch.nn.Sequential(encoder, torch.nn.Linear(encoder.feature_dim, 4)).to(gpu)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        views = torch.zeros(8, 3, 16, 16, device=gpu)

        def step() -> None:
            labels = send({"labels": np.zeros(8, np.int64)}, gpu)["labels"]
            loss = classifier_training.take_step(network, optimizer, views, labels, dtype)
            assert loss.dtype == torch.float32

        step()
        counts = count(step)
    assert (counts.blocking_copies, counts.read_backs, counts.waits) == (0, 0, 0), counts.names


@pytest.mark.seconds
def test_permuted_test_labels_change_no_weight_and_twice_is_the_same(workspace: Path) -> None:
    finetune.run(workspace, "0.5")
    target = workspace / "models" / "finetuned" / "0.5"
    weights = {name: (target / name).read_bytes() for name in ("encoder.safetensors", "head.safetensors")}
    before = report(workspace)
    finetune.run(workspace, "0.5")
    assert report(workspace) == before
    relabel(workspace, "test", np.arange(40)[::-1] % 4)
    finetune.run(workspace, "0.5")
    assert {name: (target / name).read_bytes() for name in weights} == weights


@pytest.mark.seconds
def test_training_learns_the_labels(workspace: Path) -> None:
    keep(workspace, min_steps=60)
    finetune.run(workspace, "1.0")
    found = report(workspace, "1.0")
    assert found["top1"] > 50  # chance is 25
    assert found["scratch_top1"] > 50


HEAD = {"layers": 3, "width": 24, "dim": 8}


@pytest.fixture
def with_a_head(workspace: Path) -> Path:
    """The pretrained model has a projection head of three layers, with separate statistics."""
    torch.manual_seed(7)
    encoder = build_encoder("resnet10", 0.125, "compact")
    head = build_projection_head(encoder.feature_dim, **HEAD)
    head(torch.randn(64, encoder.feature_dim))
    card = {**CARD, "config": {**CARD["config"], "projection_head": HEAD}}
    with publish(workspace / "models" / "pretrained", replace=True) as work:
        save_model(work, encoder, head.state_dict(), card)
    return workspace


def keep(workspace: Path, **values: object) -> None:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["finetune"] |= values
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize(("layers", "width"), [(0, 64), (1, 24), (2, 24), (3, 8)])
def test_the_encoder_ends_after_the_head_layer_that_was_asked_for(with_a_head: Path, layers: int, width: int) -> None:
    model = load_model(with_a_head / "models" / "pretrained")
    head = build_projection_head(64, **HEAD)
    head.load_state_dict(model.head)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = model.encoder(images)
        for number, module in enumerate(head.eval()):
            if number < 3 * layers:
                expected = module(expected)
        cut = with_head_layers(model, layers).encoder
        assert torch.equal(cut(images), expected)
    assert expected.shape == (4, width)
    assert cut.feature_dim == width


@pytest.mark.seconds
def test_kept_head_layers_are_trained_saved_and_loaded(with_a_head: Path) -> None:
    keep(with_a_head, head_layers=1, start="zero", learning_rate_scaling="linear")
    finetune.run(with_a_head, "0.5")
    before = load_model(with_a_head / "models" / "pretrained")
    model = load_model(with_a_head / "models" / "finetuned" / "0.5")
    assert model.head["weight"].shape == (4, 24)
    assert (model.encoder.feature_dim, model.card["feature_dim"], model.card["head_layers"]) == (24, 24, 1)
    assert not torch.equal(model.encoder.head[0].weight, before.head["0.weight"])
    torch.testing.assert_close(model.encoder.head[0].weight, before.head["0.weight"], atol=0.2, rtol=0)
    assert 0 <= report(with_a_head)["scratch_top1"] <= 100  # the baseline has the same layers, with fresh weights


def test_lars_scales_the_steps_of_the_encoder_alone() -> None:
    """SimCLRv2's code: eta |w| / |g| for the weights of layers; biases, BatchNorm and the classifier take g."""
    torch.manual_seed(3)
    network = nn.Sequential(build_encoder("resnet10", 0.125, "compact"), nn.Linear(64, 4))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    gradients = {name: torch.randn_like(weight) for name, weight in network.named_parameters()}
    for name, weight in network.named_parameters():
        weight.grad = gradients[name].clone()
    how = classifier_training.Optimization(1, 8, 0.16, "lars")
    classifier_training.build_optimizer(network, how).step()
    for name, weight in network.named_parameters():
        scaled = name.startswith("0.") and weight.ndim > 1
        trust = 0.001 * before[name].norm() / gradients[name].norm() if scaled else 1.0
        torch.testing.assert_close(weight.detach(), before[name] - 0.16 * trust * gradients[name])


def test_the_baseline_of_lars_is_trained_by_sgd_in_the_same_steps() -> None:
    by_lars = classifier_training.Optimization(7, 8, 0.16, "lars")
    assert classifier_training.from_scratch(by_lars) == classifier_training.Optimization(7, 8, 0.05, "sgd")
    by_sgd = classifier_training.Optimization(7, 8, 0.8)
    assert classifier_training.from_scratch(by_sgd) is by_sgd


@pytest.mark.seconds
def test_the_recipe_of_simclr_v2_trains_the_kept_layer(with_a_head: Path) -> None:
    keep(with_a_head, head_layers=1, start="zero", optimizer="lars", learning_rate=0.005, learning_rate_scaling="sqrt")
    finetune.run(with_a_head, "0.5")
    before = load_model(with_a_head / "models" / "pretrained")
    model = load_model(with_a_head / "models" / "finetuned" / "0.5")
    assert (model.card["config"]["optimizer"], model.card["head_layers"]) == ("lars", 1)
    kept, moved = before.head["0.weight"], model.encoder.head[0].weight
    assert 0 < (moved - kept).norm() / kept.norm() < 0.1


def test_params_from_before_the_choice_of_an_optimizer_mean_sgd() -> None:
    """DVC compares the block as it is in the file, so that its stages are skipped."""
    old = FinetuneConfig.model_validate({"learning_rate": 0.05, "start": "probe"})
    assert finetune.plan(old, "0.01", 80).optimizer == "sgd"


def test_more_head_layers_than_exist_are_refused(with_a_head: Path) -> None:
    keep(with_a_head, head_layers=4)
    with pytest.raises(CheckpointError, match=r"finetune\.head_layers is 4, but the projection head .* has 3"):
        finetune.run(with_a_head, "0.5")
    assert not (with_a_head / "models" / "finetuned").exists()


@pytest.mark.seconds
@pytest.mark.parametrize("split", ["train", "test"])
def test_without_labels_the_report_says_why(workspace: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    relabel(workspace, split, np.array(-1))
    finetune.run(workspace, "0.5")
    found = report(workspace)
    what = "training" if split == "train" else "test"
    assert f"no labeled {what} images" in found["reason"]
    assert capsys.readouterr().err.count("no labeled") == 1
    assert found["top1"] is found["ci95"] is found["scratch_top1"] is None
    saved = workspace / "models" / "finetuned" / "0.5"
    assert (saved / "model.json").exists() == (split == "test")
    assert (saved / "reason.json").exists() == (split == "train")


@pytest.mark.parametrize("fraction", ["0", "0.0", "1.5", "-0.1", "../0.1", "all", "1/10"])
def test_a_fraction_that_is_not_valid_is_refused(workspace: Path, fraction: str) -> None:
    with pytest.raises(LabelError, match="give a decimal above 0 and up to 1"):
        finetune.run(workspace, fraction)
    assert not (workspace / "models" / "finetuned").exists()


def test_the_interval_is_students() -> None:
    # mean 12, standard deviation 2, n 3: 4.3027 * 2 / sqrt(3)
    assert confidence_interval([10, 12, 14]) == 4.968
    assert confidence_interval([80.0, 80.0]) == 0
    assert confidence_interval([80.0]) is None
    assert confidence_interval([]) is None
