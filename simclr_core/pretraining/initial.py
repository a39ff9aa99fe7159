"""What pretraining begins with: nothing, the network of the champion (a warm start), or weights from elsewhere.

    python -m simclr_core initial        in a workspace, before pretrain

Writes ``models/initial``: ``initial.json`` and, in ``pretrained/``, a network. For ``pretrain.init: champion`` that is
a copy of the champion's encoder and projection head; for ``weights`` the encoder as the file gives it, without a head:
the unadapted one, which evaluation compares with. A start from scratch has the same bytes whatever the champion is, so
that a new champion alone is not a reason to train again. The optimizer always starts afresh: no start has its state.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.artifact import MANIFEST, identity, publish, sha256, verify
from deploy.errors import ArtifactError
from simclr_core.champion import read_champion
from simclr_core.config import PretrainConfig
from simclr_core.data.shards import DatasetCard
from simclr_core.errors import InitialError
from simclr_core.params import read_block
from simclr_core.reporter import finish
from simclr_core.values import TORCHVISION
from simclr_core.weights import DIGITS, FOLDER

FORMAT_VERSION = 1
SHAPE = {"encoder", "image_size"}  # what has to be the same in given weights
ARCHITECTURE = SHAPE | {"projection_head"}  # and in the champion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """``champion`` is a version, ``weights`` the name and hash of those from elsewhere; both are None from scratch, as
    are ``network`` (its model directory) and ``statistics`` (mean and std of the pixels that it takes)."""

    identity: str
    champion: str | None = None
    network: Path | None = None
    weights: str | None = None
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __str__(self) -> str:
        if self.weights is not None:
            return f"weights {self.weights}"
        return "scratch" if self.champion is None else f"champion {self.champion}"

    def normalized(self, card: DatasetCard) -> DatasetCard:
        """The card of the images with the statistics by which this start wants their pixels normalized; those of RGB
        are not those of other channels."""
        if self.statistics is not None and len(self.statistics[0]) != card.bands:
            return card
        return card if self.statistics is None else replace(card, mean=self.statistics[0], std=self.statistics[1])


def run(workspace: Path) -> None:
    """The stage. Before the first release there is no champion: then ``init: champion`` is a start from scratch too.

    Raises:
        ConfigError: params.yaml has no usable block ``pretrain``.
        ArtifactError: the champion is damaged; nothing of it was parsed.
        ChampionError: there is no models/champion.
        InitialError: its network is not there, or of another architecture.
        WeightsError: the weights are not there, cannot be read or trusted, or are of another encoder.
    """
    began = time.perf_counter()
    config = read_block(workspace / "params.yaml", "pretrain", PretrainConfig)
    champion, version = workspace / "models" / "champion", None
    if config.init == "champion":
        version = _version(workspace)
        if version is None:
            logger.warning("pretrain.init is champion, but nothing has been released yet: starting from scratch")
        else:
            _check_architecture(champion / "pretrained", f"champion {version}", config)
    with publish(workspace / "models" / "initial", replace=True) as work:
        card: dict[str, Any] = {"format_version": FORMAT_VERSION, "init": "scratch"}
        if version is not None:
            card |= {"init": "champion", "version": version}
            # Contents only: what DVC has in its cache cannot be written to, and a copy has to be replaceable.
            shutil.copytree(champion / "pretrained", work / "pretrained", copy_function=shutil.copyfile)
        if config.init == "weights":
            from simclr_core.weights.adoption import adopt, save_adopted  # brings torch

            card |= save_adopted(work / "pretrained", config, adopt(workspace, config))
        (work / "initial.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    finish("initial", workspace, began, f"pretraining begins from {_read(workspace / 'models' / 'initial')}")


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
    found = "champion" if start.champion else "weights" if start.weights else "scratch"
    # Before the first release, a start from the champion is one from scratch.
    if found != config.init and (config.init, found) != ("champion", "scratch"):
        raise InitialError(
            f"{directory}: begins from {start}, but pretrain.init is {config.init}; run `simclr run --select initial`"
        )
    if start.network is not None:
        _check_architecture(start.network, str(start), config, SHAPE if start.weights else ARCHITECTURE)
    return start


def is_adopted(workspace: Path, config: PretrainConfig) -> bool:
    """Whether models/initial already has the weights that ``config`` names, as they are now. Loads no torch."""
    source = str(config.weights.source)
    try:
        start = read_start(workspace, config)
    except (InitialError, ArtifactError):
        return False
    path = workspace / FOLDER / source
    if source.startswith(TORCHVISION):  # the name stands for one file
        return (start.weights or "").startswith(f"{source} (")
    if not path.exists():
        return False
    return start.weights == f"{source} ({sha256(path / MANIFEST if path.is_dir() else path)[:DIGITS]})"


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
    network = directory / "pretrained"
    return Start(identity(directory), card.get("version"), network, card.get("weights"), _statistics(network))


def _statistics(network: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """By which given weights normalize pixels, also when a champion has passed them on; else the images' own count."""
    card = json.loads((network / "model.json").read_text(encoding="utf-8"))
    if card.get("normalized_by") != "weights":
        return None
    return tuple(card["mean"]), tuple(card["std"])


def _version(workspace: Path) -> str | None:
    """The released version that ``models/champion`` was pinned to, None before the first release."""
    version, directory = read_champion(workspace).version, workspace / "models" / "champion"
    if version is not None and not (directory / "pretrained").is_dir():
        raise InitialError(f"{directory}: {version} has no pretrained network; set pretrain.init: scratch")
    return version


def _check_architecture(network: Path, start: str, config: PretrainConfig, keys: set[str] = ARCHITECTURE) -> None:
    """A verified network against the parameters: weights of another architecture cannot be continued."""
    found = json.loads((network / "model.json").read_text(encoding="utf-8"))["config"]
    owner, advice = "the champion's", "give the champion's values, or set pretrain.init: scratch"
    if keys == SHAPE:
        owner, advice = "that of the weights", "run `simclr run --select initial`"
    differing = list(_differences(found, config.model_dump(include=keys), "pretrain.", owner))
    if differing:
        raise InitialError(f"pretraining cannot continue from {start}: {', '.join(differing)}; {advice}")


def _differences(found: Mapping[str, Any], given: Mapping[str, Any], prefix: str, owner: str) -> Iterator[str]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _differences(found.get(key, {}), value, f"{prefix}{key}.", owner)
        elif found.get(key) != value:
            yield f"{prefix}{key} is {value}, {owner} {found.get(key)}"
