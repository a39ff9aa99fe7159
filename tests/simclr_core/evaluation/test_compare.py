"""The comparison against naive loops over the same files, and everything that must not pass for a comparison."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.artifact import MANIFEST, publish
from deploy.errors import BundleInterfaceError, CorruptArtifactError, MissingArtifactError
from deploy.images.preprocess import Preprocessing, decode
from simclr_core.data.shards import ShardedImages
from simclr_core.data.subsets import LabelDraw, subset
from simclr_core.errors import ChampionError, DatasetError, NonFiniteFeaturesError
from simclr_core.evaluation import compare
from simclr_core.evaluation.linear_probe import fit_probe, ranked_classes
from tests.conftest import write_prepared
from tests.simclr_core.conftest import relabel
from tests.simclr_core.pixel_encoders import (
    CANDIDATE,
    CHAMPION,
    damage_candidate,
    damage_champion,
    mixing,
    put_bundle,
    put_champion,
)

NEIGHBORS, TEMPERATURE, L2_COUNT = 5, 0.1, 2  # TINY_PARAMS
NULLS = {"candidate": None, "champion": None, "candidate_only": None, "champion_only": None}
NO_INDEX = {"comparable": False, "old_queries": None, "new_queries": None, "same_neighbour": None}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labeled training and 40 test images; a candidate and a champion with different views of them, compared.

    Who changes something takes ``workspace``, a copy without the comparison.
    """
    root = write_prepared(tmp_path_factory.mktemp("compared"), train=80, test=40, labeled=0.75)
    put_bundle(root / "models" / "bundle", mixing(1), CANDIDATE)
    put_champion(root, mixing(2))
    compare.run(root)
    return root


@pytest.fixture
def workspace(done: Path, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(done, tmp_path / "workspace"))
    shutil.rmtree(root / "reports")
    shutil.rmtree(root / ".simclr")
    return root


def compared(workspace: Path) -> dict[str, Any]:
    compare.run(workspace)
    return read(workspace)


def read(workspace: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((workspace / "reports" / "compare.json").read_text())
    return report


def embeddings(workspace: Path, split: str, weight: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[Any]:
    images = ShardedImages(workspace / "data" / "prepared" / split)
    files = [images.read(position) for position in range(len(images)) if images.labels[position] >= 0]
    vectors = np.stack([preprocessing.apply(decode(file)).reshape(-1) @ weight.astype(np.float64) for file in files])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def labels(workspace: Path, split: str) -> NDArray[np.int64]:
    found = ShardedImages(workspace / "data" / "prepared" / split).labels
    return found[found >= 0].astype(np.int64)


def naive_knn(bank: NDArray[Any], known: NDArray[np.int64], queries: NDArray[Any]) -> list[int]:
    answers = []
    for query in queries:
        similarities = bank @ query
        votes: Counter[int] = Counter()
        for member in sorted(range(len(bank)), key=lambda one: -similarities[one])[:NEIGHBORS]:
            votes[int(known[member])] += math.exp(similarities[member] / TEMPERATURE)
        answers.append(max(sorted(votes), key=lambda one: votes[one]))
    return answers


def naive_probe(workspace: Path, bank: NDArray[Any], queries: NDArray[Any]) -> list[int]:
    images = ShardedImages(workspace / "data" / "prepared" / "train")
    known, keys = labels(workspace, "train"), images.keys[images.labels >= 0]
    probe = fit_probe(bank, known, keys, 4, LabelDraw("1.0", subset(known, keys, "1.0", 0)), L2_COUNT, 0)
    return list(ranked_classes(probe, queries)[:, 0])


def counted(truth: NDArray[np.int64], candidate: list[int], champion: list[int]) -> dict[str, float]:
    won = sum(a == t != b for t, a, b in zip(truth, candidate, champion, strict=True))
    lost = sum(b == t != a for t, a, b in zip(truth, candidate, champion, strict=True))
    percent = [100 * sum(a == t for t, a in zip(truth, one, strict=True)) / len(truth) for one in (candidate, champion)]
    return {"candidate": percent[0], "champion": percent[1], "candidate_only": won, "champion_only": lost}


@pytest.mark.seconds
def test_every_number_equals_that_of_naive_loops(done: Path) -> None:
    report = read(done)
    truth, known = labels(done, "test"), labels(done, "train")
    new_bank, new = (embeddings(done, split, mixing(1), CANDIDATE) for split in ("train", "test"))
    old_bank, old = (embeddings(done, split, mixing(2), CHAMPION) for split in ("train", "test"))
    answers = naive_knn(new_bank, known, new), naive_knn(old_bank, known, old)
    assert (report["champion"], report["test_images"], report["classes"]) == ("v0.0.3", 40, 4)
    assert report["reason"] is None
    assert report["knn"] == counted(truth, *answers)
    assert report["probe"] == counted(truth, naive_probe(done, new_bank, new), naive_probe(done, old_bank, old))
    across = naive_knn(old_bank, known, new)
    same = [int(np.argmax(old_bank @ a)) == int(np.argmax(old_bank @ b)) for a, b in zip(old, new, strict=True)]
    assert report["old_index"] == {
        "comparable": True,
        "old_queries": report["knn"]["champion"],
        "new_queries": 100 * float(np.mean(np.array(across) == truth)),
        "same_neighbour": 100 * float(np.mean(same)),
    }
    assert report["megabytes"] == {"candidate": pytest.approx(0.0145, abs=1e-3), "champion": pytest.approx(0.0145, 0.1)}
    assert report["knn"]["candidate_only"]
    assert report["knn"]["champion_only"], "a comparison in which nothing differs shows nothing"
    timing = json.loads((done / ".simclr" / "timings" / "compare.json").read_text())
    assert timing["seconds"] > 0


@pytest.mark.seconds
def test_each_encoder_gets_its_own_preprocessing(workspace: Path) -> None:
    """The same weights behind two preprocessings are two encoders; exchanged, they exchange their numbers."""
    put_champion(workspace, mixing(1), CHAMPION)
    one = compared(workspace)
    put_bundle(workspace / "models" / "bundle", mixing(1), CHAMPION)
    put_champion(workspace, mixing(1), CANDIDATE)
    other = compared(workspace)
    for name in ("knn", "probe"):
        assert one[name]["candidate"] == other[name]["champion"]
        assert one[name]["candidate_only"] == other[name]["champion_only"]
    assert one["knn"]["candidate_only"] + one["knn"]["champion_only"] > 0


@pytest.mark.seconds
def test_the_report_is_the_same_byte_for_byte(done: Path, workspace: Path) -> None:
    compare.run(workspace)
    one, other = (root / "reports" / "compare.json" for root in (done, workspace))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.seconds
def test_a_candidate_equal_to_the_champion_differs_nowhere(workspace: Path) -> None:
    put_champion(workspace, mixing(1), CANDIDATE)
    report = compared(workspace)
    for name in ("knn", "probe"):
        assert report[name]["candidate"] == report[name]["champion"] > 30
        assert report[name]["candidate_only"] == report[name]["champion_only"] == 0
    assert report["old_index"]["same_neighbour"] == 100
    assert report["old_index"]["old_queries"] == report["old_index"]["new_queries"]


@pytest.mark.seconds
def test_vectors_of_another_length_have_no_old_index(workspace: Path) -> None:
    put_champion(workspace, mixing(2, dim=9))
    report = compared(workspace)
    assert report["old_index"] == NO_INDEX
    assert report["knn"]["champion"] > 30


@pytest.mark.seconds
def test_encoders_of_different_image_sizes_are_comparable(workspace: Path) -> None:
    put_champion(workspace, mixing(2, size=8), Preprocessing(8, 8))
    assert compared(workspace)["old_index"]["comparable"]


@pytest.mark.seconds
def test_a_champion_that_takes_other_pictures_is_said_to_be_judged_below_its_best(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_champion(workspace, mixing(2, size=8), Preprocessing(8, 8, "black", letterbox=True))
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    compared(workspace)
    said = (tmp_path / "events").read_text()
    assert "warning: champion takes images on black, and the prepared ones are on white: it is judged below" in said
    assert (
        "warning: champion takes the whole of them in a square, and the prepared ones are their center: it is" in said
    )
    assert "candidate takes" not in said


@pytest.mark.seconds
def test_before_the_first_release_only_the_candidate_is_reported(
    done: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_champion = read(done)
    put_champion(workspace, None)
    report = compared(workspace)
    assert report["champion"] is None
    assert report["reason"] == "no encoder has been released yet"
    assert "no encoder has been released yet" in capsys.readouterr().err
    for name in ("knn", "probe"):
        assert report[name] == {**NULLS, "candidate": with_champion[name]["candidate"]}
    assert report["old_index"] == NO_INDEX
    assert report["megabytes"]["champion"] is None


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("champion", [True, False])
def test_without_labels_there_are_nulls_and_the_reason(workspace: Path, split: str, champion: bool) -> None:
    relabel(workspace, split, -np.ones(80 if split == "train" else 40))
    if not champion:
        put_champion(workspace, None)
    report = compared(workspace)
    assert "images; put some into" in report["reason"]
    assert report["knn"] == report["probe"] == NULLS
    assert report["old_index"] == NO_INDEX
    assert report["champion"] == ("v0.0.3" if champion else None)
    assert (report["megabytes"]["champion"] is None) is not champion
    assert report["estimated"] is (split == "test")
    views = report["label_free"]  # 40 test images are too few
    assert (views is not None and (views["split"], views["images"]) == ("train", 80)) is champion


def test_without_labels_views_of_test_images_judge_where_there_are_enough(tmp_path: Path) -> None:
    root = write_prepared(tmp_path, train=20, test=60, labeled=0)
    put_bundle(root / "models" / "bundle", mixing(1), CANDIDATE)
    put_champion(root, mixing(1), CANDIDATE)
    views = compared(root)["label_free"]
    assert (views["split"], views["images"]) == ("test", 60)
    assert (views["difference"], views["standard_error"]) == (0, 0)
    assert 0 < views["candidate"] == views["champion"] < 100


def test_with_labels_no_views_are_judged(done: Path) -> None:
    assert read(done)["label_free"] is None


def another_version(workspace: Path) -> None:
    (workspace / "models" / "champion" / "champion.json").write_text('{"version": "v0.0.4"}')


def exchange_bundle_json(workspace: Path) -> None:
    """The champion's bundle with another resize in bundle.json, published as if nothing had happened."""
    shutil.copytree(workspace / "models" / "bundle", workspace / "copy")
    card = workspace / "copy" / "bundle.json"
    card.write_text(card.read_text().replace('"resize": 10', '"resize": 15'))
    (workspace / "copy" / MANIFEST).unlink()
    with publish(workspace / "models" / "champion", replace=True) as work:
        (work / "champion.json").write_text('{"version": "v0.0.3"}')
        with publish(work / "bundle") as bundle:
            shutil.copytree(workspace / "copy", bundle, dirs_exist_ok=True)


def no_candidate(workspace: Path) -> None:
    (workspace / "models" / "bundle").rename(workspace / "models" / "elsewhere")


def no_champion_folder(workspace: Path) -> None:
    (workspace / "models" / "champion").rename(workspace / "models" / "elsewhere")


def version_without_bundle(workspace: Path) -> None:
    with publish(workspace / "models" / "champion", replace=True) as work:
        (work / "champion.json").write_text('{"version": "v0.0.3"}')


def bundle_without_version(workspace: Path) -> None:
    with publish(workspace / "models" / "champion", replace=True) as work:
        (work / "champion.json").write_text('{"version": null}')
        put_bundle(work / "bundle", mixing(2), CHAMPION)


def not_a_number(workspace: Path) -> None:
    weight = mixing(1)
    weight[7, 3] = np.nan
    put_bundle(workspace / "models" / "bundle", weight, CANDIDATE)


def broken_image(workspace: Path) -> None:
    folder = workspace / "data" / "prepared" / "train"
    shard = folder / json.loads((folder / "shards.json").read_text())[0]
    data = bytearray(shard.read_bytes())
    offset = int(np.load(folder / "index.npy")["offset"][0])
    data[offset : offset + 60] = bytes(60)
    shard.write_bytes(data)


FAULTS: list[tuple[Callable[[Path], None], type[Exception], str]] = [
    (damage_candidate, CorruptArtifactError, r"encoder\.fp32\.onnx: its SHA-256 differs"),
    (damage_champion, CorruptArtifactError, r"encoder\.fp32\.onnx: its SHA-256 differs"),
    (another_version, CorruptArtifactError, r"champion\.json: its SHA-256 differs"),
    (exchange_bundle_json, BundleInterfaceError, "export the bundle again"),
    (no_candidate, MissingArtifactError, "models/bundle"),
    (no_champion_folder, ChampionError, "models/champion: does not exist; `simclr run` makes it"),
    (version_without_bundle, ChampionError, "version v0.0.3, but the bundle is missing; remove"),
    (bundle_without_version, ChampionError, "version None, but the bundle is there; remove"),
    (not_a_number, NonFiniteFeaturesError, "candidate: embeddings of the prepared images are not finite"),
    (broken_image, DatasetError, "prepared images: image 0: .*dvc checkout"),
]


@pytest.mark.seconds
@pytest.mark.parametrize(("fault", "error", "says"), FAULTS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_failed_comparison_leaves_no_report(
    workspace: Path, fault: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    fault(workspace)
    with pytest.raises(error, match=says):
        compare.run(workspace)
    assert not (workspace / "reports" / "compare.json").exists()


def test_a_bundle_that_does_not_load_is_refused_even_without_labels(workspace: Path) -> None:
    relabel(workspace, "test", -np.ones(40))
    damage_candidate(workspace)
    with pytest.raises(CorruptArtifactError):
        compare.run(workspace)
