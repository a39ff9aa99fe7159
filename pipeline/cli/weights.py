"""``simclr weights``: put weights from elsewhere into the workspace, try them, and set params.yaml."""

import filecmp
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from pipeline import params
from pipeline.cli.options import pass_workspace
from pipeline.errors import ParamsError
from pipeline.params import Params
from pipeline.preflight import requirements
from pipeline.recipes.recipe import is_auto
from pipeline.workspace import Workspace, expand_home
from simclr_core.encoder_names import RESNETS
from simclr_core.encoder_names import TORCHVISION as MODELS
from simclr_core.values import TORCHVISION
from simclr_core.weights import FOLDER

ADAPTING = {"pretrain.warm_start.learning_rate_share": "0.5", "pretrain.weights.layer_decay": "1.0"}
"""As from a champion; not tuned: benchmarks/accuracy/adapt.py measured the full rate, and --choose tries others."""


@click.command()
@click.argument("source", metavar="FILE|torchvision:NAME")
@click.option("--encoder", metavar="NAME", help="Default: by torchvision's name, else that of params.yaml.")
@click.option("--image-size", type=click.IntRange(min=8), help="Side in pixels. Default: as their card says.")
@pass_workspace
def weights(workspace: Workspace, source: str, encoder: str | None, image_size: int | None) -> None:
    """Begin pretraining with weights from elsewhere: try the file, copy it here, and set params.yaml.

    FILE is safetensors, a state dict of torch, ONNX, or a folder models/pretrained of another workspace. It is tried
    before anything is copied or set. The next `simclr run` adapts the weights to the images of this workspace.

    \b
    Examples: simclr weights ~/Downloads/resnet50.pth --encoder resnet50
              simclr weights torchvision:ResNet18_Weights.IMAGENET1K_V1 --image-size 96
              simclr weights ../other/models/pretrained
    """
    click.echo(begin_with(workspace, source, encoder, image_size))


def begin_with(workspace: Workspace, source: str, encoder: str | None, image_size: int | None) -> str:
    """Set params.yaml for these weights; returns what was found.

    Raises:
        ParamsError: they cannot be used; params.yaml and the folder of weights are as they were.
    """
    if is_auto(workspace.params.read_text(encoding="utf-8")):
        raise ParamsError(
            "params.yaml is chosen by the first `simclr run`, which would replace these values; run it once, or remove "
            "the lines at the top of params.yaml that begin with #"
        )
    name, path = _find(workspace, source)
    model = (path or workspace.root / FOLDER / name) / "model.json"
    given = encoder or _encoder_of(source)
    values = {"pretrain.init": "weights", "pretrain.weights.source": name, **ADAPTING}
    if given is not None:
        values["pretrain.encoder"] = json.dumps({"name": given, "width": 1.0, "stem": "imagenet"})
    if model.is_file():
        card = json.loads(model.read_text(encoding="utf-8"))
        values["pretrain.encoder"] = json.dumps(card["encoder"])
    side = image_size or _side(model, name, given or params.read(workspace).pretrain.encoder.name)
    if side is not None:
        values |= {"pretrain.image_size": str(side), "pretrain.resize": "null", "prepare.short_side": "null"}

    def place(changed: Params) -> None:
        requirements.require(workspace, changed, path)
        if path is not None:
            _copy(path, workspace.root / FOLDER / name)

    params.override(workspace, values, place)
    return describe(workspace)


def describe(workspace: Workspace) -> str:
    """What the weights of params.yaml give its encoder."""
    from simclr_core.weights.adoption import adopt

    config = params.read(workspace).pretrain
    found = adopt(workspace.root, config)
    resolution = found.resolution(config)
    return "\n".join(
        [
            f"weights     {found.name}: {found.matched}",
            f"encoder     {config.encoder.name} at {config.image_size} pixels",
            *([f"resolution  {resolution}"] if resolution else []),
            f"pixels      {found.normalization}",
            "next        `simclr run`, which adapts them and compares with the unadapted ones",
        ]
    )


def _find(workspace: Workspace, source: str) -> tuple[str, Path | None]:
    """Their name in the folder of the workspace, and where they are as long as they are not there."""
    if source.startswith(TORCHVISION):
        return source, None
    path, folder = expand_home(source), workspace.root / FOLDER
    if not path.exists() and (folder / source).exists():
        return source, None
    if not path.exists():
        raise ParamsError(f"{path}: does not exist; give the file with the weights")
    if path.absolute().is_relative_to(folder):
        return path.absolute().relative_to(folder).as_posix(), None
    folder.mkdir(exist_ok=True)
    name = path.absolute().name
    target = folder / name
    if target.exists() and not _is_same(path, target):
        raise ParamsError(
            f"{path}: {target} exists and differs from it; remove that one, rename yours, or give `simclr weights "
            f"{target}` to take that one"
        )
    return name, path


def _is_same(one: Path, other: Path) -> bool:
    """Whether two files, or all the files of two folders, have equal bytes."""
    if one.is_dir() != other.is_dir():
        return False
    if one.is_file():
        return filecmp.cmp(one, other, shallow=False)
    names, others = ({file.relative_to(top) for file in top.rglob("*") if file.is_file()} for top in (one, other))
    return names == others and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def _copy(path: Path, target: Path) -> None:
    """Copy a file or folder as a whole, unless it is there already."""
    if target.exists():
        return
    copy = shutil.copytree if path.is_dir() else shutil.copyfile
    with TemporaryDirectory(dir=target.parent, prefix=".") as work:
        copy(path, Path(work) / target.name)
        (Path(work) / target.name).rename(target)


def _encoder_of(source: str) -> str | None:
    """Of torchvision's ``ResNet50_Weights.IMAGENET1K_V2``: resnet50."""
    if not source.startswith(TORCHVISION):
        return None
    wanted = source.removeprefix(TORCHVISION).partition("_Weights")[0].replace("_", "").lower()
    names = (*RESNETS, *MODELS.split())
    return next((name for name in names if name.replace("_", "") == wanted), None)


def _side(model: Path, name: str, encoder: str) -> int | None:
    """In pixels, as the card of the folder or of the network says; None without one."""
    if model.is_file():
        return int(json.loads(model.read_text(encoding="utf-8"))["preprocessing"]["size"])
    from simclr_core.weights.weights_source import find_card

    card = find_card(name, encoder)
    return card.side if card else None
