"""The whole of Fashion-MNIST: what a small encoder learns in an hour of two cores, ours and lightly's in equal time.

    python -m benchmarks.accuracy.fashion --keep FOLDER --json benchmarks/results/FILE.json
    python -m benchmarks.accuracy.fashion --keep FOLDER --pieces 1       the next piece, and no more

60,000 images train and 10,000 test. First both loops are timed in turns, from which follow the epochs that each gets.
Then, for each seed, each loop trains the same encoder from the same weights (``pretrain_loops``), and the stages
``linear_eval`` and ``finetune`` judge both: kNN, probes from 10 labels to all, and the network fine-tuned on 1 % and
10 % of the labels, compared with random weights, raw pixels, and a network that had the labels alone. A seed draws
weights, order, views and labels. Each of these is a piece: all that is done stays in the folder of ``--keep``, and the
same command continues; an interrupted training continues from its last checkpoint, lightly's from its last epoch.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from benchmarks import measure
from benchmarks.simclr_core.pretrain import COMMON, OURS, PEER, SMALL, Bench, write_prepared
from benchmarks.simclr_core.pretrain import Sizes as BenchSizes
from benchmarks.simclr_core.pretrain_loops import LIGHTLY
from deploy.artifact import publish
from simclr_core.evaluation.paired_comparison import half_width
from simclr_core.model.model_directory import load_model, save_model

CONFIDENCE = 0.975  # of each end of an interval of 95 %
PER_CLASS = [1, 3, 10, 30, 100, 300]  # labels of each class
SHARES = ["0.01", "0.1", "1.0"]
TUNED = ("0.01", "0.1")
LOOPS = (OURS, PEER)


@dataclass(frozen=True)
class Sizes:
    """Images to train and to test with, minutes of training, images of a timed run, rounds of these, seeds."""

    train: int = 60_000
    test: int = 10_000
    minutes: float = 60.0
    timed: int = 10_000
    rounds: int = 3
    seeds: int = 3


QUICK = Sizes(train=512, test=200, minutes=0.0, timed=512, rounds=1, seeds=2)


@dataclass(frozen=True)
class Piece:
    """Something that takes minutes, and whose result ``made`` stays."""

    made: Path
    make: Callable[[], None]


def pieces(folder: Path, sizes: Sizes) -> Iterator[Piece]:
    """In their order: the next one may read what the ones before have made."""
    prepared, timing = folder / "prepared", folder / "timing.json"
    yield Piece(prepared, lambda: _prepare(prepared, sizes))
    yield Piece(timing, lambda: measure.write(time_loops(folder, sizes), timing))
    timed = json.loads(timing.read_text(encoding="utf-8"))
    for seed in range(sizes.seeds):
        for loop in LOOPS:
            place, first = folder / f"{loop}-{seed}", folder / f"{OURS}-{seed}"
            _lay_out(place, prepared, seed, timed["epochs"][loop], timed["workers"])
            yield Piece(place / "training.json", partial(_train, loop, place, first))
            yield Piece(place / "reports" / "linear_eval.json", partial(_stage, place, "linear_eval"))
            for share in TUNED:
                made = place / "reports" / f"finetune-{share}.json"
                yield Piece(made, partial(_stage, place, "finetune", "--fraction", share))


def _prepare(prepared: Path, sizes: Sizes) -> None:
    work = prepared.with_name("preparing")
    write_prepared(work, sizes.train, sizes.test).rename(prepared)


def time_loops(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Images a second of short runs in turns, and for how many epochs the minutes are enough."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        bench = Bench(Path(work), BenchSizes(run=(sizes.timed, 1), test=64))
        rates: dict[str, list[float]] = {loop: [] for loop in LOOPS}
        for number in range(sizes.rounds):
            for loop in LOOPS[:: 1 if number % 2 else -1]:
                workers = bench.best_workers if loop == PEER else 0
                found = bench.run(loop, sizes.timed, workers=workers, epochs=1, **SMALL)
                rates[loop].append(found["images_per_second"])
    medians = {loop: measure.spread(values, 1) for loop, values in rates.items()}
    affordable = {
        loop: max(1, int(60 * sizes.minutes * rate["median"] / sizes.train)) for loop, rate in medians.items()
    }
    return {"images_per_second": medians, "workers": bench.best_workers, "epochs": affordable}


def _lay_out(place: Path, prepared: Path, seed: int, epochs: int, workers: int) -> None:
    if (place / "run.json").exists():
        return
    (place / "data").mkdir(parents=True, exist_ok=True)
    if not (place / "data" / "prepared").exists():
        (place / "data" / "prepared").symlink_to(prepared)
    run = {
        "workers": workers,
        "knn": False,
        "resumable": True,
        "pretrain": COMMON | SMALL | {"epochs": epochs, "seed": seed},
    }
    measure.write(run, place / "run.json")


def _train(loop: str, place: Path, first: Path) -> None:
    """In a process; then the parameters of the stages that judge. ``first`` is ours with this seed."""
    run = [sys.executable, "-m", "benchmarks.simclr_core.pretrain_loops", loop, str(place)]
    done = subprocess.run(run, stdout=subprocess.PIPE, check=True, text=True)
    if loop == PEER:
        publish_lightly(place, first / "models" / "pretrained")
    params = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    seed = params["pretrain"]["seed"]
    params["linear_eval"] = {"fractions": SHARES, "labels_per_class": PER_CLASS, "draws": 1, "seed": seed}
    params["finetune"] = {"seeds": [seed]}
    (place / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    measure.write(json.loads(done.stdout.splitlines()[-1]), place / "training.json")


def publish_lightly(place: Path, ours: Path) -> None:
    """Its encoder and head as a model directory, which the stages read; the card is that of ours, the same network."""
    model = load_model(ours)
    state = torch.load(place / LIGHTLY)["model"]
    encoder, head = ({key[2:]: state[key] for key in state if key.startswith(part)} for part in ("0.", "1."))
    model.encoder.load_state_dict(encoder)
    with publish(place / "models" / "pretrained", replace=True) as work:
        save_model(work, model.encoder, head, {**model.card, "metrics": {}, "producer": PEER})


def _stage(place: Path, *stage: str) -> None:
    subprocess.run([sys.executable, "-m", "simclr_core", *stage], cwd=place, stdout=subprocess.DEVNULL, check=True)


def summarize(folder: Path, seeds: int) -> dict[str, Any]:
    """By encoder and number each seed's accuracy, mean and 95 % interval over the seeds, and ours less lightly's."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        for loop in LOOPS:
            for who, numbers in _numbers(folder / f"{loop}-{seed}", loop).items():
                for name, value in numbers.items():
                    found.setdefault(who, {}).setdefault(name, []).append(value)
    result: dict[str, Any] = {
        who: {name: describe(values) for name, values in numbers.items()} for who, numbers in found.items()
    }
    result[f"{OURS} - {PEER}"] = {
        name: describe([one - other for one, other in zip(values, found[PEER][name], strict=True)])
        for name, values in found[OURS].items()
    }
    return result


def _numbers(place: Path, loop: str) -> Mapping[str, Mapping[str, float]]:
    """What the reports say of the encoder, and, once for each seed, of what it is compared with."""
    training, judged = (
        json.loads((place / name).read_text(encoding="utf-8")) for name in ("training.json", "reports/linear_eval.json")
    )
    kinds = {loop: "simclr"} if loop == PEER else {loop: "simclr", "random weights": "random_init", "pixels": "pixels"}
    found: dict[str, dict[str, float]] = {who: _frozen(judged, kind) for who, kind in kinds.items()}
    found[loop] |= {name: training[name] for name in ("seconds", "cpu_seconds")}
    for share in TUNED:
        tuned = json.loads((place / "reports" / f"finetune-{share}.json").read_text(encoding="utf-8"))
        found[loop][f"fine-tuned, {tuned['labels']:,} labels"] = tuned["top1"]
        if loop == OURS:
            scratch = found.setdefault("from scratch", {})
            scratch[f"fine-tuned, {tuned['labels']:,} labels"] = tuned["scratch_top1"]
    return found


def _frozen(judged: Mapping[str, Any], kind: str) -> dict[str, float]:
    probes = {f"linear, {budget['labels']:,} labels": budget[kind]["top1"] for budget in judged["budgets"].values()}
    return {"kNN": judged[kind]["knn_top1"], **probes}


def describe(values: Sequence[float]) -> dict[str, Any]:
    """An interval of one seed is not known."""
    half = half_width(values, CONFIDENCE) if len(values) > 1 else None
    return {
        "mean": round(fmean(values), 2),
        "half_width": None if half is None else round(half, 2),
        "seeds": [round(value, 2) for value in values],
    }


def main() -> None:
    parser = measure.training_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=Sizes.minutes, help="of each training (%(default)g)")
    parser.add_argument("--seeds", type=int, default=Sizes.seeds, help="how many (%(default)s)")
    parser.add_argument("--pieces", type=int, metavar="N", help="stop after N pieces, to continue another time")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes(minutes=options.minutes, seeds=options.seeds)
    with measure.kept_folder(options.keep) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        made = 0
        for piece in pieces(folder, sizes):
            if piece.made.exists():
                continue
            if made == options.pieces:
                print("more pieces are left; the same command continues")
                return
            piece.make()
            made += 1
            print(f"made {piece.made.relative_to(folder)}", flush=True)
        timing = json.loads((folder / "timing.json").read_text(encoding="utf-8"))
        results = measure.header("fashion", "torch", "lightly") | {"minutes": sizes.minutes, "timing": timing}
        results |= summarize(folder, sizes.seeds)
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


if __name__ == "__main__":
    main()
