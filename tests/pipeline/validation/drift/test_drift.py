import io
import json
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from scipy.stats import binom
from sklearn.datasets import load_sample_images

from pipeline.config import DriftConfig
from pipeline.reports import FoundShape
from pipeline.sample.make import ARCHIVE
from pipeline.validation.drift.calibration import CLASSIFIER, FALSE_ALARMS
from pipeline.validation.drift.drift import CATEGORIES, NUMBERS, Drift, judge
from pipeline.validation.probe.probe import probe
from tests.repetitions import repeated, repetitions

Columns = dict[str, Any]
Change = Callable[[Columns], Columns]


def images(count: int, seed: int, batch: str = "0001", change: Change | None = None) -> pl.DataFrame:
    """Rows of accepted training images as of color photographs: warm, mostly JPEG, of many sizes."""
    random = np.random.default_rng([seed, count])
    light, tint = random.normal(115, 35, count).clip(20, 235), random.normal(8, 9, count)
    columns: Columns = {
        "luma_mean": light,
        "luma_std": random.gamma(9, 6, count),
        "saturation": 20 + random.gamma(3, 12, count),
        "entropy": random.normal(6.8, 0.6, count),
        "edge_energy": random.gamma(4, 3, count),
        "red_mean": light + tint,
        "green_mean": light + random.normal(0, 4, count),
        "blue_mean": light - tint,
        "width": random.integers(200, 600, count),
        "height": random.integers(200, 600, count),
        "format": random.choice(["JPEG", "PNG", "WEBP"], count, p=[0.9, 0.09, 0.01]),
        "mode": random.choice(["RGB", "L"], count, p=[0.97, 0.03]),
    }
    columns |= change(columns) if change else {}
    sides = np.stack([columns["width"], columns["height"]])
    columns |= {"short_side": sides.min(axis=0), "aspect": sides.max(axis=0) / sides.min(axis=0)}
    columns["sha256"] = [random.bytes(32).hex() for _ in range(count)]
    same = {"batch": batch, "ingest_batch": batch, "verdict": "accept", "split": "train"}
    return pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in same.items()})


def compared(earlier: pl.DataFrame, new: pl.DataFrame, **options: Any) -> Drift:
    return judge(pl.concat([earlier, new]), **dict(DriftConfig()) | options)


def brighter(columns: Columns) -> Columns:
    lit = ("luma_mean", "red_mean", "green_mean", "blue_mean")
    return {name: (columns[name] * 1.15).clip(0, 255) for name in lit}


def paler(columns: Columns) -> Columns:
    return {"saturation": columns["saturation"] * 0.8}


def smaller(columns: Columns) -> Columns:
    return {name: columns[name] * 3 // 4 for name in ("width", "height")}


def flatter(columns: Columns) -> Columns:
    return {"luma_std": columns["luma_std"] * 0.8, "entropy": columns["entropy"] - 0.3}


def other_format(columns: Columns) -> Columns:
    return {"format": np.where(np.arange(len(columns["format"])) % 2, columns["format"], "WEBP")}


def cooler(columns: Columns) -> Columns:
    """Every marginal nearly stays: what moves is red next to blue."""
    return {"red_mean": columns["red_mean"] - 3, "blue_mean": columns["blue_mean"] + 3}


def gray(columns: Columns) -> Columns:
    light = columns["luma_mean"]
    return {"saturation": light * 0, "red_mean": light, "green_mean": light, "blue_mean": light}


def swapped(columns: Columns) -> Columns:
    return {"red_mean": columns["blue_mean"], "blue_mean": columns["red_mean"]}


def one_size(columns: Columns) -> Columns:
    return {name: np.full(len(columns[name]), 224) for name in ("width", "height")}


def dark(columns: Columns) -> Columns:
    return {name: columns[name] / 8 for name in ("luma_mean", "red_mean", "green_mean", "blue_mean", "saturation")}


def light(columns: Columns) -> Columns:
    return {name: 255 - columns[name] / 8 for name in ("luma_mean", "red_mean", "green_mean", "blue_mean")}


BUGS: dict[str, Change] = {
    "gray": gray,
    "swapped_channels": swapped,
    "one_size": one_size,
    "dark": dark,
    "light": light,
}


@pytest.mark.seconds
@pytest.mark.parametrize(("earlier", "new"), [(3000, 800), (300, 80)])
def test_more_of_the_same_is_not_drift(earlier: int, new: int) -> None:
    found = compared(images(earlier, 1), images(new, 2, "0002"))
    assert found.verdict == "none"
    assert [one.name for one in found.statistics] == [*NUMBERS, *CATEGORIES, CLASSIFIER]
    assert {one.shape for one in found.shapes} == BUGS.keys()
    reported = asdict(found.report)
    assert list(reported) == [
        "verdict",
        "batch",
        "reference_images",
        "batch_images",
        "auroc",
        "statistics",
        "shapes",
        "advice",
    ]
    assert (reported["batch"], reported["reference_images"], reported["batch_images"], reported["shapes"]) == (
        "0002",
        earlier,
        new,
        (),
    )
    assert reported["auroc"] == pytest.approx(0.5, abs=0.1)
    assert list(reported["statistics"][0]) == ["name", "effect", "threshold", "drifted"]
    json.dumps(reported, allow_nan=False)


@repeated
@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated() -> None:
    """Small batches, where chance and not the configured distance sets the thresholds."""
    rounds = repetitions(20, all=200)
    alarms = sum(
        compared(images(120, 1000 + seed), images(50, 5000 + seed, "0002")).verdict != "none" for seed in range(rounds)
    )
    assert alarms <= binom.ppf(0.999, rounds, FALSE_ALARMS)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (brighter, "luma_mean"),
        (paler, "saturation"),
        (smaller, "log_short_side"),
        (flatter, "luma_std"),
        (other_format, "format"),
        (cooler, "red_minus_blue"),
        (flatter, CLASSIFIER),
    ],
)
def test_a_shift_is_detected_and_named(change: Change, name: str) -> None:
    found = compared(images(2000, 3), images(400, 4, "0002", change))
    assert found.verdict == "drift"
    drifted = {one.name: one.effect / one.threshold for one in found.statistics if one.drifted}
    assert name in drifted
    assert max(drifted, key=lambda each: drifted[each]) in found.advice
    assert "retrain" in found.advice


@pytest.mark.seconds
@pytest.mark.parametrize("new", [100, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bug", BUGS)
def test_a_batch_that_looks_like_a_data_bug_is_broken(bug: str, new: int) -> None:
    found = compared(images(1000, 5), images(new, 6, "0002-<b>", BUGS[bug]))
    assert found.verdict == "broken"
    assert found.report.shapes == (FoundShape("0002-<b>", bug),)
    assert f"{bug} in 0002-<b>" in found.advice
    assert found.statistics


@pytest.mark.seconds
@repeated
@pytest.mark.parametrize("change", [brighter, paler, smaller, flatter, other_format, cooler])
@pytest.mark.parametrize("seed", range(repetitions(1, all=3)))
def test_a_natural_shift_is_not_reported_as_a_bug(change: Change, seed: int) -> None:
    assert compared(images(1000, 7 + seed), images(500, 80 + seed, "0002", change)).verdict == "drift"


@pytest.mark.seconds
@pytest.mark.parametrize("bug", ["gray", "one_size", "dark", "light"])
def test_a_property_of_all_batches_is_not_a_bug(bug: str) -> None:
    found = compared(images(1000, 8, change=BUGS[bug]), images(500, 9, "0002", BUGS[bug]))
    assert found.verdict == "none"


@pytest.mark.seconds
def test_images_of_one_size_without_color_are_compared() -> None:
    """One size, no color, as in many a benchmark: their spread is not a yardstick, and nothing divides by it."""
    both: Change = lambda columns: gray(columns) | one_size(columns)  # noqa: E731
    assert compared(images(300, 10, change=both), images(100, 11, "0002", both)).verdict == "none"
    found = compared(images(300, 10, change=both), images(100, 11, "0002"))
    assert found.verdict == "drift"
    json.dumps(asdict(found.report), allow_nan=False)


@pytest.mark.parametrize(
    ("earlier", "new", "why"),
    [
        (images(9, 1)[:0], images(500, 1, "0002"), "no earlier batch"),
        (images(500, 1), images(49, 1, "0002"), "the newest batch has only 49 accepted training images"),
        (images(99, 1), images(500, 1, "0002"), "the earlier batches have only 99 training images"),
    ],
)
def test_too_few_images_are_not_judged(earlier: pl.DataFrame, new: pl.DataFrame, why: str) -> None:
    found = compared(earlier, new)
    assert (found.verdict, found.statistics, found.report.auroc) == ("not judged", (), None)
    assert why in found.advice


def test_the_comparison_can_be_switched_off() -> None:
    found = compared(images(500, 1), images(500, 1, "0002", gray), enabled=False)
    assert (found.verdict, found.shapes) == ("not judged", ())
    assert "validate.drift.enabled" in found.advice


@pytest.mark.seconds
def test_only_accepted_training_images_count() -> None:
    def unlike(name: str, value: str) -> pl.DataFrame:
        return images(300, 12, "0002", gray).with_columns(pl.lit(value).alias(name))

    new = pl.concat([images(300, 13, "0002"), unlike("split", "test"), unlike("verdict", "quarantine")])
    found = compared(images(1000, 14), new)
    assert (found.verdict, found.batch_images) == ("none", 300)


def test_a_batch_of_labels_alone_is_not_judged() -> None:
    """Its rows tell of bytes that an earlier batch holds."""
    labels = images(300, 15).with_columns(ingest_batch=pl.lit("0002"))
    found = compared(images(300, 16), labels)
    assert (found.verdict, found.batch, found.batch_images) == ("not judged", "0002", 0)


@pytest.mark.seconds
def test_a_later_batch_does_not_hide_a_bug() -> None:
    broken = pl.concat([images(1000, 17), images(200, 18, "0002", swapped)])
    for count in (10, 500):
        found = compared(broken, images(count, 19, "0003"))
        assert found.verdict == "broken"
        assert "swapped_channels in 0002" in found.advice


@pytest.mark.seconds
def test_a_person_may_accept_a_batch_that_looks_like_a_bug() -> None:
    found = compared(images(1000, 20), images(300, 21, "0002", gray), accepted=("0002",))
    assert found.verdict == "drift"
    assert compared(images(1000, 20), images(300, 21, "0002", gray), accepted=("0001",)).verdict == "broken"


@pytest.mark.seconds
def test_the_same_rows_in_any_order_give_the_same_result() -> None:
    earlier, new = images(900, 22), images(300, 23, "0002", cooler)
    table = pl.concat([earlier, new])
    shuffled = table.sample(fraction=1, shuffle=True, seed=0)
    first, second = (judge(rows, **dict(DriftConfig())).report for rows in (table, shuffled))
    assert first == second


@pytest.mark.seconds
def test_thresholds_of_the_user_decide_what_counts_as_drift() -> None:
    earlier, new = images(2000, 24), images(500, 25, "0002", brighter)
    assert compared(earlier, new, distance=2.0, auroc=0.99).verdict == "none"


@pytest.mark.seconds
def test_ten_thousand_images_are_compared_in_seconds() -> None:
    table = pl.concat([images(8000, 26), images(2000, 27, "0002")])
    started = time.process_time()
    judge(table, **dict(DriftConfig()))
    assert time.process_time() - started < 6  # 0.6 s on an idle core; three seconds were promised


@pytest.mark.slow
def test_a_million_rows_are_judged_in_seconds() -> None:
    rows = pl.concat([images(20_000, 28 + number, f"{number:04d}") for number in range(5)])
    turned = [pl.col("sha256").str.slice(6 * copy) + pl.col("sha256").str.head(6 * copy) for copy in range(10)]
    names = [pl.col("batch") + f"-{copy}" for copy in range(10)]
    copies = [rows.with_columns(sha256=sha256, batch=name) for sha256, name in zip(turned, names, strict=True)]
    table = pl.concat(copies).with_columns(ingest_batch=pl.col("batch"))
    assert len(table) == 1_000_000
    started = time.process_time()
    assert judge(table, **dict(DriftConfig())).verdict == "none"
    assert time.process_time() - started < 10  # 1.3 s on an idle core


Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def photographs() -> tuple[pl.DataFrame, list[Pixels]]:
    """Crops of a photograph of a temple and of one of a flower: probed ones, and others."""
    random = np.random.default_rng(0)
    crops = []
    photographs = load_sample_images().images
    for number in range(1800):
        (height, width), photograph = random.integers(64, 128, 2), photographs[number % 2]
        top, left = random.integers(0, photograph.shape[0] - height), random.integers(0, photograph.shape[1] - width)
        crops.append(photograph[top : top + height, left : left + width])
    return probed(crops[:1200], "0001"), crops[1200:]


def probed(pixels: list[Pixels], batch: str, change: Callable[[Pixels], Pixels] = lambda image: image) -> pl.DataFrame:
    """The manifest's rows of these images, as validation would accept them."""
    rows = []
    for image in pixels:
        content = io.BytesIO()
        Image.fromarray(change(image)).save(content, "PNG", compress_level=1)
        facts = probe(content.getvalue())
        sides = facts["width"], facts["height"]
        rows.append(facts | {"short_side": min(sides), "aspect": max(sides) / min(sides)})
    names = [name for name in NUMBERS if name in rows[0]] + ["sha256", "short_side", "aspect", "width", "height"]
    table = pl.DataFrame([{name: row[name] for name in [*names, *CATEGORIES]} for row in rows])
    same = {"batch": batch, "ingest_batch": batch, "verdict": "accept", "split": "train"}
    return table.with_columns(**{name: pl.lit(value) for name, value in same.items()})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "verdict", "seen"),
    [
        (lambda image: image, "none", None),
        (lambda image: np.ascontiguousarray(image[..., ::-1]), "broken", "red_minus_blue"),
        (lambda image: (image * 1.15).clip(0, 255).astype(np.uint8), "drift", CLASSIFIER),
    ],
    ids=["the same", "swapped channels", "15 % brighter"],
)
def test_drift_between_real_photographs(
    photographs: tuple[pl.DataFrame, list[Pixels]], change: Callable[[Pixels], Pixels], verdict: str, seen: str | None
) -> None:
    earlier, new = photographs
    found = compared(earlier, probed(new, "0002", change))
    assert found.verdict == verdict
    assert seen is None or seen in {one.name for one in found.statistics if one.drifted}


@pytest.fixture(scope="module")
def clothes() -> dict[str, pl.DataFrame]:
    """The sample's test images by class, 200 of each."""
    pictures: dict[str, list[Pixels]] = {}
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        for member in archive:
            if member.name.startswith("test/"):
                name = member.name.split("/")[1]
                pictures.setdefault(name, []).append(np.asarray(Image.open(archive.extractfile(member))))
    return {name: probed(images, "0001") for name, images in pictures.items()}


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("new_class", "count", "verdict"),
    [
        ("trouser", 200, "drift"),
        ("bag", 100, "none"),
        *(pytest.param(new_class, 200, "drift", marks=pytest.mark.slow) for new_class in ("sandal", "bag", "t-shirt")),
        *(pytest.param(new_class, 100, "drift", marks=pytest.mark.slow) for new_class in ("trouser", "sandal")),
    ],
)
def test_a_new_class_of_real_images(clothes: dict[str, pl.DataFrame], new_class: str, count: int, verdict: str) -> None:
    """``count`` of 300; a third of bags, as bright and as lively as clothes, takes an encoder: test_embedding_drift."""
    known = pl.concat([rows for name, rows in clothes.items() if name != new_class])
    known = known.sample(fraction=1, shuffle=True, seed=1)
    batch = pl.concat([known.tail(300 - count), clothes[new_class].head(count)]).with_columns(
        ingest_batch=pl.lit("0002")
    )
    found = compared(known.head(1400), batch.with_columns(batch=pl.lit("0002")))
    assert found.verdict == verdict


@repeated
@pytest.mark.slow
def test_real_images_of_one_kind_raise_no_more_alarms_than_stated(clothes: dict[str, pl.DataFrame]) -> None:
    everything = pl.concat(clothes.values())
    rounds, alarms = repetitions(20, all=200), 0
    for seed in range(rounds):
        drawn = everything.sample(400, shuffle=True, seed=seed)
        new = drawn.tail(100).with_columns(batch=pl.lit("0002"), ingest_batch=pl.lit("0002"))
        alarms += compared(drawn.head(300), new).verdict != "none"
    assert alarms <= binom.ppf(0.999, rounds, FALSE_ALARMS)
