"""Choosing in a workspace: which images can be chosen, of near copies and groups one, and which way needs labels."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from simclr_core.data.shards import ShardedImages, read_card
from simclr_core.errors import LabelError, NonFiniteFeaturesError
from simclr_core.evaluation import linear_eval
from simclr_core.suggest import WAYS, By
from simclr_core.suggest import choose as module
from simclr_core.suggest.choose import Inputs, choose
from simclr_core.suggest.pool import open_pool
from tests.conftest import write_prepared
from tests.simclr_core.conftest import put_groups, put_label_sets, put_pretrained, relabel

UNLABELED = 48  # of 96 training images; the others have one of four classes


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(put_pretrained(write_prepared(tmp_path_factory.mktemp("evaluated"))))


def evaluate(workspace: Path) -> Path:
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["linear_eval"] |= {"fractions": ["1.0"], "labels_per_class": [], "draws": 1, "l2_count": 2}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    linear_eval.run(workspace)
    return workspace


def put_near_copies(workspace: Path, *sets: list[int]) -> None:
    """The manifest of a data set in which the images of each list look nearly alike."""
    images = ShardedImages(workspace / "data" / "prepared" / "train")
    names = {images.key(one): images.key(min(of)) for of in sets for one in of}
    keys = [images.key(one) for one in range(len(images))]
    folder = workspace / "data" / "manifest" / "manifest"
    folder.mkdir(parents=True)
    pl.DataFrame({"sha256": keys, "near_group": [names.get(one) for one in keys]}).write_parquet(folder / "0.parquet")


def unlabeled_of(workspace: Path) -> list[int]:
    return np.flatnonzero(ShardedImages(workspace / "data" / "prepared" / "train").labels < 0).tolist()


@pytest.mark.parametrize("by", WAYS)
def test_each_way_chooses_the_same_images_again(evaluated: Path, by: By) -> None:
    found = choose(evaluated, by, 7)
    assert found == choose(evaluated, by, 7)
    positions = [one.position for one in found.images]
    images = ShardedImages(evaluated / "data" / "prepared" / "train")
    assert [one.sha256 for one in found.images] == [images.key(one) for one in positions]
    assert len(set(positions)) == len(positions)
    classes = read_card(evaluated / "data" / "prepared").classes
    assert {one.guess for one in found.images} <= set(classes)
    if by == "mistakes":
        assert [one.label for one in found.images] == [classes[images.labels[one]] for one in positions]
        assert all(one.guess != one.label for one in found.images)
    else:
        assert set(positions) <= set(unlabeled_of(evaluated))
        assert (len(positions), found.pool, found.labeled, found.fewer) == (7, UNLABELED, 48, "")


def test_a_budget_above_what_there_is(evaluated: Path) -> None:
    found = choose(evaluated, "typical", 100)
    assert sorted(one.position for one in found.images) == unlabeled_of(evaluated)
    assert found.fewer == "there are no more unlabeled training images"
    mistakes = choose(evaluated, "mistakes", 100)
    assert len(mistakes.images) < 48
    assert mistakes.fewer == "no other label is suspected"


def test_flipped_labels_are_suspected(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array(ShardedImages(pretrained / "data" / "prepared" / "train").labels)
    noise = np.random.default_rng(0).normal(scale=0.3, size=(96, 4))
    features = (np.eye(4)[labels] + noise).astype(np.float32)  # of an encoder that parts the classes
    monkeypatch.setattr(Inputs, "features", lambda _, images: features[images.positions])
    flipped = np.flatnonzero(labels >= 0)[[3, 30]]
    right = labels[flipped]
    labels[flipped] = (right + 1) % 4
    relabel(pretrained, "train", labels)
    found = choose(pretrained, "mistakes", 2).images
    classes = read_card(pretrained / "data" / "prepared").classes
    assert {one.position: one.guess for one in found} == {
        one: classes[label] for one, label in zip(flipped.tolist(), right, strict=True)
    }


@pytest.mark.seconds
@pytest.mark.parametrize("by", ["typical", "diverse", "uncertain", "novel"])
def test_a_group_gives_one_image(pretrained: Path, by: By) -> None:
    put_groups(pretrained, np.arange(96) % 4)
    found = choose(evaluate(pretrained), by, 10)
    assert sorted(one.position % 4 for one in found.images) == [0, 1, 2, 3]
    assert found.fewer == "the unlabeled images are of 4 groups of labels.csv, and each gives one"


def test_one_of_near_copies_can_be_chosen_and_none_of_a_labeled_image(pretrained: Path) -> None:
    unlabeled = unlabeled_of(pretrained)
    images = ShardedImages(pretrained / "data" / "prepared" / "train")
    labeled = sorted((one for one in range(96) if one not in unlabeled), key=images.key)
    copies = [unlabeled[5], labeled[0]], [unlabeled[6], labeled[-1]]  # whichever has the smaller SHA-256
    put_near_copies(pretrained, unlabeled[:3], *copies)
    chosen = {one.position for one in choose(pretrained, "diverse", 96).images}
    smallest = min(unlabeled[:3], key=images.key)
    assert chosen == {*unlabeled[7:], unlabeled[3], unlabeled[4], smallest}


def test_the_pool_without_labels(pretrained: Path) -> None:
    relabel(pretrained, "train", np.full(96, -1))
    pool = open_pool(ShardedImages(pretrained / "data" / "prepared" / "train"), {})
    assert len(pool.labeled) == 96
    assert not pool.labeled.any()


@pytest.mark.parametrize("by", ["typical", "diverse", "novel"])
def test_ways_that_need_no_label(pretrained: Path, by: By) -> None:
    relabel(pretrained, "train", np.full(96, -1))
    found = choose(pretrained, by, 5)
    assert [one.guess for one in found.images] == [""] * 5
    assert found.labeled == 0


@pytest.mark.parametrize("classes", [0, 1])
def test_ways_that_need_labels_of_two_classes(pretrained: Path, classes: int) -> None:
    relabel(pretrained, "train", np.where(np.arange(96) < 20 * classes, 0, -1))
    with pytest.raises(LabelError, match="uncertain needs a linear probe"):
        choose(pretrained, "uncertain", 5)
    with pytest.raises(LabelError, match="two classes have two labeled"):
        choose(pretrained, "mistakes", 5)


def test_with_every_label_there_is_nothing_to_choose(pretrained: Path) -> None:
    relabel(pretrained, "train", np.arange(96) % 4)
    with pytest.raises(LabelError, match="every training image has a label"):
        choose(pretrained, "typical", 5)


def test_an_encoder_that_gives_no_numbers_is_refused(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "made_of", lambda *_: {"features": np.full((96, 8), np.nan, np.float32)})
    with pytest.raises(NonFiniteFeaturesError, match="not finite"):
        choose(pretrained, "typical", 5)


def test_a_probe_of_other_classes_is_refused(evaluated: Path, pretrained: Path) -> None:
    (pretrained / "models" / "probe").symlink_to(evaluated / "models" / "probe")
    card = pretrained / "data" / "prepared" / "dataset.json"
    card.write_text(card.read_text().replace("circle", "ring"))
    with pytest.raises(LabelError, match="models/probe has the classes"):
        choose(pretrained, "typical", 5)


@pytest.mark.seconds
def test_images_with_several_labels(pretrained: Path) -> None:
    put_label_sets(pretrained)
    found = choose(evaluate(pretrained), "uncertain", 5)
    assert found.multi_label
    assert all("the probe is unsure of" in one.why for one in found.images)
    assert all(
        set(one.guess.split("|")) <= {*read_card(pretrained / "data" / "prepared").classes, "-"} for one in found.images
    )
    with pytest.raises(LabelError, match="an image may have several"):
        choose(pretrained, "mistakes", 5)
