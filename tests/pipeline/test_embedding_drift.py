"""The stage on real bundles: silent about more of the same, not about what the champion has never seen."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from deploy.artifact import identity, publish
from deploy.bundle import Bundle, graph_promise, write_bundle
from deploy.errors import CorruptArtifactError
from deploy.session import METADATA
from pipeline.embedding_drift import run
from pipeline.errors import ValidationError
from pipeline.sample.make import ARCHIVE
from pipeline.validation import manifest
from pipeline.workspace import Workspace
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import Sample
from simclr_core.errors import ChampionError, DatasetError, NonFiniteFeaturesError
from tests.conftest import TINY_PARAMS, draw, encode
from tests.deploy.conftest import encoded, make_card, noise
from tests.pipeline.validation.corpus.manifests import row, table

SIZE, DIM = 8, 96
Pixels = NDArray[np.uint8]


def random_features(gain: float = 1.0) -> Bundle:
    """An encoder that has learned nothing: ``DIM`` random projections of all pixels, rectified."""
    card = make_card(name="random features", dim=DIM)
    weight = np.random.default_rng(3).normal(size=(SIZE * SIZE * 3, DIM)).astype(np.float32) * np.float32(gain)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["projected"]),
        helper.make_node("Relu", ["projected"], ["features"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", DIM])
    constants = [onnx.numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "random-features", [images], [features], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA: graph_promise(card)})
    golden = np.zeros((1, DIM), np.float32)
    return Bundle(card, model.SerializeToString(), None, (encoded(noise(0)),), golden)


def put_champion(workspace: Workspace, bundle: Bundle | None) -> Path:
    directory = workspace.root / "models" / "champion"
    with publish(directory, replace=True) as work:
        card = {"version": "v0.0.2" if bundle else None, "commit": None, "bundle": None, "reports": {}}
        (work / "champion.json").write_text(json.dumps(card))
        if bundle:
            with publish(work / "bundle") as inner:
                write_bundle(inner, bundle)
    return directory


def put_images(workspace: Workspace, batches: Iterable[tuple[str, list[bytes]]]) -> None:
    """What validate and prepare leave of these batches, with a quarantined file and a test image in each."""
    groups, rows = [], []
    for batch, files in batches:
        named = {hashlib.sha256(data).hexdigest(): data for data in files}
        groups.append([Sample(sha256, "png", data) for sha256, data in named.items()])
        where = {"batch": batch, "ingest_batch": batch}
        rows += [row(f"{batch}/{sha256}.png", sha256=sha256, **where) for sha256 in named]
        rows += [row(f"{batch}/bad.png", "truncated", **where), row(f"{batch}/test.png", split="test", **where)]
    with publish(workspace.prepared, replace=True) as folder:
        write_shards(folder / "train", groups, 1_000_000)
    with publish(workspace.manifest, replace=True) as folder:
        manifest.write(folder, [table(rows)])


def pictures(count: int, seed: int, *classes: int, change: Callable[[Pixels], Pixels] | None = None) -> list[bytes]:
    """Warm pictures of these classes."""
    images = [np.asarray(draw(classes[n % len(classes)], 10_000 * seed + n)) for n in range(count)]
    warm = [(image * [1.0, 0.8, 0.5]).astype(np.uint8) for image in images]
    return [encode(Image.fromarray(change(image) if change else image)) for image in warm]


def judged(workspace: Workspace, new: list[bytes], earlier: list[bytes], bundle: Bundle | None) -> dict[str, Any]:
    half = len(earlier) // 2
    put_images(workspace, [("0001", earlier[:half]), ("0002", earlier[half:]), ("0003", new)])
    put_champion(workspace, bundle)
    run(workspace)
    return report(workspace)


def report(workspace: Workspace) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace.reports / "embedding_drift.json").read_text())
    return content


@pytest.mark.seconds
def test_more_of_the_same_is_not_drift(workspace: Workspace) -> None:
    found = judged(workspace, pictures(100, 2, 0, 1, 2), pictures(300, 1, 0, 1, 2), random_features())
    assert (found["verdict"], found["batch"]) == ("none", "0003")
    assert (found["reference_images"], found["batch_images"]) == (300, 100)
    bundle = identity(workspace.root / "models" / "champion" / "bundle")
    assert found["champion"] == {"version": "v0.0.2", "bundle": bundle, "preprocessing": make_card()["preprocessing"]}
    assert [one["name"] for one in found["statistics"]] == ["domain_classifier", "mmd", "novel_share"]
    assert [found[name] for name in ("auroc", "mmd", "novel_share")] == [one["effect"] for one in found["statistics"]]
    assert found["mmd_p_value"] > 0.01


@pytest.mark.seconds
@pytest.mark.parametrize(
    "new",
    [
        lambda: pictures(100, 2, 3),
        pytest.param(lambda: pictures(100, 2, 0, 1, 2, change=lambda image: image[..., ::-1]), marks=pytest.mark.slow),
        pytest.param(lambda: pictures(60, 2, 0, 1, 2) + pictures(40, 3, 3), marks=pytest.mark.slow),
    ],
    ids=["a new class", "swapped channels", "two fifths of a new class"],
)
def test_images_unlike_those_of_the_champion_are_drift(workspace: Workspace, new: Callable[[], list[bytes]]) -> None:
    found = judged(workspace, new(), pictures(300, 1, 0, 1, 2), random_features())
    assert found["verdict"] == "drift"
    assert "to v0.0.2" in found["advice"]
    assert "retrain" in found["advice"]


@pytest.mark.slow
def test_an_encoder_detects_a_new_class_that_image_statistics_miss(workspace: Workspace) -> None:
    """A third of the batch are bags: ``drift`` sees nothing in that (see its tests), the champion does."""
    files: dict[bool, list[bytes]] = {True: [], False: []}
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        for member in archive:
            if member.name.startswith("test/"):
                content = archive.extractfile(member)
                assert content
                files[member.name.startswith("test/bag/")].append(content.read())
    known = [files[False][position] for position in np.random.default_rng(1).permutation(len(files[False]))]
    assert judged(workspace, known[1400:1700], known[:1400], random_features())["verdict"] == "none"
    found = judged(workspace, known[1400:1600] + files[True][:100], known[:1400], random_features())
    assert found["verdict"] == "drift"
    bags = {hashlib.sha256(data).hexdigest() for data in files[True]}
    assert sum(one["sha256"] in bags for one in found["novel"]) >= 6


@pytest.mark.seconds
def test_the_most_novel_images_are_named_and_drawn(workspace: Workspace) -> None:
    strange = encode(Image.fromarray(np.tri(16, dtype=np.uint8)[..., np.newaxis] * np.uint8([0, 0, 255])))
    known = pictures(200, 1, 0, 1)
    found = judged(workspace, [*pictures(60, 2, 0, 1), strange], known, random_features())
    assert len(found["novel"]) == 12
    assert found["novel"][0]["sha256"] == hashlib.sha256(strange).hexdigest()
    assert {one["nearest"] for one in found["novel"]} <= {hashlib.sha256(data).hexdigest() for data in known}
    assert all(0 < one["distance"] <= 2 for one in found["novel"])
    with Image.open(workspace.reports / "novel.png") as sheet:
        colors = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
        assert sheet.width > 400
        assert (np.abs(colors.astype(int) - [0, 0, 255]).max(axis=1) < 30).any(), "the strangest is drawn"


@pytest.mark.seconds
def test_only_the_first_images_by_hash_are_compared(workspace: Workspace) -> None:
    block = {"reference_images": 100, "batch_images": 60}
    workspace.params.write_text(yaml.safe_dump(TINY_PARAMS | {"embedding_drift": block}))
    new = pictures(90, 2, 0, 1)
    found = judged(workspace, new, pictures(200, 1, 0, 1), random_features())
    assert (found["reference_images"], found["batch_images"]) == (100, 60)
    first = sorted(hashlib.sha256(data).hexdigest() for data in new)[:60]
    assert {one["sha256"] for one in found["novel"]} <= set(first)


@pytest.mark.parametrize(
    ("new", "earlier", "bundle", "block", "why"),
    [
        (100, 200, None, {}, "no encoder has been released yet"),
        (100, 0, random_features(), {}, "no earlier batch"),
        (49, 200, random_features(), {}, "the newest batch has only 49 accepted training images"),
        (100, 99, random_features(), {}, "the earlier batches have only 99 training images"),
        (100, 200, random_features(), {"enabled": False}, "embedding_drift.enabled"),
    ],
)
def test_the_reason_is_reported_when_drift_cannot_be_judged(
    workspace: Workspace, new: int, earlier: int, bundle: Bundle | None, block: dict[str, Any], why: str
) -> None:
    workspace.params.write_text(yaml.safe_dump(TINY_PARAMS | {"embedding_drift": block}))
    found = judged(workspace, pictures(new, 2, 0, 1), pictures(earlier, 1, 0, 1), bundle)
    assert found["verdict"] == "not judged"
    assert why in found["advice"]
    assert (found["auroc"], found["statistics"], found["novel"]) == (None, [], [])
    assert (workspace.reports / "novel.png").stat().st_size > 0


def test_a_newest_batch_of_labels_alone_is_not_judged(workspace: Workspace) -> None:
    put_images(workspace, [("0001", pictures(150, 1, 0, 1)), ("0002", pictures(60, 2, 0, 1)), ("0003", [])])
    put_champion(workspace, random_features())
    run(workspace)
    found = report(workspace)
    assert (found["verdict"], found["batch"], found["batch_images"]) == ("not judged", "0003", 0)


@pytest.mark.seconds
def test_the_same_inputs_give_the_same_bytes(workspace: Workspace) -> None:
    names = ("embedding_drift.json", "novel.png")
    judged(workspace, pictures(80, 2, 0, 1), pictures(200, 1, 0, 1), random_features())
    first = [(workspace.reports / name).read_bytes() for name in names]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "pipeline.embedding_drift"]
    subprocess.run(command, cwd=workspace.root, env=environment, check=True, capture_output=True)
    assert [(workspace.reports / name).read_bytes() for name in names] == first


@pytest.mark.seconds
def test_torch_and_dagster_are_not_needed() -> None:
    program = (
        "import pipeline.embedding_drift, sys; print({'torch', 'dagster', 'great_expectations'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_prepared_images_of_another_manifest_are_refused(workspace: Workspace) -> None:
    put_champion(workspace, random_features())
    put_images(workspace, [("0001", pictures(150, 1, 0, 1)), ("0002", pictures(60, 2, 0, 1))])
    prepared = workspace.prepared.rename(workspace.root / "data" / "before")
    put_images(workspace, [("0001", pictures(150, 1, 0, 1)), ("0002", pictures(60, 3, 0, 1))])
    workspace.prepared.rename(workspace.root / "data" / "after")
    prepared.rename(workspace.prepared)
    with pytest.raises(ValidationError, match="not of this data/manifest; run `simclr run --select prepare`"):
        run(workspace)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_encoder_with_output_that_is_not_finite_is_refused(workspace: Workspace) -> None:
    with pytest.raises(NonFiniteFeaturesError, match=r"champion: .* not finite"):
        judged(workspace, pictures(60, 2, 0, 1), pictures(150, 1, 0, 1), random_features(gain=np.inf))


def test_a_damaged_or_missing_champion_is_refused(workspace: Workspace) -> None:
    put_images(workspace, [("0001", pictures(150, 1, 0, 1)), ("0002", pictures(60, 2, 0, 1))])
    with pytest.raises(ChampionError, match="does not exist; `simclr run` makes it"):
        run(workspace)
    model = put_champion(workspace, random_features()) / "bundle" / "encoder.fp32.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"encoder\.fp32\.onnx"):
        run(workspace)


def test_a_truncated_prepared_image_is_reported(workspace: Workspace) -> None:
    content = io.BytesIO(pictures(1, 2, 0)[0])
    damaged = content.getvalue()[:-30]
    with pytest.raises(DatasetError, match=r"restore them with `dvc checkout --force`"):
        judged(workspace, [*pictures(60, 2, 0, 1), damaged], pictures(150, 1, 0, 1), random_features())
