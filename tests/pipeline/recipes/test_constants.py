"""The tables of docs/recipes.md: each value that they give for a recipe is the one in its file."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import workspace as workspaces
from pipeline.recipes import recipe
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import FinetuneConfig
from simclr_core.evaluation.classifier_training import Optimization
from simclr_core.evaluation.finetune import plan
from simclr_core.params import flatten, read_block

BASE = workspaces.template("params.yaml").read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
# Of the tables of constants, in their order. The second one is of fine-tuning.
RECIPES = ("imagenet-r50", "imagenet-r50", "imagenet-r50-v2", "cifar-r50", "cifar", "vit-small")
SETTING = re.compile(r"`((?:prepare|pretrain|linear_eval|finetune)\.[^`]+)`")


def tables(page: str) -> list[list[list[str]]]:
    """Rows of cells of each table, without its head."""
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    lines = [one.splitlines()[2:] for one in found]
    return [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in one] for one in lines]


def wrong(rows: list[list[str]], name: str) -> list[str]:
    """What the last column says that recipe ``name`` does not have."""
    params = yaml.safe_load(recipe.params_of(name, BASE))
    has = dict(flatten(params))
    faults = []
    for setting in SETTING.findall("\n".join(row[-1] for row in rows)):
        key, _, text = setting.partition(": ")
        for inner, value in flatten(number(yaml.safe_load(text)), name=key):
            if number(has.get(inner)) != value:
                faults.append(f"{name}: {inner} is {has.get(inner)}, the page says {value}")
    return faults


def number(value: Any) -> Any:
    """YAML reads 1e-6 as text."""
    if isinstance(value, dict):
        return {key: number(inner) for key, inner in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


CONSTANTS = [table for table in tables(PAGE) if re.match("`(?:pretrain|finetune)[.]", table[0][-1])]


@pytest.mark.parametrize(("rows", "name"), list(zip(CONSTANTS, RECIPES, strict=True)))
def test_the_table_has_the_values_of_the_recipe(rows: list[list[str]], name: str) -> None:
    assert wrong(rows, name) == []
    assert all(len(row) == 4 for row in rows)
    assert len(SETTING.findall("\n".join(row[-1] for row in rows))) >= len(rows) - 4


@pytest.mark.parametrize(
    "lie", ["`pretrain.epochs: 101`", "`pretrain.projection_head: {layers: 3}`", "`pretrain.weight_decay: 1e-5`"]
)
def test_a_wrong_value_is_found(lie: str) -> None:
    assert wrong([["a", "b", "c", lie]], "imagenet-r50")


def test_the_others_differ_from_imagenet_r50_in_what_the_page_says() -> None:
    def pretrain(name: str) -> dict[str, Any]:
        return dict(flatten(yaml.safe_load(recipe.params_of(name, BASE))["pretrain"]))

    whole, one_gpu, few = (pretrain(name) for name in ("imagenet-r50", "imagenet-r50-one-gpu", "imagenet-100"))
    assert {key for key in whole if whole[key] != one_gpu[key]} == {"micro_batch_size"}
    assert one_gpu["micro_batch_size"] == 256
    assert {key for key in whole if whole[key] != few[key]} == {
        "batch_size",
        "monitor_images",
        "monitor_every",
        "initialization.scheme",
        "initialization.without_last_beta",
    }
    assert few["batch_size"] == 256


def test_fine_tuning_has_the_constants_of_both_papers(tmp_path: Path) -> None:
    """ImageNet has 12,811 labels in 1 % and 128,116 in 10 %.

    SimCLR (Chen et al. 2020), section B.5: rate 0.8 = 0.05 * 4096 / 256, 60 and 30 epochs, no warm-up, no weight decay.
    SimCLRv2 (Chen et al. 2020b), section 3, and the README of google-research/simclr: LARS, rate 0.16 = 0.005 *
    sqrt(1024), batch 1024, 60 and 30 epochs.
    """

    def planned(name: str, **changes: object) -> list[Optimization]:
        given = yaml.safe_load(recipe.params_of(name, BASE))["finetune"] | changes
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"finetune": given}), encoding="utf-8")
        config = read_block(tmp_path / "params.yaml", "finetune", FinetuneConfig)
        return [plan(config, fraction, labels) for fraction, labels in (("0.01", 12_811), ("0.1", 128_116))]

    few, many = planned("imagenet-r50", batch_size=4096)
    assert (few, many) == (Optimization(60 * 3, 4096, 0.8, "sgd"), Optimization(30 * 31, 4096, 0.8, "sgd"))
    few, many = planned("imagenet-r50-v2")
    assert (few, many) == (Optimization(60 * 12, 1024, 0.16, "lars"), Optimization(30 * 125, 1024, 0.16, "lars"))
    assert {one.peak_rate for one in planned("imagenet-r50")} == {0.05}, "the same rate by the batch"


def test_the_crops_are_enlarged_as_often_as_the_page_says() -> None:
    (rows,) = (table for table in tables(PAGE) if table[0][0] == "256")
    for _, image, share, side in rows:
        height, width = map(int, image.split(" x "))
        samples = np.arange(10_000)
        sizes = np.tile([height, width], (len(samples), 1))
        boxes = Augmentation(224).draws(sizes, 0, 0, samples, 0).boxes[:, 2:]
        assert share == f"{100 * (boxes < 224).any(axis=1).mean():.0f} %"
        assert side == f"{np.quantile(np.sqrt(boxes.prod(axis=1)), 0.1):.0f}"
