"""One whole pretraining run in this process, ours or lightly's: the measurements of `benchmarks.simclr_core.pretrain`.

    python -m benchmarks.simclr_core.pretrain_loops simclr-pipeline|lightly FOLDER        prints JSON

FOLDER holds ``run.json``, the parameters, and ``data/prepared``, the images as our ``prepare`` leaves them. Both loops
train the same encoder and projection head, from the same first weights, on the same images, for the same steps, with
the same optimizer, weight decay and learning rate. What the loop is made of is each library's own: ours is the stage
``pretrain``; lightly's is that of its documentation for SimCLR: LightlyDataset, SimCLRTransform, a DataLoader with
workers, one forward pass per view, NTXentLoss. Its images are decoded before the run, and gray: one channel until the
network, which is its fastest way. No loop evaluates while it trains; our monitor gets the fewest images that it takes.
"""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from benchmarks import measure
from deploy.images.preprocess import decode
from simclr_core.config import PretrainConfig
from simclr_core.data.shards import DatasetCard, ShardedImages, read_card
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.knn import knn_accuracy
from simclr_core.lars import parameter_groups
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import load_model
from simclr_core.model.projection_head import build_projection_head
from simclr_core.pretraining import initial, pretrain
from simclr_core.schedule import Schedule, peak_learning_rate

NEIGHBORS, TEMPERATURE = 20, 0.1
LIGHTLY = (
    "lightly.pt"  # what a run that is ``resumable`` has reached: the model, the optimizer, and a loss for each epoch
)


class Pictures(torch.utils.data.Dataset[tuple[Any, int]]):
    """Decoded training images, gray, as torchvision's own datasets give them; LightlyDataset sets ``transform``."""

    def __init__(self, images: ShardedImages) -> None:
        self._images = [Image.fromarray(decode(images.read(number))).convert("L") for number in range(len(images))]
        self.transform: Callable[[Image.Image], Any] = lambda image: image

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.transform(self._images[number]), 0


def ours(folder: Path, _: dict[str, Any]) -> tuple[nn.Module, list[float]]:
    """The stage itself; returns the encoder and the loss of every epoch."""
    pretrain.run(folder)
    with (folder / "reports" / "pretrain.csv").open(newline="", encoding="utf-8") as table:
        losses = [float(row["loss"]) for row in csv.DictReader(table)]
    return load_model(folder / "models" / "pretrained").encoder, losses


def lightly(folder: Path, run: dict[str, Any]) -> tuple[nn.Module, list[float]]:
    from lightly.loss import NTXentLoss

    config = PretrainConfig.model_validate(run["pretrain"])
    batches = _loader(folder, config, run["workers"])
    torch.manual_seed(config.seed)
    encoder = build_encoder(**config.encoder.model_dump(), image_size=config.image_size)
    head = build_projection_head(encoder.feature_dim, **config.projection_head.model_dump())
    model = nn.Sequential(encoder, head)
    criterion = NTXentLoss(temperature=config.temperature)
    groups = parameter_groups([model], config.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    peak = peak_learning_rate(config.learning_rate, config.batch_size, config.learning_rate_scaling)
    schedule = Schedule(config.epochs, len(batches), config.warmup_epochs, peak)
    losses, state = list[float](), folder / LIGHTLY
    if state.exists():
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
    for epoch in range(len(losses), config.epochs):
        total = 0.0
        for number, batch in enumerate(batches):
            first, second = batch[0]
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(epoch * len(batches) + number)
            z0, z1 = model(first.expand(-1, 3, -1, -1)), model(second.expand(-1, 3, -1, -1))
            loss = criterion(z0, z1)
            total += float(loss.detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total / len(batches))
        if run.get("resumable"):
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}, state)
    return encoder, losses


def _loader(folder: Path, config: PretrainConfig, workers: int) -> Any:
    from lightly.data import LightlyDataset
    from lightly.transforms.simclr_transform import SimCLRTransform

    card = read_card(folder / "data" / "prepared")
    wanted = config.augmentation
    assert (wanted.blur, wanted.grayscale) == (0, 0), "small gray images"
    transform = SimCLRTransform(
        input_size=config.image_size,
        cj_prob=wanted.jitter_probability,
        cj_strength=wanted.jitter_strength,
        min_scale=wanted.crop_scale[0],
        random_gray_scale=0.0,
        gaussian_blur=0.0,
        hf_prob=wanted.flip,
        normalize={"mean": [card.mean[0]], "std": [card.std[0]]},
    )
    images = Pictures(ShardedImages(folder / "data" / "prepared" / "train"))
    return torch.utils.data.DataLoader(
        LightlyDataset.from_torch_dataset(images, transform=transform),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


LOOPS: dict[str, Callable[[Path, dict[str, Any]], tuple[nn.Module, list[float]]]] = {
    "simclr-pipeline": ours,
    "lightly": lightly,
}


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Wall and processor time, memory and loss of a whole run; the encoder's kNN accuracy if the run asks for it."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "params.yaml").write_text(yaml.safe_dump({"pretrain": run["pretrain"], "watch": {}}), encoding="utf-8")
    initial.run(folder)
    card = read_card(folder / "data" / "prepared")
    config = PretrainConfig.model_validate(run["pretrain"])
    measure.forget_peak()
    began, busy = time.perf_counter(), measure.cpu_seconds()
    encoder, losses = LOOPS[name](folder, run)
    seconds, peak = time.perf_counter() - began, measure.megabytes("VmHWM")
    images = config.epochs * (card.images["train"] // config.batch_size) * config.batch_size
    found: dict[str, Any] = {"seconds": seconds, "cpu_seconds": measure.cpu_seconds() - busy, "peak_megabytes": peak}
    found |= {"images_per_second": images / seconds, "loss": losses}
    if run["knn"]:
        found["knn"] = knn(encoder, folder / "data" / "prepared", card)
    return found


def knn(encoder: nn.Module, prepared: Path, card: DatasetCard) -> float:
    """Percent of the test images that the most similar training images, by the cosine of h, classify rightly."""
    (bank, bank_labels), (queries, labels) = (
        _features(encoder, ShardedImages(prepared / split), card) for split in ("train", "test")
    )
    classes = len(card.classes)
    return knn_accuracy(bank, bank_labels, queries, labels, classes, neighbors=NEIGHBORS, temperature=TEMPERATURE)


def _features(encoder: nn.Module, images: ShardedImages, card: DatasetCard) -> tuple[NDArray[Any], NDArray[Any]]:
    pixels = np.stack(list(_pixels(images)))
    return encode(encoder, pixels, card.mean, card.std).numpy(force=True), images.labels


def _pixels(images: ShardedImages) -> Iterator[NDArray[np.uint8]]:
    return (decode(images.read(number)) for number in range(len(images)))


if __name__ == "__main__":
    found = measured(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps(found))
