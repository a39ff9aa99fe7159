"""What is known before a run is said before it: what this machine lacks, and for what there are too few images."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import params
from pipeline.dvc.client import execute
from pipeline.environment import SIGNING_KEY_FILE
from pipeline.errors import ParamsError
from pipeline.ingest.ingest import ingest
from pipeline.params import BLOCKS, Params
from pipeline.preflight import minimums, requirements
from pipeline.preflight.images import Images, ingested
from pipeline.workspace import Workspace
from simclr_core.data import label_sets
from simclr_core.evaluation.paired_comparison import lower_bound
from simclr_core.model.encoder import build_encoder
from simclr_core.pretraining import initial
from tests.conftest import draw, encode
from tests.pipeline.conftest import make_key, put
from tests.processes.programs import needs_ssh_keygen


def picture(number: int) -> bytes:
    return encode(draw(number % 4, number))


UNLABELED: list[str | None] = [None] * 1000


def images(train: list[str | None], test: list[str | None], *batches: int) -> Images:
    sizes = batches or (len(train),)
    return Images(Counter(train), Counter(test), Counter({f"{n:04d}": size for n, size in enumerate(sizes, 1)}))


def described(*of: object, released: bool = False) -> list[str]:
    """The sentences of ``minimums`` that are not reached, with every parameter's default."""
    given = images(*of)  # type: ignore[arg-type]
    defaults = Params(**{name: block() for name, block in BLOCKS.items()})  # type: ignore[arg-type]
    rows = minimums.minimums(given, defaults, released)
    return [str(one) for one in rows if one.found < one.least]


def test_a_workspace_as_it_is_made_lacks_nothing(workspace: Workspace) -> None:
    assert requirements.unmet(workspace, params.read(workspace)) == []
    requirements.apply(workspace, {})


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"release.require_remote": "true"}, ["release.require_remote is true", "dvc remote add --default NAME URL"]),
        ({"watch.trackers": "[wandb]"}, ["watch.trackers names wandb, which is not installed", "pip install"]),
        ({"watch.trackers": "[wandb, mlflow]"}, ["names wandb", "names mlflow"]),
        ({"validate.engine": "ray"}, ["validate.engine is ray, which is not installed", "pip install"]),
    ],
)
def test_what_is_missing_is_refused_with_the_fix_and_not_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], names: list[str]
) -> None:
    monkeypatch.setattr("simclr_core.monitoring.trackers.find_spec", lambda _: None)
    monkeypatch.setattr("pipeline.preflight.requirements.find_spec", lambda _: None)
    before = workspace.params.read_text()
    with pytest.raises(ParamsError) as refused:
        requirements.apply(workspace, values)
    assert all(name in str(refused.value) for name in names)
    assert workspace.params.read_text() == before


@needs_ssh_keygen
@pytest.mark.seconds
def test_a_key_that_cannot_sign_releases_is_refused_and_never_repeated(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(tmp_path / "key")
    given = {
        "~no-such-user/key": f"^{SIGNING_KEY_FILE}: ~no-such-user/key: no home folder of ~no-such-user",
        key.read_text().replace("/", "+"): f"^{SIGNING_KEY_FILE}: the key is not a file; give the path",
        str(make_key(tmp_path / "locked", "a passphrase")): "locked: ssh-keygen cannot sign with it .*passphrase",
        str(
            make_key(workspace.root / "inside")
        ): "inside: is in the workspace, whose files are committed; move the key",
    }
    for value, message in given.items():
        monkeypatch.setenv(SIGNING_KEY_FILE, value)
        with pytest.raises(ParamsError, match=message) as refused:
            requirements.apply(workspace, {})
        assert key.read_text().splitlines()[1] not in str(refused.value)
    monkeypatch.setenv(SIGNING_KEY_FILE, str(key))
    requirements.apply(workspace, {})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ParamsError, match=": signatures need ssh-keygen of OpenSSH; install"):
        requirements.apply(workspace, {})


@pytest.mark.seconds
def test_with_a_remote_none_is_missing(workspace: Workspace, tmp_path: Path) -> None:
    execute(workspace.root, "remote", "add", "--default", "here", str(tmp_path / "remote"))
    requirements.apply(workspace, {"release.require_remote": "true"})
    assert params.read(workspace).release.require_remote


def test_with_enough_images_there_is_nothing_to_warn_of() -> None:
    labels = ["a", "b"] * 100
    assert described(labels + UNLABELED, labels, released=True) == []
    assert described(labels + UNLABELED, labels, 1100, 100, released=True) == []


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([None] * 20, ["a"], ["pretraining cannot begin", "only 20 training images, and validate.min_images needs 64"]),
        ([None] * 20, ["a"], ["only 21 images, and the usual proof needs 32: export compares"]),
        (UNLABELED, ["a"], ["no labeled training images, and measuring accuracy needs 1: the encoder will be trained"]),
        (["a", "b", *UNLABELED], [], ["no labeled test images, and measuring accuracy needs 1: the encoder will be"]),
        (["a", "b"] * 2, [], ["test images, and measuring accuracy needs 1: accuracy is estimated", "kNN needs 20"]),
        (["a", *UNLABELED], ["a"], ["only 1 class of labeled training images ('a'), and measuring accuracy needs 2"]),
        (["a", "b", *UNLABELED], ["a"], ["only 2 labeled training images, and kNN needs 20", "calibration needs 30"]),
    ],
)
def test_each_minimum_that_is_not_reached_says_what_follows(
    train: list[str | None], test: list[str | None], expected: list[str]
) -> None:
    found = " | ".join(described(train, test))
    assert all(one in found for one in expected)


def test_too_few_test_images_for_the_gate_are_a_warning_once_there_is_a_champion() -> None:
    labels = ["a", "b"] * 50
    assert described(labels + UNLABELED, ["a"] * 80) == []
    (only,) = described(labels + UNLABELED, ["a"] * 80, released=True)
    assert only.startswith("only 80 labeled test images, and the gate representation needs 133: even a candidate that")


@pytest.mark.parametrize(("max_loss", "confidence"), [(0.02, 0.95), (0.05, 0.9), (0.001, 0.99), (1.0, 0.95)])
def test_the_fewest_images_for_the_gate_are_those_at_which_its_bound_passes(max_loss: float, confidence: float) -> None:
    least = minimums.images_for_proof(max_loss, confidence)
    assert lower_bound(least, 0, 0, confidence) > -max_loss
    assert least == 1 or not lower_bound(least - 1, 0, 0, confidence) > -max_loss


def test_a_small_batch_is_reported_to_go_without_the_checks_of_drift() -> None:
    labels = ["a", "b"] * 100
    found = described(labels + UNLABELED, labels, 1188, 12, released=True)
    assert [one.partition(",")[0] for one in found] == ["only 12 new training images"] * 2
    assert ["validate.drift.min_images" in found[0], "embedding_drift.min_images" in found[1]] == [True, True]
    found = described(labels + UNLABELED, labels, 60, 1140)
    assert found == [
        "only 60 earlier training images, and twice validate.drift.min_images needs 100: drift is not checked"
    ]


def test_a_sample_too_small_for_the_check_of_drift_is_named(workspace: Workspace) -> None:
    params.override(workspace, {"embedding_drift.batch_images": "40"})
    params.override(workspace, {"embedding_drift.min_images": "50"})
    found = [one for one in minimums.warnings(workspace, images(UNLABELED, [])) if "compared" in one]
    assert found == [
        "only 40 compared images, and embedding_drift.min_images needs 50: drift is never checked; "
        "raise embedding_drift.batch_images"
    ]


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (["a", "b"] * 200, ["a", "c"], "test images are labeled 'c', and no training image is: none of these can be"),
        (["a", "b"] * 200, ["c", "d"], "test images are labeled 'c', 'd', and no training image is: no test image can"),
        (["a", "b"], ["a"], "0.1 and 1.0 of the labels are the same 2 labels"),
    ],
)
def test_labels_without_use_are_named(
    workspace: Workspace, train: list[str | None], test: list[str | None], expected: str
) -> None:
    assert any(one.startswith(expected) for one in minimums.warnings(workspace, images(train, test)))


@pytest.mark.seconds
def test_what_was_ingested_is_counted_with_its_labels_and_batches(workspace: Workspace) -> None:
    for number in range(3):
        put(workspace, f"labeled/cat/{number}.png", picture(number))
        put(workspace, f"test/dog/{number}.png", picture(10 + number))
    ingest(workspace)
    put(workspace, "unlabeled/new.png", picture(20))
    ingest(workspace)
    found = ingested(workspace)
    assert found.train == {"cat": 3, None: 1}
    assert found.test == {"dog": 3}
    assert found.batches == {"0001": 3, "0002": 1}


def test_a_class_of_which_all_images_are_quarantined_is_named() -> None:
    labels = ["a", "d", None]
    found = list(minimums.lost_classes(images(["a", None], ["b"]), labels))
    assert found == ["all images labeled 'd' are quarantined: `simclr quarantine list` says why"]
    assert list(minimums.lost_classes(images(["a", None], ["d"]), labels)) == []


GIVEN = {"pretrain.init": "weights", "pretrain.weights": "{source: w.pth, mean: [0, 0, 0], std: [1, 1, 1]}"}


def save_encoder(workspace: Workspace, width: float, seed: int = 1) -> None:
    torch.manual_seed(seed)
    torch.save(build_encoder("resnet10", width, "compact").backbone.state_dict(), workspace.root / "weights" / "w.pth")


@pytest.mark.seconds
def test_weights_are_tried_before_the_run(workspace: Workspace) -> None:
    with pytest.raises(ParamsError, match=r"w\.pth: does not exist \(the folder is empty\); copy the file there"):
        requirements.apply(workspace, GIVEN)
    save_encoder(workspace, 0.25)
    with pytest.raises(
        ParamsError, match=r"w\.pth: is not of resnet10 of width 0\.125, compact for 16 pixels, of which"
    ):
        requirements.apply(workspace, GIVEN)
    assert params.read(workspace).pretrain.init == "scratch"
    save_encoder(workspace, 0.125)
    requirements.apply(workspace, GIVEN)
    assert params.read(workspace).pretrain.init == "weights"


def test_weights_that_were_adopted_are_not_read_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    save_encoder(workspace, 0.125)
    requirements.apply(workspace, GIVEN)
    initial.run(workspace.root)
    asked: list[object] = []
    monkeypatch.setattr("simclr_core.weights.adoption.adopt", lambda *given: asked.append(given))
    requirements.apply(workspace, {})
    assert asked == []
    save_encoder(workspace, 0.125, seed=2)
    requirements.apply(workspace, {})
    assert len(asked) == 1


def test_an_older_workspace_learns_which_lines_it_needs(workspace: Workspace) -> None:
    save_encoder(workspace, 0.125)
    graph = workspace.root / "dvc.yaml"
    graph.write_text("".join(line for line in graph.read_text().splitlines(True) if "- weights" not in line))
    with pytest.raises(ParamsError, match="add `- weights` to the deps of the stage initial and `- models/initial` to"):
        requirements.apply(workspace, GIVEN)
    requirements.apply(workspace, {"pretrain.epochs": "3"})


@pytest.mark.parametrize(
    ("key", "default", "other"), [("prepare.background", "white", "black"), ("prepare.channels", "null", "5")]
)
def test_an_older_workspace_learns_what_validation_depends_on_now(
    workspace: Workspace, key: str, default: str, other: str
) -> None:
    graph = workspace.root / "dvc.yaml"
    now = graph.read_text()
    graph.write_text("".join(line for line in now.splitlines(True) if key not in line))
    requirements.apply(workspace, {key: default})
    with pytest.raises(ParamsError, match=rf"add `- {re.escape(key)}` to the params of the stage validate"):
        requirements.apply(workspace, {key: other})
    graph.write_text(now)
    requirements.apply(workspace, {key: other})


def test_a_released_encoder_for_other_channels_cannot_be_compared(workspace: Workspace) -> None:
    bundle = workspace.root / "models" / "champion" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text(json.dumps({"preprocessing": {"size": 8, "resize": 8}}))
    requirements.apply(workspace, {"prepare.channels": "null"})
    with pytest.raises(ParamsError, match=r"prepare\.channels is 5, and the released encoder takes 8-bit RGB images"):
        requirements.apply(workspace, {"prepare.channels": "5"})
    (bundle / "bundle.json").write_text(json.dumps({"preprocessing": {"size": 8, "resize": 8, "channels": 5}}))
    requirements.apply(workspace, {"prepare.channels": "5"})
    with pytest.raises(ParamsError, match="takes images with 5 channels"):
        requirements.apply(workspace, {"prepare.channels": "null"})


def test_an_encoder_of_timm_needs_the_extra(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preflight.requirements.find_spec", lambda _: None)
    encoder = {"pretrain.encoder": "{name: timm/vit_tiny_patch16_224}", "pretrain.image_size": "32"}
    with pytest.raises(ParamsError, match=r"timm is not installed; run `pip install '\.\[timm\]'`"):
        requirements.apply(workspace, {**encoder, "pretrain.resize": "32"})


def test_an_image_with_several_labels_counts_for_the_rarest_of_them() -> None:
    both = label_sets.join(["cat", "dog"])
    found = images([both, both, "cat", label_sets.NONE_OF_THEM, None], ["dog", label_sets.join(["cat", "bird"])])
    assert (found.classes, found.several, found.labeled, found.tested) == (["cat", "dog"], True, 4, 2)
    assert sorted(found.by_class) == [1, 1, 2]
    assert not images(["cat", None], ["cat"]).several


def test_test_images_with_rare_classes_count_for_fewer_in_the_gate() -> None:
    """Of one class in two hundred images and one in five, the mean of both is nearly as unsure as that of five."""
    rare = ["cat"] * 195 + [label_sets.join(["cat", "eel"])] * 5
    parts = [1 / 400] * 195 + [1 / 400 + 1 / 10] * 5
    found = images(["cat", label_sets.NONE_OF_THEM] * 40, [*rare])
    assert found.judging == int(1 / sum(part**2 for part in parts)) == 18
    assert images(["cat"] * 80, ["cat"] * 195 + ["eel"] * 5).judging == 200, "of one label each, every image counts"
    said = described(["cat", label_sets.NONE_OF_THEM] * 40, [*rare], released=True)
    assert any(
        one.startswith("only 18 effective test images, and the gate representation needs 133: each class counts the ")
        for one in said
    )
    nothing = described(["cat", label_sets.NONE_OF_THEM] * 40, [label_sets.NONE_OF_THEM] * 200, released=True)
    assert any(one.startswith("no effective test images, and the gate representation needs 133") for one in nothing)


def test_of_sets_a_class_that_is_missing_in_training_or_lost_is_named() -> None:
    found = images(["cat", label_sets.join(["cat", "dog"])], [label_sets.join(["cat", "bird"])])
    defaults = Params(**{name: block() for name, block in BLOCKS.items()})  # type: ignore[arg-type]
    assert any("test images are labeled 'bird', and" in one for one in minimums.too_few(found, defaults, False))
    lost = minimums.lost_classes(found, [label_sets.join(["dog", "fox"]), None])
    assert list(lost) == ["all images labeled 'fox' are quarantined: `simclr quarantine list` says why"]


@pytest.mark.parametrize("of", [str, lambda name: label_sets.join([name, "all"])], ids=["one label", "sets"])
def test_a_class_without_test_images_is_said_before_training(of: Callable[[str], str]) -> None:
    defaults = Params(**{name: block() for name, block in BLOCKS.items()})  # type: ignore[arg-type]

    def said(*test: str) -> list[str]:
        found = images([of("cat"), of("dog"), of("eel")] * 40, [of(name) for name in test] * 40)
        return [one for one in minimums.too_few(found, defaults, False) if "test image" in one and "stay" in one]

    total = 3 + (of("cat") != "cat")
    assert said("cat", "dog") == [
        f"1 of {total} classes has no test image ('eel'): how well it is recognized stays unknown; put some into "
        "inbox/test/<class>/, or give them the split test in labels.csv"
    ]
    assert said("dog")[0].startswith(f"2 of {total} classes have no test image ('cat', 'eel'): how well they are")
    assert said("cat", "dog", "eel") == []


def test_one_class_that_some_images_do_not_have_can_be_learned() -> None:
    said = described(["cat"] * 40 + [label_sets.NONE_OF_THEM] * 40, ["cat"] * 200)
    assert not any("class of labeled training images" in one for one in said)
    assert described([label_sets.NONE_OF_THEM] * 80, ["cat"] * 200)  # and without any class nothing breaks


def test_a_cluster_without_ray_and_a_faulty_file_are_refused_before_the_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.preflight.requirements.find_spec", lambda _: None)
    file = workspace.scratch / "compute.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("finetune: {engine: ray, workers: 2}\n")
    [missing] = requirements.unmet(workspace, params.read(workspace))
    assert missing.startswith("finetune.engine is ray, which is not installed; run")
    file.write_text("finetune: {engine: ray}\n")
    [missing] = requirements.unmet(workspace, params.read(workspace))
    assert "finetune: must have workers" in missing
