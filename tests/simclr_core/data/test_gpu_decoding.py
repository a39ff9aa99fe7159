"""What a GPU would decode is asked of it in the order of the batch; where it cannot, a sentence says so.

No GPU is here: torchvision's decoder for processors takes the place of nvJPEG.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import simclr_core.data.gpu_decoding as module
from deploy.images.preprocess import decode
from pipeline.prepare.canonical import encode
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.config import PretrainConfig
from simclr_core.data.dataset import TrainingImages, UndecodedImages
from simclr_core.data.gpu_decoding import decode_jpegs, require_gpu_decoding
from simclr_core.data.order import Order
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import DatasetCard, Sample, ShardedImages
from simclr_core.errors import DatasetError, DeviceError
from simclr_core.launch import Member
from simclr_core.pretraining.batches import Batches, choose_pixels

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIDES = [(40, 150), (20, 31), (160, 140), (20, 20), (150, 129)]  # small ones are PNG


def stored(folder: Path, sides: Sequence[tuple[int, int]] = SIDES) -> tuple[ShardedImages, list[np.ndarray]]:
    samples = []
    for number, (height, width) in enumerate(sides):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        extension, data = encode(picture, 95)
        samples.append(Sample(f"{number:064x}", extension, data))
    write_shards(folder / "train", [samples], max_bytes=10**7)
    return ShardedImages(folder / "train"), [decode(sample.data) for sample in samples]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files nvJPEG was given each time; the decoder of processors answers."""
    counts: list[int] = []

    def instead(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
        counts.append(len(files))
        return [torch.from_numpy(decode(one)).permute(2, 0, 1).contiguous() for one in files]

    monkeypatch.setattr(module, "decode_jpegs", instead)
    return counts


def test_a_batch_has_the_pixels_of_both_decoders_in_its_order(tmp_path: Path, asked: list[int]) -> None:
    images, pixels = stored(tmp_path)
    undecoded = UndecodedImages(TrainingImages(images))
    assert (len(undecoded), undecoded.images) == (5, images)
    rows = [3, 0, 2, 0, 1, 4]
    batch = undecoded.batch(rows)
    assert batch.sizes.tolist() == [list(SIDES[row]) for row in rows]
    assert asked == []  # nothing is decoded before a GPU is there
    ragged = batch.to(CPU)
    assert asked == [4]
    for number, row in enumerate(rows):
        assert np.array_equal(ragged.image(number).numpy(), pixels[row].transpose(2, 0, 1))
    assert ragged.samples.numel() == sum(pixels[row].size for row in rows) + 3 * 150


def test_the_views_are_those_of_the_pixels(tmp_path: Path, asked: list[int]) -> None:
    images, _ = stored(tmp_path, [(150, 140), (140, 130)] * 3)
    card = DatasetCard((), (0.4,) * 3, (0.3,) * 3, 20, 150, {"train": 6}, "0" * 64)
    augmentation, order, alone = Augmentation(32), Order(0, 6), Member(0, 1, CPU)
    training = TrainingImages(images)
    ours, theirs = (
        Batches(pixels, card, augmentation, 4, order, alone) for pixels in (training, UndecodedImages(training))
    )
    assert torch.equal(next(ours.network_inputs(0, 1)), next(theirs.network_inputs(0, 1)))
    for one, other in zip(ours.pictures(3, 1), theirs.pictures(3, 1), strict=True):
        assert all(map(np.array_equal, one, other))
    assert len(asked) == 2


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = stored(tmp_path, [(150, 140), (140, 130)])

    def refused(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
        raise RuntimeError("nvjpeg decode failed: 2")

    monkeypatch.setattr(module, "decode_jpegs", refused)
    batch = UndecodedImages(TrainingImages(images)).batch([0, 1])
    with pytest.raises(
        DatasetError, match=r"nvJPEG cannot decode .*: nvjpeg decode failed: 2; set pretrain.decode: cpu"
    ):
        batch.to(CPU)
    whole = images.read(0)
    samples = [Sample("a" * 64, "jpg", whole), Sample("b" * 64, "jpg", whole[: len(whole) // 2])]
    write_shards(tmp_path / "damaged", [samples], max_bytes=10**7)
    batch = UndecodedImages(TrainingImages(ShardedImages(tmp_path / "damaged"))).batch([0, 1])
    with pytest.raises(DatasetError, match=r"prepared image 1 \(b{64}\) cannot be decoded"):
        batch.to(CPU)


def test_used_up_memory_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = stored(tmp_path)

    def full(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "decode_jpegs", full)
    with pytest.raises(torch.OutOfMemoryError):
        UndecodedImages(TrainingImages(images)).batch([0]).to(CPU)


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
def test_where_it_cannot_decode_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DeviceError, match=r"pretrain.decode is gpu, but processors compute here; set pretrain.decode: cpu"
    ):
        require_gpu_decoding(CPU)
    with pytest.raises(
        DeviceError, match=r"but torchvision cannot decode on it: .*; install a torchvision that is built"
    ):
        require_gpu_decoding(GPU)  # as it is installed here

    def wrong(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
        return [torch.from_numpy(255 - decode(one)).permute(2, 0, 1) for one in files]

    monkeypatch.setattr(module, "decode_jpegs", wrong)
    with pytest.raises(DeviceError, match=r"nvJPEG is \d+ levels off a processor's decoder; set pretrain.decode: cpu"):
        require_gpu_decoding(GPU)


def test_it_is_tried_before_a_run(tmp_path: Path, asked: list[int]) -> None:
    images, _ = stored(tmp_path)
    card = DatasetCard((), (0.4,) * 3, (0.3,) * 3, 20, 150, {"train": 5}, "0" * 64)
    config = PretrainConfig(decode="gpu")
    assert isinstance(choose_pixels(PretrainConfig(), images, card, CPU), TrainingImages)
    assert isinstance(choose_pixels(config, images, card, GPU), UndecodedImages)
    assert asked == [1]
    deep = DatasetCard((), (0.4,), (0.3,), 20, 150, {"train": 5}, "0" * 64, channels=1)
    with pytest.raises(
        DatasetError, match=r"the prepared images are arrays of 16 bits, not JPEGs; set pretrain.decode: cpu"
    ):
        choose_pixels(config, images, deep, GPU)


def test_torchvision_is_asked_for_rgb_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    def decode_jpeg(data: list[Tensor], mode: object, device: torch.device) -> list[Tensor]:
        assert (mode, device) == (torchvision.io.ImageReadMode.RGB, GPU)
        return [one.clone() for one in data]

    monkeypatch.setattr(torchvision.io, "decode_jpeg", decode_jpeg)
    assert [one.numpy().tobytes() for one in decode_jpegs([b"one", b"two"], GPU)] == [b"one", b"two"]
    assert decode_jpegs([], GPU) == []
