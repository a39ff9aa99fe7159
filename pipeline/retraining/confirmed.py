"""What a person has said about the files of a source, for the watchdog: ``.simclr/confirmed_sources.json``."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from deploy.artifact import write_atomically
from pipeline.config import IngestConfig, RetrainingConfig
from pipeline.errors import IngestError
from pipeline.ingest.files.selection import Selection
from pipeline.ingest.sources import list_source
from pipeline.retraining.inbox import relist_sources
from pipeline.retraining.watchdog import Confirmed
from pipeline.workspace import Workspace
from simclr_core.params import read_block

FILE = "confirmed_sources.json"  # in the workspace's scratch folder


def count_files(workspace: Workspace, name: str, age: float = 0.0) -> tuple[str, int]:
    """The base of a source, and how many files ``simclr ingest`` sees there, also those that are still being written.

    Args:
        age: seconds that the listing of a folder may have in which no file was added, removed or renamed.

    Raises:
        IngestError: it does not exist or cannot be listed.
    """
    if found := relist_sources(workspace, [name], age):
        return found[0].base, found[0].images
    config = read_block(workspace.params, "ingest", IngestConfig)
    source = list_source(workspace.root, name, config.settle_seconds, Selection(config.include, config.exclude))
    return source.base, len(source.files) + len(source.unsettled)


def confirm(workspace: Workspace, name: str) -> int:
    """Record that the files which a source holds now are all that it should hold; returns their number.

    Raises:
        IngestError: it is not one of ``retraining.sources``, or cannot be listed.
    """
    sources = read_block(workspace.params, "retraining", RetrainingConfig).sources
    if name not in sources:
        raise IngestError(f"{name}: is not one of retraining.sources in params.yaml, which are {', '.join(sources)}")
    _, files = count_files(workspace, name)
    said = {**read(workspace), name: Confirmed(files, time.time())}
    text = json.dumps({one: asdict(confirmed) for one, confirmed in said.items()}, indent=2)
    write_atomically(_path(workspace), text + "\n")
    return files


def read(workspace: Workspace) -> Mapping[str, Confirmed]:
    """Source → what was last said about it; a damaged file counts as none, so that the alarm stays."""
    try:
        stored = json.loads(_path(workspace).read_text(encoding="utf-8"))
        return {str(name): Confirmed(int(said["files"]), float(said["at"])) for name, said in stored.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _path(workspace: Workspace) -> Path:
    return workspace.scratch / FILE
