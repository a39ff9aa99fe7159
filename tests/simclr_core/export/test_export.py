"""The exported bundle computes what torch computes, has no trace of this machine, or does not exist."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import deploy
from deploy.artifact import identity, publish, verify
from deploy.bundle import MODEL, model_file
from deploy.errors import ArtifactError, MissingHeadError
from deploy.images.preprocess import Preprocessing, decode
from simclr_core.data.shards import ShardedImages
from simclr_core.errors import CheckpointError, ConfigError, ParityError
from simclr_core.evaluation import finetune
from simclr_core.evaluation.features import encode
from simclr_core.export import export, variants
from simclr_core.export.onnx_graph import ServedEncoder, export_graph
from simclr_core.model.encoder import build_encoder
from simclr_core.model.model_directory import load_model, save_model
from simclr_core.pretraining import pretrain
from tests.conftest import CLASSES, SIDE, write_prepared
from tests.deploy.conftest import noise
from tests.processes.once import make_once

ENCODER = {"name": "resnet10", "width": 0.125, "stem": "compact"}
REPOSITORY = Path(__file__).parents[3]


def write_model(
    directory: Path,
    seed: int,
    head: dict[str, torch.Tensor] | None = None,
    config: dict[str, object] | None = None,
) -> None:
    """A model directory whose batch norms have seen data, so that folding them into convolutions is put to the test."""
    torch.manual_seed(seed)
    encoder = build_encoder(**ENCODER)
    encoder.train()
    with torch.no_grad():
        for _ in range(3):
            encoder(torch.randn(16, 3, SIDE, SIDE) * 2 + 0.5)
    card = {
        "kind": "pretrained",
        "encoder": ENCODER,
        "feature_dim": encoder.feature_dim,
        "preprocessing": {"size": SIDE, "resize": SIDE + 2},
        "mean": [0.4, 0.45, 0.5],
        "std": [0.2, 0.25, 0.3],
        "classes": list(CLASSES),
        "config": config or {},
        "data_digest": "0" * 64,
        "producer": "simclr-pipeline",
        "metrics": {"loss_last": 1.5},
    }
    with publish(directory, replace=True) as work:
        save_model(work, encoder.eval(), head or {}, card)


def write_probe(workspace: Path, features: int = 64) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(5)
    weight = random.normal(size=(features, len(CLASSES))).astype(np.float32)
    bias = random.normal(size=len(CLASSES)).astype(np.float32)
    with publish(workspace / "models" / "probe") as work:
        np.savez(work / "head.npz", weight=weight, bias=bias)
        metrics = {"knn_top1": 51.0, "linear_top1": {"1.0": 62.5}}
        (work / "probe.json").write_text(json.dumps({"classes": CLASSES, "metrics": metrics, "l2": 0.1}))
    return weight, bias


def set_export(workspace: Path, **parameters: object) -> None:
    path = workspace / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"export": parameters}))


def export_once(factory: pytest.TempPathFactory) -> Path:
    """A workspace with an exported bundle, the same for all processes of the session; tests must not change it."""

    def export_it(folder: Path) -> None:
        workspace = write_prepared(folder / "ein Wörkspace", train=40)
        write_model(workspace / "models" / "pretrained", seed=0)
        write_probe(workspace)
        export.run(workspace)

    return make_once(factory, "exported", export_it) / "ein Wörkspace"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(tmp_path_factory)


@pytest.fixture
def workspace(prepared: Path) -> Path:
    """A workspace with the same pretrained model, not exported yet."""
    write_model(prepared / "models" / "pretrained", seed=0)
    return prepared


@pytest.fixture
def graph(exported: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The graph of that model, in place of the seconds that torch needs to trace it again."""
    content = (exported / "models" / "bundle" / MODEL).read_bytes()
    monkeypatch.setattr(export, "export_graph", lambda *_: content)
    return content


def test_the_bundle_gives_the_embeddings_of_torch(exported: Path) -> None:
    encoder = deploy.load(exported / "models" / "bundle", threads=1)
    trained = load_model(exported / "models" / "pretrained")
    images = ShardedImages(exported / "data" / "prepared" / "test")
    files = [images.read(position) for position in range(len(images))]
    pixels = np.stack([trained.preprocessing.apply(decode(file)) for file in files])
    standardize = v2.Normalize(trained.card["mean"], trained.card["std"])
    with torch.inference_mode():
        batch = standardize(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        expected = nn.functional.normalize(trained.encoder(batch)).numpy()
    for batch_size in (1, 3, 17, 40):
        assert np.abs(encoder.embed(files, batch_size).vectors - expected).max() < 1e-5


def test_the_report_and_the_timing(exported: Path) -> None:
    report = json.loads((exported / "reports" / "export.json").read_text())
    assert report["images"] == 64
    assert report["cosine_min"] > 0.999999
    assert report["max_abs"] < 1e-5
    assert report["passed"] is True
    assert report["source"] == "models/pretrained"
    assert report["bundle"] == identity(exported / "models" / "bundle")
    timing = json.loads((exported / ".simclr" / "timings" / "export.json").read_text())
    assert timing["seconds"] > 0
    assert 0 < timing["p50_ms"] < 1000
    assert report["variants"].keys() | report["left_out"].keys() == {
        "fp32",
        "int8",
    }  # 40 test images: may miss its gate
    assert report["results"]["test_images"] == 40
    assert list(report["results"]["per_class"]) == list(CLASSES)
    assert sum(one["images"] for one in report["results"]["per_class"].values()) == 40


def test_the_bill_of_materials_and_the_card_describe_this_bundle(exported: Path) -> None:
    directory = exported / "models" / "bundle"
    card = json.loads((directory / "bundle.json").read_text())
    component = json.loads((directory / "sbom.cdx.json").read_text())["metadata"]["component"]
    hashes = {file["name"]: file["hashes"][0]["content"] for file in component["components"]}
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.onnx")}
    assert [model_file(name) for name in card["variants"]] == list(hashes)
    assert f"| {CLASSES[0]} | 10 |" in (directory / "MODEL_CARD.md").read_text()


@pytest.mark.seconds
def test_every_variant_is_loaded_and_verified(workspace: Path, graph: bytes) -> None:
    set_export(workspace, variants=["fp32", "int8", "fp16"], max_loss=100.0)
    export.run(workspace)
    directory = workspace / "models" / "bundle"
    for name in ("fp32", "int8", "fp16"):
        encoder = deploy.load(directory, threads=1, variant=name)
        assert encoder.verify().images == 8
        content = (directory / f"encoder.{name}.onnx").read_bytes()
        for secret in (REPOSITORY, sys.prefix, workspace, Path.home(), Path(tempfile.gettempdir())):
            assert str(secret).encode() not in content
    timing = json.loads((workspace / ".simclr" / "timings" / "export.json").read_text())
    assert timing["int8_times_faster"] > 0
    assert "int8_times_faster" not in (directory / "bundle.json").read_text()  # a fact of this machine


@pytest.mark.seconds
def test_a_variant_that_misses_its_gate_is_left_out_and_the_rest_ships(
    workspace: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "MEAN_COSINE_MIN", 1.1)
    export.run(workspace)
    report = json.loads((workspace / "reports" / "export.json").read_text())
    assert "mean cosine to fp32" in report["left_out"]["int8"]
    directory = workspace / "models" / "bundle"
    assert "int8 was left out: mean cosine" in (directory / "MODEL_CARD.md").read_text()
    assert not (directory / "encoder.int8.onnx").exists()
    assert deploy.load(directory, variant="auto").info["runtime"]["variant"] == "fp32"


def test_the_classifier_must_know_the_classes_of_the_images(workspace: Path, graph: bytes) -> None:
    write_probe(workspace)
    card = workspace / "data" / "prepared" / "dataset.json"
    card.write_text(card.read_text().replace("circle", "disc"))
    with pytest.raises(CheckpointError, match=r"has the classes circle, .*, the prepared images have disc, "):
        export.run(workspace)


def test_the_bundle_holds_head_golden_images_and_provenance(exported: Path) -> None:
    directory = exported / "models" / "bundle"
    verify(directory)
    encoder = deploy.load(directory, threads=1)
    assert encoder.verify().images == 8
    weight, bias = write_probe(exported.parent / "again")
    picture = noise(3, 30, 40)
    logits = encoder.embed(picture, normalize=False).vectors @ weight + bias
    assert encoder.classify(picture)[0].labels[0] == CLASSES[int(logits.argmax())]
    info = encoder.info
    assert info["provenance"]["model"] == identity(exported / "models" / "pretrained")
    assert info["provenance"]["data_digest"] == "0" * 64
    assert info["metrics"]["linear_eval"]["knn_top1"] == 51.0
    assert info["license"] == "proprietary"
    assert "| linear_eval linear_top1 1.0 | 62.5 |" in (directory / "MODEL_CARD.md").read_text()
    assert "proprietary" in (directory / "LICENSE.txt").read_text()


def test_nothing_in_the_bundle_depends_on_this_machine(exported: Path) -> None:
    directory = exported / "models" / "bundle"
    for file in (path for path in directory.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for secret in (REPOSITORY, sys.prefix, exported, Path.home(), Path(tempfile.gettempdir())):
            assert str(secret).encode() not in content, file
        assert b"stack_trace" not in content
    model = onnx.load(directory / MODEL)
    assert [entry.key for entry in model.metadata_props] == ["simclr_pipeline"]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == 20


@pytest.mark.slow
def test_two_processes_export_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    workspace = write_prepared(tmp_path, train=40)
    write_model(workspace / "models" / "pretrained", seed=0)
    write_probe(workspace)
    command = [sys.executable, "-m", "simclr_core", "--workspace", workspace, "export"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "12345"}, cwd=REPOSITORY)
    assert identity(workspace / "models" / "bundle") == identity(exported / "models" / "bundle")
    first, second = (folder / "reports" / "export.json" for folder in (exported, workspace))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_a_graph_with_wrong_outputs_is_not_published(
    factor: float, workspace: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(graph)
    tensor = next(one for one in model.graph.initializer if "layer2.0.conv1.weight" in one.name)
    weights = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
    monkeypatch.setattr(export, "export_graph", lambda *_: model.SerializeToString())
    with pytest.raises(ParityError, match=r"cosine .* \(at least 0\.99999\)"):
        export.run(workspace)
    assert sorted(path.name for path in (workspace / "models").iterdir()) == ["initial", "pretrained"]
    assert not (workspace / "reports").exists()


@pytest.mark.seconds
def test_a_failure_keeps_the_existing_bundle(workspace: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    export.run(workspace)
    before = identity(workspace / "models" / "bundle")
    set_export(workspace, name="better")
    monkeypatch.setenv("SIMCLR_FAILPOINT", "artifact.rename:enospc")
    with pytest.raises(OSError, match="No space left"):
        export.run(workspace)
    monkeypatch.delenv("SIMCLR_FAILPOINT")
    verify(workspace / "models" / "bundle")
    assert identity(workspace / "models" / "bundle") == before
    assert sorted(path.name for path in (workspace / "models").iterdir()) == ["bundle", "initial", "pretrained"]
    export.run(workspace)
    assert deploy.load(workspace / "models" / "bundle").info["name"] == "better"


@pytest.mark.seconds
def test_without_labels_the_bundle_has_no_head(workspace: Path, graph: bytes) -> None:
    export.run(workspace)
    encoder = deploy.load(workspace / "models" / "bundle", threads=1)
    with pytest.raises(MissingHeadError, match="exported without a classifier"):
        encoder.classify(noise(0))


@pytest.mark.seconds
def test_finetuned_takes_the_network_with_the_most_labels(workspace: Path) -> None:
    set_export(workspace, source="finetuned", name="flowers", license="CC-BY-4.0", opset=18)
    with pytest.raises(CheckpointError, match="simclr run --select finetune"):
        export.run(workspace)
    for seed, fraction in enumerate(("0.01", "0.1", "0.05"), start=10):
        torch.manual_seed(seed)
        head = {"weight": torch.randn(len(CLASSES), 64), "bias": torch.randn(len(CLASSES))}
        write_model(workspace / "models" / "finetuned" / fraction, seed, head, {"fraction": fraction, "seed": 0})
    export.run(workspace)
    encoder = deploy.load(workspace / "models" / "bundle", threads=1)
    chosen = load_model(workspace / "models" / "finetuned" / "0.1")
    features = torch.from_numpy(encoder.embed(noise(1), normalize=False).vectors)
    logits = nn.functional.linear(features, chosen.head["weight"], chosen.head["bias"])
    assert encoder.classify(noise(1))[0].labels[0] == CLASSES[int(logits.argmax())]
    assert (encoder.info["name"], encoder.info["license"], encoder.info["producer"]["opset"]) == (
        "flowers",
        "CC-BY-4.0",
        18,
    )
    assert json.loads((workspace / "reports" / "export.json").read_text())["source"] == "models/finetuned/0.1"


@pytest.mark.slow
def test_kept_head_layers_are_exported_with_the_classifier_that_reads_them(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From pretraining over fine-tuning to onnxruntime: the served answers are those of the fine-tuned network."""
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    params["export"] = {"source": "finetuned", "variants": ["fp32"]}
    params["finetune"] |= {"head_layers": 1, "seeds": [0]}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    pretrain.run(workspace)
    finetune.run(workspace, "1.0")
    export.run(workspace)
    served = deploy.load(workspace / "models" / "bundle", threads=1)
    model = load_model(workspace / "models" / "finetuned" / "1.0")
    images = ShardedImages(workspace / "data" / "prepared" / "test")
    files = [images.read(position) for position in range(len(images))]
    pixels = np.stack([model.preprocessing.apply(decode(file)) for file in files])
    features = encode(model.encoder, pixels, model.card["mean"], model.card["std"]).numpy()
    assert (served.info["dim"], served.info["head_layers"]) == (16, 1) == (features.shape[1], 1)
    assert np.abs(served.embed(files, normalize=False).vectors - features).max() < 1e-4
    logits = features @ model.head["weight"].numpy().T + model.head["bias"].numpy()
    answers = [classified.labels[0] for classified in served.classify(files)]
    assert answers == [model.card["classes"][best] for best in logits.argmax(axis=1)]
    card = (workspace / "models" / "bundle" / "MODEL_CARD.md").read_text()
    assert "and the first 1 of its projection head's layers" in card


@pytest.mark.seconds
def test_an_opset_that_torch_cannot_write_is_refused() -> None:
    served = ServedEncoder(build_encoder(**ENCODER).eval(), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=r"export\.opset: given 30, which torch .* turned into 18; allowed: 18 to 25"):
        export_graph(served, SIDE, 30, {})


@pytest.mark.seconds
@pytest.mark.parametrize(("train", "test"), [(21, 10), (2, 0)])
def test_few_images_are_what_the_export_is_proven_on(tmp_path: Path, graph: bytes, train: int, test: int) -> None:
    workspace = write_prepared(tmp_path, train=train, test=test)
    write_model(workspace / "models" / "pretrained", seed=0)
    export.run(workspace)
    assert json.loads((workspace / "reports" / "export.json").read_text())["images"] == train + test


def test_a_damaged_model_is_named(workspace: Path) -> None:
    path = workspace / "models" / "pretrained" / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"encoder\.safetensors"):
        export.run(workspace)


@pytest.mark.seconds
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    "name",
    ["squeezenet1_1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shufflenet_v2_x0_5", "vit_b_32"))],
)
def test_networks_of_torchvision_are_exported_too(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=64).eval()
    served = ServedEncoder(encoder, (0.5,) * 3, (0.25,) * 3)
    model = export_graph(served, 64, 20, {})

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = np.stack([noise(seed, 64, 64) for seed in range(count)])
        with torch.inference_mode():
            expected = served(torch.from_numpy(images)).numpy()
        found = session.run(None, {"images": images})[0]
        assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("shape", [(41, 67), (67, 41), (30, 30), (9, 200)])
@pytest.mark.parametrize(("size", "resize"), [(24, 24), (24, 29), (33, 40)])
def test_the_served_preprocessing_is_torchvisions(shape: tuple[int, int], size: int, resize: int) -> None:

    pixels = noise(2, *shape)
    expected = np.asarray(v2.Compose([v2.Resize(resize), v2.CenterCrop(size)])(Image.fromarray(pixels)))
    found = Preprocessing(size, resize).apply(pixels)
    assert np.abs(found.astype(int) - expected).max() <= 1
