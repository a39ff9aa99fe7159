"""What a person has said about the files of a source, for the watchdog: ``.simclr/confirmed_sources.json``."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from deploy.artifact import write_atomically
from pipeline.config import IngestConfig, RetrainingConfig
from pipeline.errors import IngestError
from pipeline.ingest.selection import Selection
from pipeline.ingest.sources import Source, list_source
from pipeline.retraining.watchdog import Confirmed
from pipeline.workspace import Workspace
from simclr_core.params import read_block

FILE = "confirmed_sources.json"  # in the workspace's scratch folder


def list_files(workspace: Workspace, name: str) -> Source:
    """A source as ``simclr ingest`` sees it.

    Raises:
        IngestError: it does not exist or cannot be listed.
    """
    config = read_block(workspace.params, "ingest", IngestConfig)
    return list_source(workspace.root, name, config.settle_seconds, Selection(config.include, config.exclude))


def count(source: Source) -> int:
    """The files of a source, also those that are still being written."""
    return len(source.files) + len(source.unsettled)


def confirm(workspace: Workspace, name: str) -> int:
    """Record that the files which a source holds now are all that it should hold; returns their number.

    Raises:
        IngestError: it is not one of ``retraining.sources``, or cannot be listed.
    """
    sources = read_block(workspace.params, "retraining", RetrainingConfig).sources
    if name not in sources:
        raise IngestError(f"{name}: is not one of retraining.sources in params.yaml, which are {', '.join(sources)}")
    files = count(list_files(workspace, name))
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
