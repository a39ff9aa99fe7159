"""Is it worth to choose which images to label? Each way of ``simclr suggest`` compared with random choice.

    python -m benchmarks.accuracy.suggest --packages FOLDER --json benchmarks/results/FILE.json
    python -m benchmarks.accuracy.suggest --packages FOLDER --quick

On part of the demo's sample of Fashion-MNIST, and on handwritten digits (see ``adapt``, which says what FOLDER holds),
an encoder of the recipe cpu-small is pretrained for a few epochs. For each seed, a random half of the training images
is what can be labeled, and each way chooses from it, budget by budget: what it chose before has a label then. A probe
as that of ``linear_eval`` is fitted on these labels alone, and asked about the test images. Random choice is drawn
several times for each seed. Intervals are of 95 %, over the seeds and the test images; differences are paired.

For wrong labels, some labels of that half are replaced by those of other classes, and what is suspected first is
compared with what was replaced.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.accuracy.adapt import CONFIDENCE, read_digits, read_fashion, train, write_set
from benchmarks.simclr_core.pretrain import SMALL
from simclr_core.config import LinearEvalConfig
from simclr_core.data.shards import read_card
from simclr_core.data.subsets import LabelDraw
from simclr_core.evaluation.calibration import softmax
from simclr_core.evaluation.images import EvaluationImages, outputs, read_splits
from simclr_core.evaluation.linear_probe import Probe, fit_probe, probe_logits, ranked_classes
from simclr_core.evaluation.paired_comparison import half_width, interval, widened
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation.scores.folds import divide
from simclr_core.model.model_directory import load_model
from simclr_core.suggest.choose import draw_all, out_of_fold
from simclr_core.suggest.diverse import spread_out
from simclr_core.suggest.mistakes import suspect
from simclr_core.suggest.pool import Features, scale_rows
from simclr_core.suggest.ranked import margins, novelties
from simclr_core.suggest.typical import most_typical

RANDOM = "random"
L2_COUNT = 6
FLIPPED, FLAGGED = 0.05, 0.01  # of the labels: wrong ones, and those that are looked at
Right = Mapping[int, NDArray[np.bool_]]  # by budget, which test images the probe gets right


@dataclass(frozen=True)
class Sizes:
    """Training and test images of each set, epochs, budgets, seeds, and draws of random choice for each seed."""

    images: Mapping[str, tuple[int, int]]
    epochs: int
    budgets: tuple[int, ...]
    seeds: int
    draws: int


FULL = Sizes({"fashion": (6000, 2000), "digits": (4000, 1000)}, 5, (20, 40, 60, 100, 200, 500), 5, 5)
QUICK = Sizes({"fashion": (600, 100), "digits": (600, 100)}, 1, (20, 40), 2, 2)


@dataclass(frozen=True)
class Labeling:
    """The half that can be labeled: features [n, d] as they come, and of length 1; classes and SHA-256."""

    features: Features
    scaled: Features
    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]
    classes: int

    def fit(self, chosen: Sequence[int], seed: int) -> Probe:
        draw = LabelDraw(str(len(chosen)), np.sort(np.array(chosen, np.int64)))
        return fit_probe(self.features, self.labels, self.keys, self.classes, draw, L2_COUNT, seed)


Way = Callable[[Labeling, list[int], int, int], NDArray[np.int64]]
"""From what was chosen before, how many more, and the seed, to the positions that are chosen next."""


def known(half: Labeling, chosen: list[int]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which images have a label, and a group of one for each."""
    labeled = np.zeros(len(half.labels), bool)
    labeled[chosen] = True
    return labeled, np.arange(len(labeled))


def at_random(half: Labeling, chosen: list[int], count: int, seed: int) -> NDArray[np.int64]:
    rest = np.flatnonzero(~known(half, chosen)[0])
    return np.random.default_rng((seed, len(chosen))).permutation(rest)[:count]


def by_margin(half: Labeling, chosen: list[int], count: int, seed: int) -> NDArray[np.int64]:
    """Without a probe, at random."""
    if len(np.unique(half.labels[chosen])) < 2:
        return at_random(half, chosen, count, seed)
    rest = np.flatnonzero(~known(half, chosen)[0])
    likely = softmax(probe_logits(half.fit(chosen, seed), half.features[rest]))
    return rest[np.argsort(margins(likely), kind="stable")][:count]


def by_novelty(half: Labeling, chosen: list[int], count: int, _seed: int) -> NDArray[np.int64]:
    labeled, _ = known(half, chosen)
    rest = np.flatnonzero(~labeled)
    return rest[np.argsort(-novelties(half.scaled, labeled)[rest], kind="stable")][:count]


WAYS: dict[str, Way] = {
    RANDOM: at_random,
    "typical": lambda half, chosen, count, _: most_typical(half.scaled, *known(half, chosen), count).positions,
    "diverse": lambda half, chosen, count, _: spread_out(half.scaled, *known(half, chosen), count).positions,
    "uncertain": by_margin,
    "novel": by_novelty,
}


def learn(
    way: Way, half: Labeling, test: tuple[Features, NDArray[np.int64]], budgets: Sequence[int], seed: int
) -> Right:
    """Choose up to each budget, fit a probe, and ask it."""
    chosen, right = list[int](), {}
    for budget in budgets:
        chosen += way(half, chosen, budget - len(chosen), seed).tolist()
        assert len(set(chosen)) == budget, (len(set(chosen)), budget)
        right[budget] = ranked_classes(half.fit(chosen, seed), test[0])[:, 0] == test[1]
    return right


def summarize(answers: Mapping[str, Sequence[Sequence[Right]]], budgets: Sequence[int]) -> dict[str, Any]:
    """By way and budget the accuracy, and what it gains over random choice: percent, and points. ``answers`` are by
    way, seed and draw; of all ways but random there is one draw."""
    found: dict[str, Any] = {}
    for way, seeds in answers.items():
        found[way] = {}
        for budget in budgets:
            means = [float(np.mean([one[budget].mean() for one in draws])) for draws in seeds]
            found[way][str(budget)] = asdict(estimate(means, len(seeds[0][0][budget]), budget))
            if way != RANDOM:
                found[way][str(budget)]["gain"] = gain(seeds, answers[RANDOM], budget)
    return found


def gain(ours: Sequence[Sequence[Right]], theirs: Sequence[Sequence[Right]], budget: int) -> dict[str, float]:
    """In points. The draws of one seed count as one repetition."""
    pairs = [(one[0][budget], other[budget]) for one, draws in zip(ours, theirs, strict=True) for other in draws]
    counts = [(int(np.sum(one & ~other)), int(np.sum(other & ~one))) for one, other in pairs]
    each = [
        float(one[0][budget].mean() - np.mean([other[budget].mean() for other in draws]))
        for one, draws in zip(ours, theirs, strict=True)
    ]
    of_images = interval(len(pairs[0][0]), counts, CONFIDENCE)
    found = widened(of_images, each, CONFIDENCE, alone=0.02)
    return {name: round(100 * getattr(found, name), 2) for name in ("difference", "low", "high")}


def find_flipped(images: EvaluationImages, half: Labeling, seed: int) -> dict[str, float]:
    """How many of the labels suspected first are wrong, and how many of the wrong ones are suspected at all."""
    draw = np.random.default_rng(seed)
    flipped = draw.permutation(len(half.labels))[: round(FLIPPED * len(half.labels))]
    labels = half.labels.copy()
    labels[flipped] = (labels[flipped] + draw.integers(1, half.classes, len(flipped))) % half.classes
    given = EvaluationImages(images.images, np.arange(len(labels)), labels, half.keys)
    folds = divide(given, seed, draw_all)
    config = LinearEvalConfig(l2_count=L2_COUNT, seed=seed)
    suspected = suspect(out_of_fold(half.features, given, folds, half.classes, config), labels).positions
    wrong = np.isin(suspected, flipped)
    first = wrong[: round(FLAGGED * len(labels))]
    return {
        "precision": round(float(first.mean()), 3),
        "suspected": len(suspected),
        "precision of all": round(float(wrong.mean()), 3),
        "recall of all": round(float(wrong.sum() / len(flipped)), 3),
    }


def describe_flipped(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    precision = [one["precision"] for one in seeds]
    mean, half = float(np.mean(precision)), half_width(precision, CONFIDENCE)
    whole = {"precision": round(mean, 3), "low": round(mean - half, 3), "high": round(min(1.0, mean + half), 3)}
    return {"flipped": FLIPPED, "flagged": FLAGGED, **whole, "seeds": list(seeds)}


def run(folder: Path, packages: Path, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The results so far, after each set and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"sizes": asdict(sizes)}
    for name, (pixels, classes) in {"fashion": read_fashion(), "digits": read_digits(packages)}.items():
        prepared = write_set(folder / name, pixels, classes, *sizes.images[name])
        place = folder / f"{name}-0"
        train(place, prepared, None, epochs=sizes.epochs, seed=0, **SMALL)
        model = load_model(place / "models" / "pretrained")
        bank, test = read_splits(prepared)
        (features,), (queries,) = (outputs([model.encoder], split, model) for split in (bank, test))
        count = len(read_card(prepared).classes)
        answers: dict[str, list[list[Right]]] = {way: [] for way in WAYS}
        flipped = []
        for seed in range(sizes.seeds):
            rows = np.sort(np.random.default_rng(seed).permutation(len(features))[: len(features) // 2])
            raw = features[rows]
            half = Labeling(raw, scale_rows(raw.copy()), bank.labels[rows], bank.keys[rows], count)
            for way, choose in WAYS.items():
                draws = sizes.draws if way == RANDOM else 1
                asked = queries, test.labels
                right = [learn(choose, half, asked, sizes.budgets, 1000 * seed + draw) for draw in range(draws)]
                answers[way].append(right)
            flipped.append(find_flipped(bank, half, seed))
            results[name] = {"labels": summarize(answers, sizes.budgets), "seeds": seed + 1}
            if seed:
                results[name]["wrong labels"] = describe_flipped(flipped)
            yield results


def main() -> None:
    parser = measure.training_parser(__doc__)
    parser.add_argument("--packages", type=Path, default=Path(), metavar="FOLDER", help="where the packages are")
    options = parser.parse_args()
    with measure.kept_folder(options.keep) as folder:
        for results in run(folder, options.packages, QUICK if options.quick else FULL):
            print(json.dumps(results, indent=1), flush=True)
            measure.write(measure.header("suggest", "torch", "scikit-learn") | results, options.json)


if __name__ == "__main__":
    main()
