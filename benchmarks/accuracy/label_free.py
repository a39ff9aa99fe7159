"""Which number that needs no label follows accuracy? Encoders from untrained to good, judged with and without labels.

    python -m benchmarks.accuracy.label_free --json benchmarks/results/FILE.json
    python -m benchmarks.accuracy.label_free --quick

Half an hour on two busy cores; the numbers of ``--quick`` mean nothing. The demo's encoder is trained on part of the
demo's sample: for one to twenty epochs, and for five with views that are too weak and with a temperature that is too
low. Without labels each is judged on images of the training set that it has not seen, of which it gets two views; with
labels by kNN and a linear probe on the test images. Trained encoders stay in the folder of ``--keep``, so that a new
number costs no new training.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import measure
from benchmarks.simclr_core.pretrain import COMMON, SMALL
from pipeline.sample.make import ARCHIVE, CLASSES
from simclr_core.augmentation.augmentations import Augmentation
from simclr_core.data.dataset import evaluation_images
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import DatasetCard, Sample, ShardedImages, read_card, write_card
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.evaluation.features import encode
from simclr_core.evaluation.images import random_encoder
from simclr_core.evaluation.knn import knn_accuracy, nearest
from simclr_core.evaluation.label_free import MILD, NEIGHBORS, draw_views, kept_neighbors
from simclr_core.evaluation.linear_probe import fit_probe, ranked_classes
from simclr_core.loss.nt_xent import nt_xent
from simclr_core.model.encoder import Encoder
from simclr_core.model.model_directory import Model, load_model
from simclr_core.model.projection_head import build_projection_head
from simclr_core.monitoring.diagnostics import alignment, effective_rank, uniformity
from simclr_core.pretraining import initial, pretrain

RECIPE = COMMON["augmentation"]
RUNS: dict[str, dict[str, Any]] = {
    **{f"{epochs} epochs": {"epochs": epochs} for epochs in (1, 2, 5, 10, 20)},
    **{f"{epochs} epochs, another seed": {"epochs": epochs, "seed": 1} for epochs in (1, 2)},
    "5 epochs, weak views": {"epochs": 5, "augmentation": RECIPE | {"crop_scale": [0.8, 1.0], "jitter_strength": 0.0}},
    "5 epochs, temperature 0.05": {"epochs": 5, "temperature": 0.05},
}
RESOLVED = (("5 epochs", "10 epochs"), ("10 epochs", "20 epochs"))
UNTRAINED = 3
Found = Mapping[str, Mapping[str, float]]  # "with labels" and "without", each by the name of a number
CLEAR = 1.0  # points of accuracy: where two encoders differ by less, neither is the better one


@dataclass(frozen=True)
class Sizes:
    train: int = 3000
    held_out: int = 1000
    runs: tuple[str, ...] = tuple(RUNS)


QUICK = Sizes(256, 64, ("1 epochs", "2 epochs"))


def write_prepared(folder: Path, sizes: Sizes) -> Path:
    """The sample in three parts: to train on, to judge on without labels, and the test set."""
    with tarfile.open(ARCHIVE) as archive:
        files = {one.name: content.read() for one in archive if (content := archive.extractfile(one))}
    names = dict(line.split(",") for line in files["labels.csv"].decode().split()[1:])
    order = sorted(names)
    np.random.default_rng(0).shuffle(order)
    drawn = order[: sizes.train + sizes.held_out]
    tests = {path: path.split("/")[1] for path in sorted(files) if path.startswith("test/")}
    parts = {
        "train": [_sample(files[path], names[path]) for path in drawn[: sizes.train]],
        "held_out": [_sample(files[path], names[path]) for path in drawn[sizes.train :]],
        "test": [_sample(files[path], name) for path, name in tests.items()],
    }
    for part, samples in parts.items():
        write_shards(folder / part, [samples], max_bytes=2**28)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one.data))) for one in parts["train"]]) / 255
    mean, std = (float(pixels.mean()),) * 3, (float(pixels.std()),) * 3
    counts = {"train": sizes.train, "train_labelled": sizes.train, "test": len(tests)}
    write_card(folder, DatasetCard(CLASSES, mean, std, 28, 28, counts, f"{sizes.train:064d}"))
    return folder


def _sample(png: bytes, name: str) -> Sample:
    content = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(content, "PNG")
    data = content.getvalue()
    return Sample(hashlib.sha256(data).hexdigest(), "png", data, CLASSES.index(name))


def trained(folder: Path, prepared: Path, name: str) -> Model:
    """The encoder of this run, from an earlier call if there was one."""
    workspace = folder / name.replace(" ", "-").replace(",", "")
    if not (workspace / "models" / "pretrained").exists():
        shutil.rmtree(workspace, ignore_errors=True)
        (workspace / "data").mkdir(parents=True)
        (workspace / "data" / "prepared").symlink_to(prepared)
        parameters = {"pretrain": COMMON | SMALL | RUNS[name], "watch": {}}
        (workspace / "params.yaml").write_text(yaml.safe_dump(parameters), encoding="utf-8")
        initial.run(workspace)
        pretrain.run(workspace)
    return load_model(workspace / "models" / "pretrained")


class Judge:
    """The images, decoded once: pixels of each part, and two views of those held out by how strong they are."""

    def __init__(self, prepared: Path, model: Model) -> None:
        self.card = read_card(prepared)
        self._images = {part: ShardedImages(prepared / part) for part in ("train", "held_out", "test")}
        self._pixels = {
            part: evaluation_images(images, np.arange(len(images)), model.preprocessing)
            for part, images in self._images.items()
        }
        held = self._images["held_out"]
        strengths = {"of training": Augmentation(28, **RECIPE), "mild": Augmentation(28, **MILD)}
        self._views = {
            name: [np.concatenate(views) for views in zip(*draw_views(held, np.arange(len(held)), one, 0), strict=True)]
            for name, one in strengths.items()
        }

    def accuracies(self, encoder: Encoder) -> dict[str, float]:
        bank, queries = (self._features(encoder, self._pixels[part]) for part in ("train", "test"))
        known, asked = (self._images[part].labels.astype(np.int64) for part in ("train", "test"))
        classes = len(self.card.classes)
        keys = self._images["train"].keys
        draw = LabelDraw("1.0", subset(known, keys, "1.0", seed=0))
        probe = fit_probe(bank, known, keys, classes, draw, l2_count=5, seed=0)
        return {
            "kNN": knn_accuracy(bank, known, queries, asked, classes, neighbors=20, temperature=0.1),
            "linear probe": 100 * float((ranked_classes(probe, queries)[:, 0] == asked).mean()),
        }

    def without_labels(self, encoder: Encoder, head: dict[str, Tensor] | None) -> dict[str, float]:
        """Every number so that more is better. ``head`` is None for untrained weights, whose head is as untrained."""
        held = torch.from_numpy(self._features(encoder, self._pixels["held_out"]))
        found = {"RankMe": effective_rank(held), "RankMe, length 1": effective_rank(normalize(held))}
        torch.manual_seed(0)
        projection = build_projection_head(held.shape[1], **COMMON["projection_head"]).eval()
        if head is not None:
            projection.load_state_dict(head)
        for name, views in self._views.items():
            first, second = (self._features(encoder, view) for view in views)
            h = torch.from_numpy(first), torch.from_numpy(second)
            with torch.inference_mode():
                z = projection(h[0]), projection(h[1])
            same = nearest(second, first, 1)[1].numpy()[:, 0] == np.arange(len(first))
            found |= {
                f"loss of z, temperature 0.5, {name} views": -float(nt_xent(*z, 0.5)),
                f"loss of h, temperature 0.1, {name} views": -float(nt_xent(*h, 0.1)),
                f"alignment of h, {name} views": -alignment(*h),
                f"uniformity of h, {name} views": -uniformity(h[0]),
                f"nearest is the other view, {name} views": 100 * float(same.mean()),
                f"neighbors kept, {name} views": 100 * float(kept_neighbors(first, second, NEIGHBORS).mean()),
            }
        return found

    def per_image(self, encoder: Encoder) -> dict[str, NDArray[np.float64]]:
        """What mild views give for each image, in percent."""
        first, second = (self._features(encoder, view) for view in self._views["mild"])
        same = nearest(second, first, 1)[1].numpy()[:, 0] == np.arange(len(first))
        return {
            "nearest is the other view": 100 * same.astype(np.float64),
            "neighbors kept": 100 * kept_neighbors(first, second, NEIGHBORS),
        }

    def _features(self, encoder: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return encode(encoder, pixels, self.card.mean, self.card.std).numpy(force=True)


def agreement(values: list[float], accuracies: list[float]) -> dict[str, float]:
    """Spearman's rank correlation, and the share of the pairs of clearly different encoders that it orders rightly."""
    pairs = [
        (values[one] - values[other]) * (accuracies[one] - accuracies[other]) > 0
        for one, other in combinations(range(len(values)), 2)
        if abs(accuracies[one] - accuracies[other]) >= CLEAR
    ]
    correlation = float(spearmanr(values, accuracies).statistic)
    return {"rank correlation": round(correlation, 2), "right": round(float(np.mean(pairs)), 2) if pairs else 0.0}


def agreements(encoders: Mapping[str, Found]) -> dict[str, dict[str, dict[str, float]]]:
    """By number that needs no label, by accuracy."""
    rows = list(encoders.values())
    return {
        number: {
            accuracy: agreement(
                [row["without"][number] for row in rows], [row["with labels"][accuracy] for row in rows]
            )
            for accuracy in rows[0]["with labels"]
        }
        for number in rows[0]["without"]
    }


def resolution(judge: Judge, better: Model, worse: Model) -> dict[str, dict[str, float]]:
    """How far two encoders are apart, paired by image, in points, next to the standard error of that."""
    one, other = judge.per_image(better.encoder), judge.per_image(worse.encoder)
    gains = {name: one[name] - other[name] for name in one}
    return {
        name: {
            "difference": round(float(gain.mean()), 2),
            "standard error": round(float(gain.std(ddof=1)) / len(gain) ** 0.5, 2),
        }
        for name, gain in gains.items()
    }


def main() -> None:
    options = measure.training_parser(__doc__).parse_args()
    sizes = QUICK if options.quick else Sizes()
    with measure.kept_folder(options.keep) as folder:
        prepared = folder / "prepared"
        if not prepared.exists():
            write_prepared(prepared, sizes)
        models = {name: trained(folder, prepared, name) for name in sizes.runs}
        first = next(iter(models.values()))
        judge = Judge(prepared, first)
        candidates: dict[str, tuple[Encoder, dict[str, Tensor] | None]] = {
            f"untrained, {seed}": (random_encoder(first, seed), None) for seed in range(UNTRAINED)
        }
        candidates |= {name: (model.encoder, model.head) for name, model in models.items()}
        encoders = {
            name: {"with labels": judge.accuracies(encoder), "without": judge.without_labels(encoder, head)}
            for name, (encoder, head) in candidates.items()
        }
    results = measure.header("label_free", "torch", "scipy")
    results |= {"train_images": sizes.train, "held_out_images": sizes.held_out, "epochs_of": "the recipe cpu-small"}
    results["encoders"] = {
        name: {kind: {one: round(value, 3) for one, value in values.items()} for kind, values in found.items()}
        for name, found in encoders.items()
    }
    results["agreement"] = agreements(encoders)
    results["agreement_of_trained"] = agreements({name: encoders[name] for name in models})
    results["resolution"] = {
        f"{better} against {worse}": resolution(judge, models[better], models[worse])
        for worse, better in RESOLVED
        if better in models
    }
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


if __name__ == "__main__":
    main()
