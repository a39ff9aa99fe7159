"""A teacher that is an ONNX graph: run by onnxruntime, without its weights in torch and without a gradient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from simclr_core.errors import DistillationError

PROBED = 2  # images of the first batch, which shows how long the outputs are


class OnnxTeacher(nn.Module):
    """The first output of the graph in ``path`` for float32 images [n, bands, side, side], on the processors.

    Where the graph ends in a softmax, its logarithm: with a temperature of 1 that gives the same probabilities.

    Raises:
        DistillationError: it cannot be loaded, has its weights elsewhere, or takes or gives something else.
    """

    def __init__(self, path: Path, bands: int, image_size: int) -> None:
        super().__init__()
        self._path = path
        self._session = _open(path)
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not _takes_images(shape, bands):
            taken = "; ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise DistillationError(
                f"{path}: takes {taken or 'nothing'}; export a teacher that takes float32 images [batch, {bands}, "
                "side, side] with a batch of any size"
            )
        self.side = shape[2] if isinstance(shape[2], int) else image_size
        self.dim = self._probe(bands)

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.from_numpy(self._run(images.float().cpu().contiguous().numpy())).to(images.device)
        return answers.clamp_min(torch.finfo(torch.float32).tiny).log() if self.gives_probabilities else answers

    def _probe(self, bands: int) -> int:
        images = np.random.default_rng(0).normal(size=(PROBED, bands, self.side, self.side)).astype(np.float32)
        answers = self._run(images)
        if answers.ndim != 2 or len(answers) != PROBED:
            raise DistillationError(
                f"{self._path}: gives {list(answers.shape)} for {PROBED} images; export a teacher whose first output "
                "is [batch, classes], or a vector of each image"
            )
        self.gives_probabilities = bool((answers >= 0).all()) and np.allclose(answers.sum(axis=1), 1, atol=1e-4)
        return int(answers.shape[1])

    def _run(self, images: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        try:
            answers = self._session.run(None, {self._session.get_inputs()[0].name: images})[0]
        except Exception as error:  # onnxruntime's errors have no common base class
            raise DistillationError(f"{self._path}: onnxruntime cannot run it ({_first_line(error)})") from error
        return np.asarray(answers, np.float32)


def _open(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise DistillationError(
            f"{path}: onnxruntime cannot load it ({_first_line(error)}); export it again, with its weights inside"
        ) from error


def _takes_images(shape: Sequence[int | str | None], bands: int) -> bool:
    """Whether it is [batch of any size, bands, side, side]."""
    if len(shape) != 4 or isinstance(shape[0], int):
        return False
    sides = [side for side in shape[2:] if isinstance(side, int)]
    return shape[1] in (bands, None) or isinstance(shape[1], str) if len(set(sides)) <= 1 else False


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
