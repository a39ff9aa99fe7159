"""``simclr weights``: put weights from elsewhere into the workspace, try them, and set params.yaml."""

import json
import shutil
from pathlib import Path

import click

from pipeline import params, preflight
from pipeline.cli.pass_workspace import pass_workspace
from pipeline.errors import ParamsError
from pipeline.recipes.recipe import is_auto
from pipeline.workspace import Workspace
from simclr_core.encoder_names import RESNETS
from simclr_core.encoder_names import TORCHVISION as MODELS
from simclr_core.values import TORCHVISION
from simclr_core.weights import FOLDER

ADAPTING = {"pretrain.warm_start.learning_rate_share": "0.5", "pretrain.weights.layer_decay": "1.0"}
"""As from a champion, which is careful: in benchmarks/adapt.py the full rate gained too, and --choose tries others."""


@click.command()
@click.argument("source", metavar="FILE|torchvision:NAME")
@click.option("--encoder", metavar="NAME", help="Default: by torchvision's name, else that of params.yaml.")
@click.option("--image-size", type=click.IntRange(min=8), help="Side in pixels. Default: as their card says.")
@pass_workspace
def weights(workspace: Workspace, source: str, encoder: str | None, image_size: int | None) -> None:
    """Begin pretraining with weights from elsewhere: copy the file here, try it, and set params.yaml.

    FILE is safetensors, a state dict of torch, ONNX, or a folder models/pretrained of another workspace. It is tried
    before anything is set. The next `simclr run` adapts the weights to the images of this workspace.

    \b
    Examples: simclr weights ~/Downloads/resnet50.pth --encoder resnet50
              simclr weights torchvision:ResNet18_Weights.IMAGENET1K_V1 --image-size 96
              simclr weights ../other/models/pretrained
    """
    click.echo(begin_with(workspace, source, encoder, image_size))


def begin_with(workspace: Workspace, source: str, encoder: str | None, image_size: int | None) -> str:
    """Set params.yaml for these weights; returns what was found.

    Raises:
        ParamsError: they cannot be used; params.yaml is as it was.
    """
    if is_auto(workspace.params.read_text(encoding="utf-8")):
        raise ParamsError(
            "params.yaml is chosen by the first `simclr run`, which would replace these values; run it once, or remove "
            "the lines at the top of params.yaml that begin with #"
        )
    name = _place(workspace, source)
    given = encoder or _encoder_of(source)
    values = {"pretrain.init": "weights", "pretrain.weights.source": name, **ADAPTING}
    if given is not None:
        values["pretrain.encoder"] = json.dumps({"name": given, "width": 1.0, "stem": "imagenet"})
    if (model := workspace.root / FOLDER / name / "model.json").is_file():
        card = json.loads(model.read_text(encoding="utf-8"))
        values["pretrain.encoder"] = json.dumps(card["encoder"])
    side = image_size or _side(workspace, name, given or params.read(workspace).pretrain.encoder.name)
    if side is not None:
        values |= {"pretrain.image_size": str(side), "pretrain.resize": "null", "prepare.short_side": "null"}
    preflight.apply(workspace, values)
    return describe(workspace)


def describe(workspace: Workspace) -> str:
    """What the weights of params.yaml give its encoder."""
    from simclr_core.weights.adoption import adopt

    config = params.read(workspace).pretrain
    found = adopt(workspace.root, config)
    mean, std = (", ".join(f"{one:g}" for one in values) for values in (found.card.mean, found.card.std))
    return "\n".join(
        [
            f"weights     {found.name}: {found.matched}",
            f"encoder     {config.encoder.name} at {config.image_size} pixels",
            f"pixels      mean {mean}; std {std}, by {found.card.origin}",
            "next        `simclr run`, which adapts them and compares with the unadapted ones",
        ]
    )


def _place(workspace: Workspace, source: str) -> str:
    """Copy it into the folder; returns its name there."""
    if source.startswith(TORCHVISION):
        return source
    path, folder = Path(source).expanduser(), workspace.root / FOLDER
    if not path.exists() and (folder / source).exists():
        return source
    if not path.exists():
        raise ParamsError(f"{path}: does not exist; give the file with the weights")
    if path.absolute().is_relative_to(folder):
        return path.absolute().relative_to(folder).as_posix()
    target = folder / path.name
    if target.exists():
        raise ParamsError(f"{target}: exists; remove it first, or give `simclr weights {path.name}` to take it")
    folder.mkdir(exist_ok=True)
    copy = shutil.copytree if path.is_dir() else shutil.copyfile
    copy(path, target)
    return path.name


def _encoder_of(source: str) -> str | None:
    """Of torchvision's ``ResNet50_Weights.IMAGENET1K_V2``: resnet50."""
    if not source.startswith(TORCHVISION):
        return None
    wanted = source.removeprefix(TORCHVISION).partition("_Weights")[0].replace("_", "").lower()
    names = (*RESNETS, *MODELS.split())
    return next((name for name in names if name.replace("_", "") == wanted), None)


def _side(workspace: Workspace, name: str, encoder: str) -> int | None:
    """In pixels, as the card says; None without one."""
    model = workspace.root / FOLDER / name / "model.json"
    if model.is_file():
        return int(json.loads(model.read_text(encoding="utf-8"))["preprocessing"]["size"])
    from simclr_core.weights.weights_source import find_card

    card = find_card(name, encoder)
    return card.side if card else None
