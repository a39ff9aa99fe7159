"""params.yaml: every fault at once, nothing guessed, and no torch to read it."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from simclr_core.config import PRESETS, DistillConfig, ExportConfig, FinetuneConfig, LinearEvalConfig, PretrainConfig
from simclr_core.errors import ConfigError
from simclr_core.params import Block, flatten, read_block
from tests.sentences import assert_plain

BLOCKS = {
    "pretrain": PretrainConfig,
    "linear_eval": LinearEvalConfig,
    "finetune": FinetuneConfig,
    "distill": DistillConfig,
    "export": ExportConfig,
}


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str, block: str = "pretrain") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_block(write(folder, text), block, BLOCKS[block])
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    assert "\n" not in str(caught.value)
    return caught.value.faults


def test_values_arrive_typed(tmp_path: Path) -> None:
    text = """
    pretrain:
      seed: 3
      encoder: {name: resnet10, width: 0.5, stem: compact}
      augmentation: {crop_scale: [0.2, 1]}
      weight_decay: 1e-6
      learning_rate: 3E-1
      resize: null
      learning_rate_scaling: none
    """
    config = read_block(write(tmp_path, text), "pretrain", PretrainConfig)
    assert (config.seed, config.encoder.width, config.encoder.stem) == (3, 0.5, "compact")
    assert config.augmentation.crop_scale == (0.2, 1.0)
    assert (config.weight_decay, config.learning_rate, config.resize) == (1e-6, 0.3, None)
    assert config.learning_rate_scaling == "none"
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 4  # type: ignore[misc]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("body", ["{}", "", "null"])
def test_an_empty_block_takes_the_defaults(tmp_path: Path, block: str, body: str) -> None:
    assert read_block(write(tmp_path, f"{block}: {body}\n"), block, BLOCKS[block]) == BLOCKS[block]()


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    text = """
    pretrain:
      learning_rte: 3
      batch_size: 1
      epochs: "5"
      encoder: {stm: cifar, stem: tiny}
      augmentation: {crop_scale: [0.9, 0.2], flip: 2}
      temperature: .nan
    """
    assert sorted(faults(tmp_path, text)) == [
        "pretrain.augmentation.crop_scale: given [0.9, 0.2], allowed: [low, high] with low <= high",
        "pretrain.augmentation.flip: given 2, allowed: less than or equal to 1",
        "pretrain.batch_size: given 1, allowed: greater than or equal to 2",
        "pretrain.encoder.stem: given 'tiny', allowed: 'imagenet', 'cifar' or 'compact'",
        "pretrain.encoder.stm: unknown key; did you mean stem?",
        "pretrain.epochs: given '5', allowed: a valid integer",
        "pretrain.learning_rte: unknown key; did you mean learning_rate?",
        "pretrain.temperature: given .nan, allowed: a finite number",
    ]


@pytest.mark.parametrize(
    ("text", "block", "expected"),
    [
        ("pretrain: {batch_size: true}", "pretrain", "given true, allowed: a valid integer"),
        ("pretrain: {temperature: 0}", "pretrain", "given 0, allowed: greater than 0"),
        ("pretrain: {image_size: 64, resize: 32}", "pretrain", "must have resize of at least image_size (64), not 32"),
        ("pretrain: {epochs: 2, warmup_epochs: 3}", "pretrain", "must have warmup_epochs up to epochs (2), not 3"),
        (
            "pretrain: {warm_start: {epochs: 2, warmup_epochs: 3}}",
            "pretrain",
            "must have warm_start.warmup_epochs up to the epochs of a warm start (2), not 3",
        ),
        (
            "pretrain: {warm_start: {learning_rate_share: 1.5}}",
            "pretrain",
            "given 1.5, allowed: less than or equal to 1",
        ),
        ("pretrain: {augmentation: {crop_scale: [0.5, 1.5]}}", "pretrain", "the whole image"),
        ("pretrain: {encoder: 5}", "pretrain", "pretrain.encoder: given 5, allowed: a mapping of keys to values"),
        ("pretrain: {encoder: {zzz: 5}}", "pretrain", "pretrain.encoder.zzz: unknown key; allowed: name, width, stem"),
        (
            "pretrain: {encoder: {name: resnet51}}",
            "pretrain",
            "encoder.name: given 'resnet51', allowed: the name",
        ),
        ("pretrain: {encoder: {name: vgg11, width: 2}}", "pretrain", "'vgg11' has no width or stem to choose"),
        (
            "pretrain: {encoder: {name: vgg11}, gradient_checkpointing: true}",
            "pretrain",
            "must have gradient_checkpointing: false for vgg11, which has no blocks",
        ),
        (
            "pretrain: {encoder: {name: vit_b_16}, image_size: 100}",
            "pretrain",
            "must have image_size of a multiple of 16 for encoder.name vit_b_16, not 100",
        ),
        (
            "pretrain: {encoder: {name: inception_v3}, image_size: 64}",
            "pretrain",
            "must have image_size of at least 75 for encoder.name inception_v3, not 64",
        ),
        (
            "pretrain: {encoder: {name: vit_b_16}, augmentation: {extra_crop_size: 96}}",
            "pretrain",
            "must have augmentation.extra_crop_size: null for vit_b_16, which takes images of one size",
        ),
        (
            "pretrain: {encoder: {name: vgg11}, augmentation: {extra_crop_size: 24}}",
            "pretrain",
            "must have augmentation.extra_crop_size of at least 32 for encoder.name vgg11, not 24",
        ),
        (
            "pretrain: {optimizer: lars, clip_gradient_norm: 1.0}",
            "pretrain",
            "must have clip_gradient_norm: null with optimizer lars, whose steps have lengths that do not depend on",
        ),
        ("pretrain: [1, 2]", "pretrain", "pretrain: given [1, 2], allowed: a mapping of keys to values"),
        ("linear_eval: {fractions: [0.1]}", "linear_eval", "fractions.0: given 0.1, allowed: a valid string"),
        ("linear_eval: {fractions: ['10']}", "linear_eval", "given '10', allowed: a fraction in quotes"),
        ("linear_eval: {fractions: ['0.0']}", "linear_eval", "given '0.0', allowed: a fraction in quotes"),
        ("linear_eval: {fractions: []}", "linear_eval", "given [], allowed: a list of at least one"),
        ("finetune: {seeds: [0, 1.5]}", "finetune", "finetune.seeds.1: given 1.5, allowed: a valid integer"),
        ("export: {source: best}", "export", "given 'best', allowed: 'pretrained', 'finetuned' or 'distilled'"),
        ("export: {variants: [int8]}", "export", "allowed: a list with fp32, in which nothing is twice"),
        ("export: {variants: [fp32, fp32]}", "export", "allowed: a list with fp32, in which nothing is twice"),
        ("export: {variants: [fp32, int4]}", "export", "given 'int4', allowed: 'fp32', 'int8' or 'fp16'"),
    ],
)
def test_a_fault_names_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, text: str, block: str, expected: str
) -> None:
    (fault,) = faults(tmp_path, text, block)
    assert expected in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("finetune: {}", "no block 'pretrain' (found: finetune); add 'pretrain: {}' for the defaults"),
        ("", "must map stages to parameters"),
        ("- pretrain", "must map stages to parameters"),
        ("pretrain: {epochs: 1, epochs: 2}", "the key 'epochs' is given twice"),
        ("pretrain: {}\npretrain: {}", "the key 'pretrain' is given twice"),
        ("pretrain: {epochs: [}", "cannot be read as YAML"),
        ("pretrain: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_an_unusable_file_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    (fault,) = faults(tmp_path, text)
    assert expected in fault


def test_a_missing_file_and_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; .*`git checkout params\.yaml`, or copy .*`simclr init DIR`"):
        read_block(tmp_path / "params.yaml", "pretrain", PretrainConfig)
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_block(tmp_path / "params.yaml", "pretrain", PretrainConfig)


def test_a_block_of_another_package_is_read_the_same_way(tmp_path: Path) -> None:
    class IngestConfig(Block):
        settle_seconds: float = 2.0

    path = write(tmp_path, "ingest: {settle_seconds: 5}\n")
    assert read_block(path, "ingest", IngestConfig).settle_seconds == 5


@pytest.mark.seconds
def test_reading_the_configuration_does_not_import_torch() -> None:
    check = "import sys, simclr_core.config, simclr_core.reporter; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def augmentation(folder: Path, body: str) -> dict[str, object]:
    text = f"pretrain: {{augmentation: {body}}}"
    return read_block(write(folder, text), "pretrain", PretrainConfig).augmentation.model_dump()


def test_a_preset_sets_what_is_not_given(tmp_path: Path) -> None:
    default = augmentation(tmp_path, "{}")
    assert "preset" not in default  # what it stands for is there in its place
    assert augmentation(tmp_path, "{preset: imagenet}") == default
    assert augmentation(tmp_path, "{preset: null}") == default
    assert augmentation(tmp_path, "{preset: cifar}") == {**default, "jitter_strength": 0.5, "blur": 0.0}
    medical = augmentation(tmp_path, "{preset: medical}")
    assert medical["jitter_strength"] < default["jitter_strength"]
    assert medical["rotation"] > 0
    assert augmentation(tmp_path, "{preset: medical, rotation: 0.0}") == {**medical, "rotation": 0.0}
    assert augmentation(tmp_path, "{preset: grayscale}")["grayscale"] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(tmp_path: Path, preset: str) -> None:
    assert augmentation(tmp_path, f"{{preset: {preset}}}").items() >= PRESETS[preset].items()


@pytest.mark.parametrize("given", ["photos", "3", "[cifar]"])
def test_an_unknown_preset_is_refused(tmp_path: Path, given: str) -> None:
    (fault,) = faults(tmp_path, f"pretrain: {{augmentation: {{preset: {given}}}}}")
    assert fault.startswith("pretrain.augmentation.preset: given ")
    assert "'imagenet', 'cifar', 'grayscale' or 'medical'" in fault


def test_a_file_that_may_not_be_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, encoding: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "params.yaml").touch()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\); give this user access") as refused:
        read_block(tmp_path / "params.yaml", "pretrain", PretrainConfig)
    assert_plain(str(refused.value))


def test_nested_mappings_are_flattened_and_lists_are_values() -> None:
    nested = {"pretrain": {"queue": {"size": 8}, "resize": None}, "seeds": [0, 1], "empty": {}, 1: {2: 3}}
    assert dict(flatten(nested)) == {"pretrain.queue.size": 8, "pretrain.resize": None, "seeds": [0, 1], "1.2": 3}
    assert dict(flatten(nested["pretrain"], separator="/")) == {"queue/size": 8, "resize": None}
