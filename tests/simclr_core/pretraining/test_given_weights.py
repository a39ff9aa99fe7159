"""Pretraining that begins with weights from elsewhere: where they come from, how they are adapted, what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision.models

from deploy.artifact import publish, sha256
from simclr_core.config import PretrainConfig
from simclr_core.data.shards import read_card
from simclr_core.errors import AdaptationError, InitialError, WeightsError
from simclr_core.evaluation import linear_eval
from simclr_core.lars import parameter_groups
from simclr_core.launch import Member
from simclr_core.model.encoder import build_encoder
from simclr_core.model.layer_rates import layer_rates, layers_of, split_by_rate
from simclr_core.model.model_directory import load_model
from simclr_core.params import read_block
from simclr_core.pretraining import early_stopping, initial, pretrain
from simclr_core.pretraining.checkpoint import TrainingState
from simclr_core.pretraining.early_stopping import AdaptationAlarm
from simclr_core.weights import weights_source
from tests.simclr_core.conftest import configure, interrupt, metrics_of, results, runs

pytestmark = pytest.mark.usefixtures("pictures_by_digest")

ALONE = Member(0, 1, torch.device("cpu"))
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
GIVEN = {"source": "given.safetensors", "mean": MEAN, "std": STD}
SHORT = {"epochs": 1, "learning_rate_share": 0.5, "warmup_epochs": 0.0}
NAME = "resnet18-f37072fd.pth"  # of torchvision's ResNet18_Weights.IMAGENET1K_V1


def put_weights(workspace: Path, seed: int = 5, name: str = "given.safetensors") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state = build_encoder("resnet10", 0.125, "compact").backbone.state_dict()
    (workspace / "weights").mkdir(exist_ok=True)
    safetensors.torch.save_file({f"module.{name}": one for name, one in state.items()}, workspace / "weights" / name)
    return state


def config_of(workspace: Path) -> PretrainConfig:
    return read_block(workspace / "params.yaml", "pretrain", PretrainConfig)


@pytest.fixture
def workspace(prepared: Path) -> Path:
    put_weights(prepared)
    configure(prepared, init="weights", weights=GIVEN, warm_start=SHORT, epochs=4)
    return prepared


def test_the_start_is_the_file_with_its_hash_and_normalization(workspace: Path) -> None:
    initial.run(workspace)
    state = put_weights(workspace)
    folder = workspace / "models" / "initial"
    card = json.loads((folder / "initial.json").read_text())
    digest = sha256(workspace / "weights" / "given.safetensors")
    assert (card["init"], card["sha256"], card["missing"]) == ("weights", digest, {})
    model = load_model(folder / "pretrained")
    assert all(torch.equal(model.encoder.backbone.state_dict()[name], tensor) for name, tensor in state.items())
    start = initial.read_start(workspace, config_of(workspace))
    assert str(start) == f"weights given.safetensors ({digest[:12]})"
    assert start.statistics == (tuple(MEAN), tuple(STD))
    inputs = pretrain.read_inputs(workspace)
    assert (inputs.card.mean, inputs.card.std) == (tuple(MEAN), tuple(STD))
    assert read_card(workspace / "data" / "prepared").mean != tuple(MEAN)


def test_another_file_is_another_run(workspace: Path) -> None:
    keys = []
    for seed in (5, 6, 5):
        put_weights(workspace, seed)
        initial.run(workspace)
        keys.append(pretrain.read_inputs(workspace).key)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.seconds
def test_training_begins_with_them_and_what_is_served_keeps_their_normalization(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial.run(workspace)
    seen: dict[str, Any] = {}
    loop = pretrain.train

    def noted(learner: Any, batches: Any, observers: Any, schedule: Any, *rest: Any, **keywords: Any) -> Any:
        seen["encoder"] = {name: one.clone() for name, one in learner.network[0].backbone.state_dict().items()}
        seen["schedule"] = schedule
        return loop(learner, batches, observers, schedule, *rest, **keywords)

    monkeypatch.setattr(pretrain, "train", noted)
    pretrain.run(workspace)
    state = put_weights(workspace)
    assert all(torch.equal(seen["encoder"][name], tensor) for name, tensor in state.items())
    assert (seen["schedule"].epochs, seen["schedule"].peak) == (1, 0.5 * 0.1 * 16 / 256)
    model = load_model(workspace / "models" / "pretrained")
    assert (model.card["mean"], model.card["std"]) == (MEAN, STD)
    assert model.card["init"] == metrics_of(workspace)["init"] == str(pretrain.read_inputs(workspace).start)
    assert not torch.equal(model.encoder.backbone.state_dict()["conv1.weight"], state["conv1.weight"])
    check_a_champion_passes_the_normalization_on(workspace)
    check_evaluation_has_a_row_for_the_unadapted_weights(workspace)


def check_a_champion_passes_the_normalization_on(workspace: Path) -> None:
    champion = workspace / "models" / "champion"
    with publish(champion, replace=True) as work:
        (work / "champion.json").write_text('{"version": "v0.0.1"}', encoding="utf-8")
        shutil.copytree(workspace / "models" / "pretrained", work / "pretrained")
    before = (workspace / "params.yaml").read_text(), (workspace / "models" / "initial").rename(workspace / "kept")
    configure(workspace, init="champion")
    initial.run(workspace)
    assert initial.read_start(workspace, config_of(workspace)).statistics == (tuple(MEAN), tuple(STD))
    (workspace / "params.yaml").write_text(before[0])
    shutil.rmtree(workspace / "models" / "initial")
    (workspace / "kept").rename(workspace / "models" / "initial")


def check_evaluation_has_a_row_for_the_unadapted_weights(workspace: Path) -> None:
    linear_eval.run(workspace)
    report = json.loads((workspace / "reports" / "linear_eval.json").read_text())
    # The oracle: the same weights as the trained encoder of another workspace.
    trained, own = workspace / "models" / "pretrained", workspace / "models" / "initial" / "pretrained"
    shutil.rmtree(trained)
    shutil.copytree(own, trained)
    linear_eval.run(workspace)
    again = json.loads((workspace / "reports" / "linear_eval.json").read_text())
    assert report["start"] == again["simclr"] == again["start"]
    assert (
        set(report["paired"]["knn"]) == set(report["paired"]["probe"]) == {"random_init", "pixels", "majority", "start"}
    )
    assert again["paired"]["probe"]["start"] == {"trained_only": [0], "baseline_only": [0]}


@pytest.mark.seconds
def test_interrupted_it_ends_with_the_same_bytes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {**GIVEN, "layer_decay": 0.5, "frozen_stem": True}
    configure(workspace, weights=weights, warm_start={**SHORT, "epochs": 2})
    initial.run(workspace)
    pretrain.run(workspace)
    expected = results(workspace)
    shutil.rmtree(workspace / "models" / "pretrained")
    interrupt(workspace, monkeypatch, "pretrain.step:raise@8")
    assert runs(workspace)
    pretrain.run(workspace)
    assert results(workspace) == expected
    encoder = load_model(workspace / "models" / "pretrained").encoder
    start = load_model(workspace / "models" / "initial" / "pretrained").encoder
    now, then = encoder.backbone.state_dict(), start.backbone.state_dict()
    assert torch.equal(now["conv1.weight"], then["conv1.weight"])
    assert torch.equal(now["bn1.weight"], then["bn1.weight"])
    assert not torch.equal(now["layer1.0.conv1.weight"], then["layer1.0.conv1.weight"])


def test_a_changed_choice_asks_for_the_stage_before(workspace: Path) -> None:
    initial.run(workspace)
    for changes, reason in (
        ({"init": "scratch"}, "begins from weights given.safetensors .*, but pretrain.init is scratch"),
        (
            {"init": "weights", "image_size": 24},
            "pretrain.image_size is 24, that of the weights 16; run `simclr run --select",
        ),
    ):
        configure(workspace, **changes)
        with pytest.raises(InitialError, match=reason):
            initial.read_start(workspace, config_of(workspace))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"source": "other.pth"}, r"other\.pth: does not exist \(the folder has given\.safetensors\); copy the file"),
        ({"source": "given.safetensors"}, "nothing says how the pixels of resnet10 were normalized; give pretrain.wei"),
        (
            {"source": "torchvision:Nothing.V1"},
            "torchvision has no weights 'Nothing.V1'; give one such as torchvision:",
        ),
        ({"source": "link"}, "is a link to a file elsewhere, which DVC does not watch; copy the file itself"),
        ({"source": "broken"}, "is neither safetensors, nor"),
    ],
)
def test_what_cannot_be_used_is_refused(workspace: Path, weights: dict[str, str], reason: str) -> None:
    outside = workspace.parent / "outside.safetensors"
    shutil.copy(workspace / "weights" / "given.safetensors", outside)
    if weights["source"] == "link":
        (workspace / "weights" / "link").symlink_to(outside)
    if weights["source"] == "broken":
        (workspace / "weights" / "broken").write_bytes(b"<html>")
    configure(workspace, weights=weights)
    with pytest.raises((WeightsError, InitialError), match=reason):
        initial.run(workspace)
    assert not (workspace / "models" / "initial" / "pretrained").exists()


def test_the_folder_of_a_workspace_brings_its_own_card(workspace: Path) -> None:
    initial.run(workspace)
    folder = workspace / "weights" / "fashion"
    shutil.copytree(workspace / "models" / "initial" / "pretrained", folder)
    configure(workspace, weights={"source": "fashion"})
    initial.run(workspace)
    card = json.loads((workspace / "models" / "initial" / "initial.json").read_text())
    assert card["normalization"] == {"mean": MEAN, "std": STD, "side": 16, "origin": "fashion/model.json"}
    (folder / "encoder.safetensors").write_bytes(b"{")
    with pytest.raises(WeightsError, match="is not a whole models/pretrained of a workspace"):
        initial.run(workspace)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_without_a_network_it_says_what_to_run_and_where_to_put_the_file(
    workspace: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", away)
    expected = (
        rf"cannot be downloaded here \(Network is unreachable\); .* run `curl -LO https://.*/{NAME}`, and put {NAME} "
    )
    with pytest.raises(WeightsError, match=expected):
        weights_source.locate(workspace, "torchvision:ResNet18_Weights.IMAGENET1K_V1")
    assert list(cache.iterdir()) == []


def test_torchvision_downloads_into_its_cache_once(
    workspace: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(url: str, target: str, prefix: str, progress: bool) -> None:
        asked.append((url.rpartition("/")[2], prefix))
        torch.save(torchvision.models.resnet18().state_dict(), target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    source = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    for _ in range(2):
        assert weights_source.locate(workspace, source) == cache / NAME
    assert asked == [(NAME, "f37072fd")]
    with pytest.raises(WeightsError, match="torchvision's file begins with f37072fd; remove it and get it again"):
        weights_source.read_public_weights(workspace, source, "resnet18")
    (workspace / "weights" / NAME).write_bytes(b"put here by a person")
    assert weights_source.locate(workspace, source) == workspace / "weights" / NAME


def test_cards_of_torchvision_and_timm() -> None:
    card = weights_source.find_card("torchvision:ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", "vit_b_16")
    assert card is not None
    assert (card.side, card.mean) == (384, (0.485, 0.456, 0.406))
    card = weights_source.find_card("x.pth", "resnet50")
    assert card is not None
    assert (card.side, card.origin) == (224, "torchvision's own weights of resnet50")
    assert weights_source.find_card("x.pth", "resnet10") is None
    pytest.importorskip("timm")
    card = weights_source.find_card("x.pth", "timm/vit_tiny_patch16_224")
    assert card is not None
    assert (card.mean, card.std, card.side) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)


@pytest.mark.seconds
@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "alexnet"])
def test_layers_are_every_parameter_once_in_order(name: str) -> None:
    encoder = build_encoder(name, image_size=64)
    layers = layers_of(encoder)
    assert [id(one) for layer in layers for one in layer] == [id(one) for one in encoder.backbone.parameters()]
    assert len(layers) == {"resnet18": 9, "vit_b_32": 13, "alexnet": 7}[name]
    rates = layer_rates(encoder, 0.5)
    assert rates[id(layers[-1][0])] == 1
    assert rates[id(layers[0][0])] == 0.5 ** (len(layers) - 1)


def test_a_layer_moves_by_its_own_rate() -> None:
    """With plain SGD a step is rate x gradient: the oracle is the step without decay, scaled layer by layer."""
    steps = []
    for decay in (1.0, 0.5):
        torch.manual_seed(0)
        network = torch.nn.Sequential(build_encoder("resnet10", 0.125, "compact"), torch.nn.Linear(64, 3))
        groups = split_by_rate(parameter_groups([network], 0.0), layer_rates(network[0], decay))
        optimizer = torch.optim.SGD(groups, lr=0.0)
        before = [one.detach().clone() for one in network.parameters()]
        network(torch.ones(4, 3, 16, 16) * torch.rand(4, 1, 1, 1)).flatten(1).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * group["rate"]
        optimizer.step()
        steps.append([new.detach() - old for new, old in zip(network.parameters(), before, strict=True)])
        rates = layer_rates(network[0], decay)
        factors = [rates.get(id(one), 1.0) for one in network.parameters()]
    for plain, scaled, factor in zip(*steps, factors, strict=True):
        assert torch.allclose(plain * factor, scaled, atol=1e-7)
    assert min(factors) == 0.5**4
    assert factors[-1] == 1


def history(*accuracies: float) -> list[Any]:
    return [{"epoch": n, "knn_top1": one, "probe_top1": one} for n, one in enumerate(accuracies, 1)]


def state(*accuracies: float) -> TrainingState:
    return TrainingState(9, {}, {}, history(*accuracies), [])


def test_the_alarm_is_raised_when_enough_epochs_in_a_row_are_worse_beyond_chance() -> None:
    alarm = AdaptationAlarm(2, {"knn_top1": 80.0, "probe_top1": 80.0}, 1000)
    margin = early_stopping.STANDARD_ERRORS * 100 * math.sqrt(2 * 0.78 * 0.22 / 1000)
    assert 2.5 < margin < 3.5
    for fine in ((), (70.0,), (70.0, 79.0), (70.0, 70.0, 79.0), (78.0, 78.0), (90.0, 90.0)):
        alarm.judge(state(*fine), ALONE)
    with pytest.raises(
        AdaptationError, match=r"epoch 3: kNN 71.0 % and probe 71.0 % of .*, 80.0 % and 80.0 % with the un"
    ):
        alarm.judge(state(79.0, 70.0, 71.0), ALONE)
    AdaptationAlarm(2, {"knn_top1": None, "probe_top1": None}, 0).judge(state(1.0, 1.0), ALONE)  # without labels
    one_worse = [{"epoch": n, "knn_top1": 60.0, "probe_top1": 81.0} for n in (1, 2)]
    alarm.judge(TrainingState(9, {}, {}, one_worse, []), ALONE)  # type: ignore[arg-type]


@pytest.mark.seconds
def test_training_stops_when_it_makes_them_worse(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected: the unchanged weights are perfect, so that whatever is learned is worse."""
    configure(workspace, weights={**GIVEN, "stop_after": 2}, warm_start={**SHORT, "epochs": 4})
    initial.run(workspace)
    perfect = {"knn_top1": 100.0, "probe_top1": 100.0}
    watch = pretrain.watch_adaptation
    monkeypatch.setattr(
        pretrain,
        "watch_adaptation",
        lambda *given: AdaptationAlarm(2, perfect, 10**6) if watch(*given) else None,
    )
    for _ in range(2):  # again at once, from the checkpoint
        with pytest.raises(
            AdaptationError, match=r"epoch 2: .* worse for 2 epochs in a row\. Lower pretrain\.warm_start"
        ):
            pretrain.run(workspace)
    assert not (workspace / "models" / "pretrained").exists()


def _train_on_rank(rank: int, workspace: Path) -> dict[str, torch.Tensor]:
    inputs = pretrain.read_inputs(workspace)
    member = Member(rank, 2, torch.device("cpu"))
    batches = inputs.batches(member)
    learner, _ = pretrain.build(inputs, batches)
    for views in batches.network_inputs(0, 3):
        pretrain_step(learner, views)
    return {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}


def pretrain_step(learner: Any, views: torch.Tensor) -> None:
    from simclr_core.pretraining.training import gradients, update

    gradients(learner, views, 0)
    update(learner, 0.01)


@pytest.mark.seconds
def test_two_processes_adapt_the_same_weights_as_one(workspace: Path, on_ranks: Callable[..., list[Any]]) -> None:
    configure(workspace, weights={**GIVEN, "layer_decay": 0.5, "frozen_stem": True})
    initial.run(workspace)
    first, second = on_ranks(2, _train_on_rank, workspace)
    inputs = pretrain.read_inputs(workspace)
    batches = inputs.batches(ALONE)
    learner, _ = pretrain.build(inputs, batches)
    for views in batches.network_inputs(0, 3):
        pretrain_step(learner, views)
    for name, tensor in learner.network.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name].float(), tensor.float(), atol=1e-4), name
