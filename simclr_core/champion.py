"""The champion, as ``models/champion`` holds it: the released encoder that the next one has to beat.

models/champion/champion.json    version, commit, bundle id, and the reports that were committed with it
models/champion/bundle/          copies of the released models/bundle and models/pretrained,
models/champion/pretrained/      absent before the first release

``pipeline.release`` writes it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from deploy.artifact import verify
from simclr_core import reports
from simclr_core.errors import ChampionError
from simclr_core.reports import Report


@dataclass(frozen=True)
class Champion(Report):
    """champion.json; all is None and empty before the first release. ``reports`` as ``reports.find_in`` reads them."""

    path: ClassVar[str] = "models/champion/champion.json"

    version: str | None
    commit: str | None = None
    bundle: str | None = None
    reports: dict[str, JsonValue] = field(default_factory=dict)


def read_champion(workspace: Path) -> Champion:
    """What is pinned; every file is verified first.

    Raises:
        ChampionError: nothing is pinned, not even that there is no champion.
        CorruptArtifactError: a file has changed since.
        ReportError: champion.json is not what ``pipeline.release`` writes.
    """
    directory = (workspace / Champion.path).parent
    if not directory.exists():
        raise ChampionError(f"{directory}: does not exist; `simclr run` makes it")
    verify(directory)
    return reports.read(workspace, Champion)


def champion_bundle(workspace: Path, champion: Champion) -> Path | None:
    """The directory of its bundle, None before the first release.

    Raises:
        ChampionError: it is there and should not be, or the other way round.
    """
    bundle = (workspace / Champion.path).with_name("bundle")
    if (champion.version is not None) != bundle.is_dir():
        there = "there" if bundle.is_dir() else "missing"
        advice = f"remove {bundle.parent}, and `simclr run` copies the released encoder again"
        raise ChampionError(
            f"{workspace / Champion.path}: version {champion.version}, but the bundle is {there}; {advice}"
        )
    return bundle if bundle.is_dir() else None
