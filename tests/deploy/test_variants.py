"""A variant is loaded on request, has its own id, and is compared with its own golden vectors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from deploy import processor
from deploy.artifact import MANIFEST
from deploy.bundle import Bundle, Variant, read_bundle
from deploy.errors import (
    ArgumentError,
    BundleFormatError,
    BundleInterfaceError,
    CorruptArtifactError,
    DeployError,
    GoldenMismatchError,
)
from tests.deploy.conftest import MIXING, make_bundle, make_card, make_model, noise

ROUGH = np.round(MIXING, 1)  # stands in for quantized weights
TOLERANCE = {"cosine_min": 0.9999, "max_abs": 1e-3}


def with_variants(*names: str, **changes: Any) -> Bundle:
    card = make_card(variants={"fp32": {}} | {name: {"tolerance": TOLERANCE} for name in names}, left_out={})
    whole = make_bundle(card)
    model = make_model(card, mixing=ROUGH).SerializeToString()
    means = whole.golden_vectors @ np.linalg.pinv(MIXING)
    vectors = (means @ ROUGH).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    variant = replace(Variant(model, vectors, TOLERANCE), **changes)
    return replace(whole, variants=dict.fromkeys(names, variant))


@pytest.fixture
def directory(publish_bundle: Callable[[Bundle], Path]) -> Path:
    return publish_bundle(with_variants("int8"))


def test_each_variant_runs_its_own_graph(directory: Path) -> None:
    exact, rough = (deploy.load(directory, threads=1, variant=name) for name in ("fp32", "int8"))
    raw = exact.embed(noise(1), normalize=False).vectors @ np.linalg.pinv(MIXING)
    assert np.abs(rough.embed(noise(1), normalize=False).vectors - raw @ ROUGH).max() < 1e-5
    assert exact.verify().cosine_min > 0.999999
    assert rough.verify().cosine_min > 0.999999


def test_the_default_is_fp32(directory: Path) -> None:
    assert deploy.load(directory).info["runtime"]["variant"] == "fp32"


def test_the_id_names_the_variant(directory: Path) -> None:
    exact, rough = (deploy.load(directory, threads=1, variant=name) for name in ("fp32", "int8"))
    assert exact.id == exact.info["id"] == rough.info["id"]
    assert rough.id == f"{exact.id}:int8"
    assert rough.info["runtime"] | {"threads": 0} == {
        "threads": 0,
        "providers": ["CPUExecutionProvider"],
        "variant": "int8",
        "reason": "requested",
    }
    assert list(rough.info["variants"]) == ["fp32", "int8"]


def test_a_missing_variant_is_refused(directory: Path) -> None:
    with pytest.raises(ArgumentError, match=r"variant='fp16'; this bundle has fp32, int8; or give auto"):
        deploy.load(directory, variant="fp16")


def test_a_variant_is_compared_with_its_own_golden_vectors(publish_bundle: Callable[[Bundle], Path]) -> None:
    drifted = with_variants("int8", golden_vectors=make_bundle().golden_vectors)
    directory = publish_bundle(drifted)
    deploy.load(directory, variant="fp32").verify()
    with pytest.raises(GoldenMismatchError, match="allowed are"):
        deploy.load(directory, variant="int8").verify()


def test_any_byte_changed_in_a_variant_is_refused(directory: Path) -> None:
    for name in ("encoder.int8.onnx", "golden/vectors.int8.npy"):
        original = (directory / name).read_bytes()
        (directory / name).write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        for variant in ("fp32", "int8"):
            with pytest.raises(CorruptArtifactError, match=Path(name).name):
                deploy.load(directory, variant=variant)
        (directory / name).write_bytes(original)


@pytest.mark.parametrize(
    "change",
    [
        {"golden_vectors": np.zeros((3, 4), np.float32)},
        {"golden_vectors": np.zeros((3, 5))},
    ],
    ids=["shape", "type"],
)
def test_golden_vectors_of_another_shape_or_type_are_refused(
    change: dict[str, Any], publish_bundle: Callable[[Bundle], Path]
) -> None:
    with pytest.raises(BundleFormatError, match=r"golden/vectors\.int8\.npy: the array is float"):
        read_bundle(publish_bundle(with_variants("int8", **change)))


@pytest.mark.parametrize(
    "variants",
    [
        [],
        {"int8": {}},
        {"int8": {"tolerance": {"max_abs": 1}}},
        {"../int8": {"tolerance": TOLERANCE}},
        {"fp16": {"tolerance": TOLERANCE}},
    ],
    ids=str,
)
def test_a_card_that_contradicts_the_files_is_refused(
    variants: object, publish_bundle: Callable[[Bundle], Path]
) -> None:
    whole = with_variants("int8")
    with pytest.raises(BundleFormatError):
        read_bundle(publish_bundle(replace(whole, card=whole.card | {"variants": variants})))


def test_the_policy_and_the_interface_hold_for_every_variant(publish_bundle: Callable[[Bundle], Path]) -> None:
    wrong = make_model(make_card(), input_size=9).SerializeToString()
    with pytest.raises(BundleInterfaceError, match=r"bundle\.json says"):
        deploy.load(publish_bundle(with_variants("int8", model=wrong)), variant="int8")
    with pytest.raises(BundleFormatError, match="mean-color, int8: "):
        deploy.load(publish_bundle(with_variants("int8", model=b"no graph")), variant="int8")


@pytest.mark.parametrize(
    ("instruction", "names", "providers", "expected", "reason"),
    [
        ("avx512_vnni", ("int8",), ("CPUExecutionProvider",), "int8", "auto: this processor has avx512_vnni"),
        ("asimddp", ("int8", "fp16"), ("CPUExecutionProvider",), "int8", "asimddp"),
        (None, ("int8",), ("CPUExecutionProvider",), "fp32", "reports no 8-bit dot product"),
        ("avx_vnni", (), ("CPUExecutionProvider",), "fp32", "has avx_vnni, but the bundle has no int8"),
        ("avx_vnni", ("int8", "fp16"), ("CUDAExecutionProvider",), "fp16", "CUDAExecutionProvider computes in float"),
        ("avx_vnni", ("int8",), ("CUDAExecutionProvider",), "fp32", "CUDAExecutionProvider computes in float"),
    ],
)
def test_auto_follows_processor_and_provider(
    instruction: str | None,
    names: tuple[str, ...],
    providers: tuple[str, ...],
    expected: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "int8_instruction", lambda: instruction)
    chosen, why = processor.choose_variant("auto", ("fp32", *names), providers)
    assert chosen == expected
    assert reason in why


def test_auto_chooses_a_variant_of_the_bundle_on_this_machine(directory: Path) -> None:
    runtime = deploy.load(directory, variant="auto", threads=1).info["runtime"]
    assert runtime["variant"] == ("int8" if processor.int8_instruction() else "fp32")
    assert runtime["reason"].startswith("auto: this processor")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\nflags\t\t: avx512_vnni fpu\n",
            "avx512_vnni",
        ),
        ("flags : avx512_vnni avx_vnni amx_int8\n", "amx_int8"),
        ("flags : avx2 avx_vnni\nflags : avx2\n", None),  # a thread may run on either core
        ("flags : avx2 avx512f\n", None),
        ("Features\t: fp asimd asimddp\nFeatures\t: fp asimd asimddp\n", "asimddp"),
        ("Features\t: fp asimddp i8mm\n", "i8mm"),
        ("", None),
    ],
)
def test_flags_of_linux(text: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor.int8_instruction(tmp_path / "cpuinfo") == expected


def test_a_system_without_cpuinfo_reports_no_instruction(tmp_path: Path) -> None:
    assert processor.int8_instruction(tmp_path / "absent") is None


def test_flags_of_apple(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def sysctlbyname(self, name: bytes, value: Any, *_: object) -> int:
            value._obj.value = 1
            return 0 if name == b"hw.optional.arm.FEAT_DotProd" else -1

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(processor.ctypes, "CDLL", lambda _: Library())
    assert processor.int8_instruction() == "asimddp"


def test_a_session_does_not_keep_every_variant_in_memory(directory: Path) -> None:
    kept = deploy.load(directory, threads=1, variant="int8")._bundle
    assert (kept.model, kept.variants) == (b"", {})
    assert (directory / MANIFEST).exists()


def test_errors_are_deploy_errors(directory: Path) -> None:
    with pytest.raises(DeployError):
        deploy.load(directory, variant="int4")
