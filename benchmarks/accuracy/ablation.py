"""What each part of SimCLR is worth: the loss, the head, the batch and the views, one changed at a time.

    python -m benchmarks.accuracy.ablation --keep FOLDER --json benchmarks/results/FILE.json
    python -m benchmarks.accuracy.ablation --keep FOLDER --runs 5        the next five trainings, and no more

The recipe cpu-small on part of the demo's sample (Fashion-MNIST), for few epochs: the ablations of the paper (Chen et
al. 2020, sections 3 to 5) in small. Each variant is trained with every seed and judged by kNN and a linear probe on the
test images. Trained encoders stay in the folder of ``--keep``, and are not trained again; a training that was
interrupted continues. The numbers of ``--quick`` mean nothing.
"""

import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure
from benchmarks.accuracy import label_free
from benchmarks.accuracy.label_free import Judge, write_prepared
from benchmarks.simclr_core.pretrain import COMMON, SMALL
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import initial, pretrain

VIEWS = COMMON["augmentation"]
CROP_ALONE = VIEWS | {"jitter_probability": 0.0, "flip": 0.0}
BASE = "as in cpu-small"  # NT-Xent, a head of two layers, batches of 256, crop, flip and jitter
QUEUE = {"size": 1024, "momentum": 0.99}  # shorter than an epoch

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "loss": {
        "NT-Xent": {},
        "DCL": {"loss": "dcl"},
        "InfoNCE": {"loss": "info_nce"},
        "InfoNCE, queue of 1,024": {"loss": "info_nce", "queue": QUEUE},
    },
    "head": {
        f"{name} ({layers} layers)": {"projection_head": COMMON["projection_head"] | {"layers": layers}}
        for name, layers in (("none", 0), ("linear", 1), ("MLP", 2), ("MLP", 3))
    },
    "batch": {str(size): {"batch_size": size} for size in (64, 128, 256, 512)},
    "views": {
        "crop": {"augmentation": CROP_ALONE},
        "crop and flip": {"augmentation": CROP_ALONE | {"flip": 0.5}},
        "crop, flip and jitter": {},
        "crop, flip, jitter and blur": {"augmentation": VIEWS | {"blur": 0.5}},
        "crop, flip, jitter and solarization": {"augmentation": VIEWS | {"solarize": 0.2}},
        "jitter alone": {"augmentation": VIEWS | {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}},
    },
}


@dataclass(frozen=True)
class Sizes:
    train: int = 6000
    epochs: int = 4
    seeds: int = 3


QUICK = Sizes(512, 1, 1)


@dataclass(frozen=True)
class Run:
    """A training of one seed; ``folder`` is where it is kept."""

    changes: Mapping[str, Any]
    seed: int
    folder: Path

    @property
    def is_done(self) -> bool:
        return (self.folder / "models" / "pretrained").exists()

    def train(self, prepared: Path, epochs: int) -> None:
        """From the last checkpoint, if there is one."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        if not (self.folder / "data" / "prepared").exists():
            (self.folder / "data" / "prepared").symlink_to(prepared)
        parameters = {"pretrain": COMMON | SMALL | {"epochs": epochs} | dict(self.changes) | {"seed": self.seed}}
        (self.folder / "params.yaml").write_text(yaml.safe_dump({**parameters, "watch": {}}), encoding="utf-8")
        initial.run(self.folder)
        pretrain.run(self.folder)


def runs(folder: Path, seeds: int) -> dict[tuple[str, str, int], Run]:
    """By part, variant and seed; what equals the base is the same run, trained once."""
    found = {}
    for (part, variants), seed in product(VARIANTS.items(), range(seeds)):
        for name, changes in variants.items():
            is_base = COMMON | SMALL | changes == COMMON | SMALL
            place = folder / f"{'base' if is_base else _slug(f'{part} {name}')}-{seed}"
            found[part, name, seed] = Run(changes, seed, place)
    return found


def _slug(name: str) -> str:
    return "-".join("".join(one if one.isalnum() else " " for one in name).split())


def missing(all_runs: Mapping[tuple[str, str, int], Run]) -> Iterator[Run]:
    """Each folder once, and a first seed of all before a second one of any."""
    by_folder = {run.folder: run for run in all_runs.values() if not run.is_done}
    yield from sorted(by_folder.values(), key=lambda run: run.seed)


def judged(all_runs: Mapping[tuple[str, str, int], Run], prepared: Path) -> dict[Path, dict[str, float]]:
    """Accuracies in percent, by folder."""
    models = {run.folder: load_model(run.folder / "models" / "pretrained") for run in all_runs.values()}
    judge = Judge(prepared, next(iter(models.values())))
    return {folder: judge.accuracies(model.encoder) for folder, model in models.items()}


def table(all_runs: Mapping[tuple[str, str, int], Run], accuracies: Mapping[Path, Mapping[str, float]]) -> Any:
    """By part and variant: mean and standard deviation over the seeds, and of the difference to the base."""
    seeds = 1 + max(seed for _, _, seed in all_runs)
    rows: dict[str, dict[str, Any]] = {part: {} for part in VARIANTS}
    for part, variants in VARIANTS.items():
        for name in variants:
            found = [accuracies[all_runs[part, name, seed].folder] for seed in range(seeds)]
            base = [accuracies[all_runs["loss", "NT-Xent", seed].folder] for seed in range(seeds)]
            rows[part][name] = {
                accuracy: {
                    **_spread([one[accuracy] for one in found]),
                    "gain": _spread([one[accuracy] - other[accuracy] for one, other in zip(found, base, strict=True)]),
                }
                for accuracy in found[0]
            }
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), 2), "standard_deviation": round(deviation, 2)}


def main() -> None:
    parser = measure.training_parser(__doc__)
    parser.add_argument("--images", type=int, metavar="N", help=f"to train on; default: {Sizes.train}")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"default: {Sizes.epochs}")
    parser.add_argument("--runs", type=int, metavar="N", help="stop after N trainings, to continue another time")
    options = parser.parse_args()
    default = QUICK if options.quick else Sizes()
    sizes = Sizes(options.images or default.train, options.epochs or default.epochs, default.seeds)
    with measure.kept_folder(options.keep) as folder:
        prepared = folder / "prepared"
        if not prepared.exists():
            write_prepared(prepared, label_free.Sizes(sizes.train, held_out=64))
        all_runs = runs(folder, sizes.seeds)
        for number, run in enumerate(missing(all_runs)):
            if number == options.runs:
                break
            run.train(prepared, sizes.epochs)
        left = len(list(missing(all_runs)))
        if left:
            print(f"{left} trainings are left; the same command continues")
            return
        results = measure.header("ablation", "torch") | {
            "train_images": sizes.train,
            "epochs": sizes.epochs,
            "seeds": sizes.seeds,
            "variants": table(all_runs, judged(all_runs, prepared)),
        }
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


if __name__ == "__main__":
    main()
