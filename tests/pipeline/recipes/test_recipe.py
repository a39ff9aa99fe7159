"""Recipes: valid, honest about where they come from, and merged without losing a key or a comment."""

import json
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import params
from pipeline import workspace as workspaces
from pipeline.recipes import recipe
from pipeline.workspace import Workspace
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import pretrain
from simclr_core.schedule import peak_learning_rate
from tests.conftest import write_prepared

BASE = workspaces.template("params.yaml").read_text(encoding="utf-8")
NAMES = (
    "auto", "cpu-small", "cifar", "cifar-r50", "icons-transparent", "imagenet-100", "imagenet-r50",
    "imagenet-r50-one-gpu", "imagenet-r50-v2", "inspection", "medical", "microscopy-medical", "photos", "photos-small",
    "stl10", "vit-small",
)  # fmt: skip
FILES = NAMES[2:]


def read(tmp_path: Path, name: str) -> params.Params:
    workspace = Workspace(tmp_path)
    workspace.params.write_text(recipe.params_of(name, BASE), encoding="utf-8")
    return params.read(workspace)


def header(name: str) -> str:
    lines = recipe.params_of(name, BASE).splitlines()
    return " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def test_the_recipes_are_listed_and_the_default_changes_nothing() -> None:
    assert tuple(recipe.recipes()) == NAMES
    assert recipe.params_of("cpu-small", BASE) == BASE


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_names_every_key(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name)
    for block, model in params.BLOCKS.items():
        assert getattr(found, block).model_fields_set == model.model_fields.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_where_it_comes_from_and_whose_numbers_it_quotes(name: str) -> None:
    text = header(name)
    assert text.startswith(f"Recipe {name}: {recipe.summaries(BASE)[name]} Source: ")
    assert ("Chen et al. 2020" in text) == (name != "auto"), "what is chosen by the images has no source yet"
    assert ("measured by `make demo`" in text.lower()) == (name == "cpu-small")
    assert ("measured here" in text) == (name not in ("auto", "cpu-small"))


Values = dict[str, Any]


def replaced(base: Values, changes: Values) -> Values:
    """``base`` with other values and no other keys; a block may stand where there is null, and the other way round."""
    assert changes.keys() <= base.keys()
    both = {key for key, value in changes.items() if isinstance(value, dict) and isinstance(base[key], dict)}
    return {
        key: replaced(value, changes[key]) if key in both else changes.get(key, value) for key, value in base.items()
    }


@pytest.mark.parametrize("name", FILES)
def test_only_the_keys_of_the_recipe_differ(name: str) -> None:
    merged, base = (yaml.safe_load(text) for text in (recipe.params_of(name, BASE), BASE))
    expected = replaced(base, yaml.safe_load((recipe.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))
    assert json.dumps(merged) == json.dumps(expected), "in the order of the base, too"


@pytest.mark.seconds
def test_the_published_protocol_is_on_where_the_published_number_is_named(tmp_path: Path) -> None:
    """SimCLR, section B.6; a block in the place of null."""
    imagenet = read(tmp_path, "imagenet-r50").linear_eval
    assert imagenet.sgd is not None
    assert (imagenet.sgd.epochs, imagenet.sgd.batch_size, imagenet.sgd.learning_rate) == (90, 4096, 0.1)
    assert {name for name in NAMES if read(tmp_path, name).linear_eval.sgd is not None} == {"imagenet-r50"}


@pytest.mark.parametrize("name", FILES)
def test_comments_and_layout_survive(name: str) -> None:
    merged = recipe.params_of(name, BASE).splitlines()
    unchanged = [line for line in BASE.splitlines()[4:] if line in merged]
    assert len(unchanged) > 0.7 * len(BASE.splitlines())
    assert merged.count("") == BASE.splitlines().count("")
    assert all(len(line) <= 120 for line in merged)
    assert "where images are gray already" in BASE
    assert "where images are gray already" not in "".join(merged), "its own reason takes the place of the description"


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_has_reasons_alone_and_the_workspace_what_the_key_means_too(name: str) -> None:
    """The meaning is generated from the description of the field, once, and stays up to a colon or semicolon."""
    meanings = set(re.findall(r"# ([^:;\n]+)", BASE))
    reasons = re.findall(r"\S +# (.+)", (recipe.FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    assert reasons
    assert [one for one in reasons if one.startswith(tuple(meanings))] == []
    merged = recipe.params_of(name, BASE)
    for reason in reasons:
        assert re.search(rf"# (.+); {re.escape(reason)}$", merged, re.MULTILINE)[1] in meanings


def test_the_constants_are_those_of_the_papers(tmp_path: Path) -> None:
    cifar, imagenet, medical = (read(tmp_path, name).pretrain for name in ("cifar", "imagenet-r50", "medical"))
    assert (imagenet.temperature, imagenet.weight_decay, imagenet.warmup_epochs) == (0.1, 1e-6, 10)
    rate = peak_learning_rate(imagenet.learning_rate, imagenet.batch_size, imagenet.learning_rate_scaling)
    assert rate == pytest.approx(4.8)  # 0.075 * sqrt(4096), and 0.3 * 4096 / 256
    shown = imagenet.augmentation.model_dump()
    assert (shown["crop_scale"], shown["grayscale"], shown["blur"]) == ((0.08, 1.0), 0.2, 0.5)
    assert (shown["jitter_strength"], shown["jitter_probability"], shown["flip"]) == (1.0, 0.8, 0.5)
    assert cifar.encoder.stem == "cifar"
    assert (cifar.augmentation.jitter_strength, cifar.augmentation.blur, cifar.temperature) == (0.5, 0.0, 0.5)
    rate = peak_learning_rate(cifar.learning_rate, cifar.batch_size, cifar.learning_rate_scaling)
    assert rate == pytest.approx(0.06)
    assert medical.augmentation.jitter_strength <= 0.25
    assert (medical.augmentation.grayscale, medical.augmentation.blur) == (0, 0)


@pytest.mark.seconds
def test_a_workspace_starts_with_its_recipe(tmp_path: Path) -> None:
    made = workspaces.create(tmp_path / "photographs", recipe="imagenet-r50")
    assert made.params.read_text(encoding="utf-8") == recipe.params_of("imagenet-r50", BASE)
    log = ["git", "log", "--format=%s"]
    message = subprocess.run(log, cwd=made.root, capture_output=True, text=True, check=True).stdout
    assert message == "New workspace (imagenet-r50)\n"


@pytest.mark.seconds
def test_auto_has_the_values_of_cpu_small_until_it_is_chosen_by_the_images() -> None:
    text = recipe.params_of("auto", BASE)
    assert recipe.is_auto(text)
    assert not any(recipe.is_auto(recipe.params_of(name, BASE)) for name in NAMES[1:])
    assert yaml.safe_load(text) == yaml.safe_load(BASE)


@pytest.mark.seconds
def test_help_lists_the_recipes() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "pipeline", "init", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for name, summary in recipe.summaries(BASE).items():
        assert any(line.split(maxsplit=1) == [name, summary] for line in shown.splitlines()), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar", "medical"])
def test_a_recipe_trains(tmp_path: Path, name: str) -> None:
    workspace = Workspace(write_prepared(tmp_path))
    workspace.params.write_text(recipe.params_of(name, BASE), encoding="utf-8")
    small = {"image_size": "16", "resize": "16", "batch_size": "32", "epochs": "1", "warmup_epochs": "0"}
    params.override(workspace, {f"pretrain.{key}": value for key, value in small.items()})
    pretrain.run(workspace.root)
    assert load_model(workspace.root / "models" / "pretrained").card["metrics"]["finite"]
