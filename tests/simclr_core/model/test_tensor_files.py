"""Tensors in files: what goes wrong is an error of the system, whatever safetensors calls it."""

from pathlib import Path

import pytest
import torch

from simclr_core.model.tensor_files import read_tensors, write_tensors


def test_loaded_tensors_are_contiguous(tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2), "count": torch.tensor(3)}
    write_tensors(tmp_path / "weights", tensors)
    read = read_tensors(tmp_path / "weights")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].is_contiguous()


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    """safetensors has its own error, with the system's number in its words."""
    with pytest.raises(OSError, match="No such file or directory") as missing:
        write_tensors(tmp_path / "none" / "weights", {"a": torch.ones(2)})
    assert missing.value.filename == str(tmp_path / "none" / "weights")
