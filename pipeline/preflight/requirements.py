"""What params.yaml asks for, and this machine or workspace lacks: refused before a run, with how to get it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.failure import install_command
from deploy.images.background import WHITE
from deploy.plural import counted
from deploy.trust.signature import sign
from pipeline.dvc import client, remote
from pipeline.dvc.project import read_definitions
from pipeline.environment import SIGNING_KEY_FILE
from pipeline.errors import BusyError, ParamsError, WorkspaceError
from pipeline.params import Params, override
from pipeline.workspace import Workspace, expand_home
from simclr_core.compute.settings import STAGES, read_compute, where
from simclr_core.encoder_names import TIMM, TIMM_MISSING
from simclr_core.errors import SimclrError
from simclr_core.monitoring.trackers import missing_trackers
from simclr_core.pretraining.initial import is_adopted
from simclr_core.weights import FOLDER


def apply(workspace: Workspace, values: Mapping[str, str]) -> None:
    """Write values into params.yaml, unless the run would end, perhaps after hours, where it lacks something.

    Raises:
        ParamsError: a value is not valid, or something is missing; all of it is named, and how to get it.
        BusyError: there are values, and something is at work that began with others.
    """
    if values and (holder := client.holder(workspace.root)):
        raise BusyError(f"{workspace.root}: busy with {holder}")
    override(workspace, values, lambda params: require(workspace, params))


def require(workspace: Workspace, params: Params, weights: Path | None = None) -> None:
    """Check that this machine and workspace have what params.yaml asks for; ``weights``: see ``unmet``.

    Raises:
        ParamsError: something is missing; all of it is named, and how to get it.
    """
    if missing := unmet(workspace, params, weights):
        raise ParamsError("; ".join(missing))


def unmet(workspace: Workspace, params: Params, weights: Path | None = None) -> list[str]:
    """What params.yaml asks for and this machine or workspace does not have.

    Args:
        weights: where the weights are that will be copied into the workspace; None: they are there.
    """
    missing = missing_trackers(params.watch.trackers)
    try:
        compute = read_compute(workspace.root)
    except SimclrError as error:
        missing.append(str(error))
    else:
        stages = ["validate", *STAGES]
        engines = [compute.probing.engine, *(where(workspace.root, stage).engine for stage in STAGES)]
        asking = [stage for stage, engine in zip(stages, engines, strict=True) if engine == "ray"]
        asking = asking or (["validate"] if params.validate.engine == "ray" else [])
        if asking and find_spec("ray") is None:
            missing.append(
                f"{asking[0]}.engine is ray, which is not installed; run {install_command('ray')}, or set it to local"
            )
    if params.release.require_remote and remote.find_remote(workspace.root) is None:
        missing.append(
            "release.require_remote is true, but the workspace has no DVC remote; "
            "`dvc remote add --default NAME URL` gives it one, or set it to false"
        )
    return [
        *missing,
        *_unusable_key(workspace),
        *_unwatched(workspace, params),
        *_other_channels(workspace, params),
        *_unmet_weights(workspace, params, weights),
    ]


def _unusable_key(workspace: Workspace) -> Iterator[str]:
    """Why the key that the environment names could not sign a release, hours from now."""
    given = os.environ.get(SIGNING_KEY_FILE)
    try:
        key = expand_home(given) if given else None
    except WorkspaceError as error:
        yield f"{SIGNING_KEY_FILE}: {error}"
        return
    if key and key.resolve().is_relative_to(workspace.root.resolve()):
        yield f"{SIGNING_KEY_FILE}={given}: is in the workspace, whose files are committed; move the key out of it"
    elif key:
        try:
            sign(b"", key)
        except DeployError as error:
            yield f"{SIGNING_KEY_FILE}: {error}"


def _unwatched(workspace: Workspace, params: Params) -> Iterator[str]:
    """What validation depends on, and dvc.yaml of an earlier version does not say."""
    prepare, watched = params.prepare, _stage(workspace, "validate", "params")
    changed = {"background": prepare.background != WHITE, "channels": prepare.channels is not None}
    for name in (name for name, is_set in changed.items() if is_set and f"prepare.{name}" not in watched):
        yield (
            f"prepare.{name} is {getattr(prepare, name)}, and dvc.yaml of this workspace is of an earlier "
            f"version: add `- prepare.{name}` to the params of the stage validate, so that images are judged on it"
        )


def _other_channels(workspace: Workspace, params: Params) -> Iterator[str]:
    """A released encoder that cannot see the images, with which every candidate is compared."""
    bundle = workspace.root / "models" / "champion" / "bundle" / "bundle.json"
    if not bundle.exists():
        return
    found = json.loads(bundle.read_text(encoding="utf-8"))["preprocessing"].get("channels")
    if found != params.prepare.channels:
        takes = "8-bit RGB images" if found is None else f"images with {counted(found, 'channel')}"
        yield (
            f"prepare.channels is {params.prepare.channels or 'null'}, and the released encoder takes {takes}, so that "
            "they cannot be compared; begin a new workspace for these images"
        )


def _unmet_weights(workspace: Workspace, params: Params, weights: Path | None) -> Iterator[str]:
    """Why pretraining could not begin with its encoder or its weights, hours from now."""
    pretrain = params.pretrain
    if pretrain.encoder.name.startswith(TIMM) and find_spec("timm") is None:
        yield f"pretrain.encoder.name is {pretrain.encoder.name}, and {TIMM_MISSING}"
        return
    if pretrain.init != "weights":
        return
    if not (workspace.root / FOLDER).is_dir() or FOLDER not in _stage(workspace, "initial", "deps"):
        yield (
            "pretrain.init is weights, and dvc.yaml of this workspace is of an earlier version: make the folder with "
            "`mkdir -p weights`, and add `- weights` to the deps of the stage initial and `- models/initial` to those "
            "of linear_eval, so that other weights are noticed"
        )
        return
    if weights is not None or not is_adopted(workspace.root, pretrain):
        from simclr_core.weights.adoption import adopt  # brings torch

        try:
            adopt(workspace.root, pretrain, weights)
        except SimclrError as error:
            yield str(error)


def _stage(workspace: Workspace, name: str, key: str) -> Sequence[Any]:
    """What dvc.yaml of the workspace lists there."""
    named: Sequence[Any] = read_definitions(workspace.root).get(name, {}).get(key, ())
    return named
