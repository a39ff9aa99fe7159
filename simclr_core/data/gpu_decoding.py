"""Prepared JPEGs decoded by a GPU, with the nvJPEG that torchvision brings. (It has never run on a GPU.)

Its pixels differ by a few levels from those of libjpeg-turbo, which decodes on processors, and so does whatever is made
of them: which of the two decodes is a parameter of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from simclr_core.data.ragged import RaggedImages
from simclr_core.data.shards import ShardedImages, stored_pixels
from simclr_core.data.stored_image import StoredImage
from simclr_core.errors import DatasetError, DeviceError

MOST_LEVELS = 8  # of 255, that a smooth picture may differ by from what a processor decodes
ADVICE = "set pretrain.decode: cpu"


@dataclass(frozen=True)
class EncodedImages:
    """A batch that is not decoded yet: the images at ``positions``, with their ``sizes`` [n, 2] and files."""

    images: ShardedImages
    positions: NDArray[np.int64]
    stored: Sequence[StoredImage]
    sizes: NDArray[np.int64]

    def to(self, device: torch.device) -> RaggedImages:
        """Decode on a GPU, after what was asked of it before. A file other than a JPEG of `prepare` is decoded here.

        Raises:
            DatasetError: a file is damaged, or nvJPEG does not take it.
        """
        files = [one.jpeg for one in self.stored if one.jpeg is not None]
        try:
            decoded = iter(decode_jpegs(files, device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            for position in self.positions.tolist():
                stored_pixels(self.images, position)  # names the file that no decoder can read
            raise DatasetError(f"nvJPEG cannot decode a batch of prepared JPEGs: {error}; {ADVICE}") from error
        pixels = [_copied(one, device) if one.jpeg is None else next(decoded) for one in self.stored]
        room = pixels[0].new_empty(3 * int(self.sizes[:, 1].max()))  # a GPU reads all rows as far as the widest one
        return RaggedImages(torch.cat([*(one.reshape(-1) for one in pixels), room]), self.sizes)


def require_gpu_decoding(device: torch.device) -> None:
    """Decode a small picture.

    Raises:
        DeviceError: no GPU computes here, torchvision has no nvJPEG, or it decodes something else.
    """
    if device.type != "cuda":
        raise DeviceError(f"pretrain.decode is gpu, but processors compute here; {ADVICE}")
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[:, None], 32, axis=1)
    data = simplejpeg.encode_jpeg(np.stack([ramp, ramp.T, ramp[::-1]], axis=2).copy(), quality=95)
    expected = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1).int()
    try:
        (decoded,) = decode_jpegs([data], device)
        levels = int((decoded.cpu().int() - expected).abs().max())
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(
            f"pretrain.decode is gpu, but torchvision cannot decode on it: {reason}; install a torchvision that is "
            f"built for CUDA, or {ADVICE}"
        ) from error
    if levels > MOST_LEVELS:
        raise DeviceError(f"pretrain.decode is gpu, but nvJPEG is {levels} levels off a processor's decoder; {ADVICE}")


def decode_jpegs(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """uint8 [3, height, width] of each file, in RGB, on the device."""
    from torchvision.io import ImageReadMode, decode_jpeg

    if not files:
        return []
    data = [torch.frombuffer(bytearray(one), dtype=torch.uint8) for one in files]
    decoded: list[Tensor] = decode_jpeg(data, ImageReadMode.RGB, device)
    return decoded


def _copied(image: StoredImage, device: torch.device) -> Tensor:
    """[3, height, width], decoded by a processor."""
    pixels = torch.from_numpy(image.read()).permute(2, 0, 1).contiguous()
    return (pixels.pin_memory() if device.type == "cuda" else pixels).to(device, non_blocking=True)
