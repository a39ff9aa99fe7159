"""What pretraining begins with: nothing, or the network of the champion (a warm start).

    python -m simclr_core initial        in a workspace, before pretrain

Writes ``models/initial``: ``initial.json`` and, for ``pretrain.init: champion``, a copy of the champion's encoder and
projection head in ``pretrained/``. A start from scratch has the same bytes whatever the champion is, so that a new
champion alone is not a reason to train again. The optimizer always starts afresh: a released model has none of its
state.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.artifact import identity, publish, verify
from simclr_core.champion import read_champion
from simclr_core.config import PretrainConfig
from simclr_core.errors import InitialError
from simclr_core.params import read_block
from simclr_core.reporter import emit

FORMAT_VERSION = 1
ARCHITECTURE = {"encoder", "projection_head", "image_size"}  # what has to be the same in the champion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """``champion`` (a version) and ``network`` (its model directory) are None from scratch; ``identity`` names both."""

    identity: str
    champion: str | None = None
    network: Path | None = None

    def __str__(self) -> str:
        return "scratch" if self.champion is None else f"champion {self.champion}"


def run(workspace: Path) -> None:
    """The stage. Before the first release there is no champion: then ``init: champion`` is a start from scratch too.

    Raises:
        ConfigError: params.yaml has no usable block ``pretrain``.
        ArtifactError: the champion is damaged; nothing of it was parsed.
        ChampionError: there is no models/champion.
        InitialError: its network is not there, or of another architecture.
    """
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    champion, version = workspace / "models" / "champion", None
    if config.init == "champion":
        version = _version(workspace)
        if version is None:
            logger.warning("pretrain.init is champion, but nothing has been released yet: starting from scratch")
        else:
            _check_architecture(champion / "pretrained", version, config)
    with publish(workspace / "models" / "initial", replace=True) as work:
        card = {"format_version": FORMAT_VERSION, "init": "scratch"}
        if version is not None:
            card |= {"init": "champion", "version": version}
            # Contents only: what DVC has in its cache cannot be written to, and a copy has to be replaceable.
            shutil.copytree(champion / "pretrained", work / "pretrained", copy_function=shutil.copyfile)
        (work / "initial.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    emit("end", stage="initial", message=f"pretraining begins from {_read(workspace / 'models' / 'initial')}")


def read_start(workspace: Path, config: PretrainConfig) -> Start:
    """What ``models/initial`` holds, as ``config`` asks for it now.

    Raises:
        ArtifactError: it is damaged; nothing was parsed.
        InitialError: it is missing, or was made for other parameters.
    """
    directory = workspace / "models" / "initial"
    if not directory.exists():
        raise InitialError(f"{directory}: does not exist; run `simclr run --select initial`")
    start = _read(directory)
    if start.champion is not None and start.network is not None:
        if config.init == "scratch":
            raise InitialError(
                f"{directory}: begins from {start}, but pretrain.init is scratch; run `simclr run --select initial`"
            )
        _check_architecture(start.network, start.champion, config)
    return start


def _read(directory: Path) -> Start:
    verify(directory)
    card = json.loads((directory / "initial.json").read_text(encoding="utf-8"))
    if card.get("format_version") != FORMAT_VERSION:
        raise InitialError(
            f"{directory}: format version {card.get('format_version')}, this release reads {FORMAT_VERSION}; "
            "run `simclr run --select initial`"
        )
    if card["init"] == "scratch":
        return Start(identity(directory))
    return Start(identity(directory), card["version"], directory / "pretrained")


def _version(workspace: Path) -> str | None:
    """The released version that ``models/champion`` was pinned to, None before the first release."""
    version, directory = read_champion(workspace).version, workspace / "models" / "champion"
    if version is not None and not (directory / "pretrained").is_dir():
        raise InitialError(f"{directory}: {version} has no pretrained network; set pretrain.init: scratch")
    return version


def _check_architecture(network: Path, version: str, config: PretrainConfig) -> None:
    """A verified network against the parameters: weights of another architecture cannot be continued."""
    found = json.loads((network / "model.json").read_text(encoding="utf-8"))["config"]
    differing = list(_differences(found, config.model_dump(include=ARCHITECTURE), "pretrain."))
    if differing:
        raise InitialError(
            f"pretraining cannot continue from champion {version}: {', '.join(differing)}; "
            "give the champion's values, or set pretrain.init: scratch"
        )


def _differences(found: Mapping[str, Any], given: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _differences(found.get(key, {}), value, f"{prefix}{key}.")
        elif found.get(key) != value:
            yield f"{prefix}{key} is {value}, the champion's {found.get(key)}"
