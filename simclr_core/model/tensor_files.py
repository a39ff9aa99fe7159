"""How weights are kept: tensors in safetensors, everything else in JSON with a format version, nothing pickled."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from simclr_core.errors import CheckpointError
from simclr_core.model import FORMAT_VERSION


def check_format(directory: Path, card: Mapping[str, Any]) -> None:
    found = card.get("format_version")
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{directory}: format version {found}, this release reads {FORMAT_VERSION}; train again")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:  # to a file and not to bytes: that would hold the interpreter lock, against the training thread
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
