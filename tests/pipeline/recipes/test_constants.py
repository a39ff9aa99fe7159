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
from simclr_core.params import flatten

BASE = workspaces.template("params.yaml").read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = ("imagenet-r50", "cifar-r50", "cifar", "vit-small")  # of the tables of constants, in their order
SETTING = re.compile(r"`((?:prepare|pretrain|linear_eval)\.[^`]+)`")


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


CONSTANTS = [table for table in tables(PAGE) if "`pretrain." in table[0][-1]]


@pytest.mark.parametrize(("rows", "name"), list(zip(CONSTANTS, RECIPES, strict=True)), ids=RECIPES)
def test_the_table_has_the_values_of_the_recipe(rows: list[list[str]], name: str) -> None:
    assert wrong(rows, name) == []
    assert all(len(row) == 4 for row in rows)
    assert len(SETTING.findall("\n".join(row[-1] for row in rows))) >= len(rows) - 2


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


def test_the_crops_are_enlarged_as_often_as_the_page_says() -> None:
    (rows,) = (table for table in tables(PAGE) if table[0][0] == "256")
    for _, image, share, side in rows:
        height, width = map(int, image.split(" x "))
        samples = np.arange(10_000)
        sizes = np.tile([height, width], (len(samples), 1))
        boxes = Augmentation(224).draws(sizes, 0, 0, samples, 0).boxes[:, 2:]
        assert share == f"{100 * (boxes < 224).any(axis=1).mean():.0f} %"
        assert side == f"{np.quantile(np.sqrt(boxes.prod(axis=1)), 0.1):.0f}"
