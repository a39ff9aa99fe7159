"""Pictures and reports on the pages of Dagster's UI.

Inside the metadata an image would be a row of the event log, and hidden behind a click. So a copy, named by what it
holds, goes to where Dagster keeps what its steps have printed: its web server serves it from there to each user who may
see the logs, and ``simclr gc`` removes it with the old logs.
"""

import hashlib
import io
import os
from pathlib import Path

import dagster as dg

from deploy.artifact import write_atomically
from pipeline.runs.dagster_internals import LocalComputeLogManager

LARGEST_BYTES = 5_000_000
WIDTH = 400  # pixels: what the page of an asset has room for on a laptop
FOLDER = ("pages", "compute_logs")  # inside Dagster's storage, as if it were a run


def show(instance: dg.DagsterInstance, file: Path) -> dg.MetadataValue:
    """A picture inline, with a link to its full size; anything else as a link; the path where the UI cannot have it."""
    logs = instance.compute_log_manager
    if not isinstance(logs, LocalComputeLogManager) or file.stat().st_size > LARGEST_BYTES:
        return dg.MetadataValue.path(file)
    data, extension = file.read_bytes(), file.suffix.removeprefix(".")
    address = _publish(logs, data, extension)
    if extension != "png":
        return dg.MetadataValue.md(f"[{file.name}]({address})")
    small = _publish(logs, _reduced(data), extension)
    return dg.MetadataValue.md(f"[![{file.stem}]({small})]({address})")


def _publish(logs: LocalComputeLogManager, data: bytes, extension: str) -> str:
    """The address of a copy on the web server."""
    key = (*FOLDER, hashlib.md5(data, usedforsecurity=False).hexdigest())
    copy = Path(logs.get_captured_local_path(key, extension))
    if copy.exists():
        os.utime(copy)  # it is needed for longer
    else:
        write_atomically(copy, data)
    return f"/logs/{'/'.join(key)}/{extension}"


def _reduced(data: bytes) -> bytes:
    """The picture no wider than a page, unchanged if it cannot be read."""
    from PIL import Image  # here, because a code location has to load quickly

    reduced = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width <= WIDTH:
                return data
            height = round(image.height * WIDTH / image.width)
            small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
            small.quantize(dither=Image.Dither.NONE).save(reduced, "PNG", optimize=True)
    except OSError:
        return data
    return reduced.getvalue()
