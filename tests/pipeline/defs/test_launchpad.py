"""The launchpad of `retrain` shows every key of params.yaml with its type and words, and refuses what cannot be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
import yaml

from pipeline import params
from pipeline.defs.raw_images import RawImagesConfig, raw_images
from pipeline.workspace import Workspace, template
from simclr_core.config import PretrainConfig

JOB = dg.Definitions(
    assets=[raw_images], jobs=[dg.define_asset_job("retrain")], resources={"workspace": Workspace(Path("nowhere"))}
)


def shown() -> dict[str, Any]:
    """Full name of each key → (type, description), from the schema that the UI shows next to the launchpad."""
    schema = JOB.resolve_job_def("retrain").graph.node_named("raw_images").definition.config_schema
    return dict(_fields(schema.as_field().config_type, ""))


def _fields(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(kind, "inner_type", kind)
    for name, field in getattr(inner, "fields", {}).items():
        assert not field.is_required
        yield f"{prefix}{name}", (field.config_type, field.description)
        yield from _fields(field.config_type, f"{prefix}{name}.")


def validate(**config: object) -> None:
    dg.validate_run_config(JOB.resolve_job_def("retrain"), {"ops": {"raw_images": {"config": config}}})


def keys(block: type[params.Block], prefix: str) -> Iterator[str]:
    for name, field in block.model_fields.items():
        yield f"{prefix}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):  # a block may also be null
            if isinstance(kind, type) and issubclass(kind, params.Block):
                yield from keys(kind, f"{prefix}{name}.")


def test_every_key_is_offered_with_a_description() -> None:
    fields = shown()
    wanted = {key for name, block in params.BLOCKS.items() for key in keys(block, f"{name}.")}
    assert {"pretrain.epochs", "pretrain.queue.size", "pretrain.augmentation.crop_scale", "gates.confidence"} <= wanted
    assert wanted | set(params.BLOCKS) | {"sources", "restart", "overrides"} == set(fields)
    for name, (_, description) in fields.items():
        assert description, name


def test_descriptions_come_from_the_models_with_the_allowed_values() -> None:
    fields = shown()
    monitor = PretrainConfig.model_fields["monitor_images"].description
    assert fields["pretrain.monitor_images"][1] == f"T{monitor[1:]}. Allowed: a whole number, at least 16."
    assert fields["pretrain.temperature"][1].endswith(" Allowed: a number, above 0.")
    assert fields["pretrain.optimizer"][1].endswith(" Allowed: sgd, lars, or adamw.")
    assert fields["pretrain.init"][1].endswith(" Allowed: scratch, champion, or weights.")
    assert fields["pretrain.augmentation.crop_scale"][1].endswith(" Allowed: a list of 2, each a number, above 0.")
    assert fields["release.require_remote"][1].endswith(" Allowed: true or false.")
    assert fields["pretrain.seed"][1].endswith(" Allowed: a whole number, at least 0, below 4,294,967,296.")


def test_a_block_is_described_by_its_field_or_its_docstring() -> None:
    fields = shown()
    assert fields["ingest"][1] == "How new files become raw batches."
    assert fields["pretrain.warm_start"][1].startswith(
        "What differs when pretraining continues from a champion or from weights."
    )
    queue = PretrainConfig.model_fields["queue"].description
    assert fields["pretrain.queue"][1] == f"N{queue[1:]}."


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pretrain": {"epochs": "many"}}, "pretrain:epochs"),
        ({"pretrain": {"epochs": 1.5}}, "pretrain:epochs"),
        ({"pretrain": {"optimizer": "adam"}}, "not in enum type PretrainOptimizer got adam"),
        ({"pretrain": {"epoch": 3}}, 'unexpected config entry "epoch"'),
        ({"pretrian": {"epochs": 3}}, 'unexpected config entry "pretrian"'),
        ({"pretrain": {"augmentation": {"flip": "yes"}}}, "pretrain:augmentation:flip"),
        ({"sources": "inbox"}, "sources"),
    ],
)
def test_a_fault_is_reported_before_the_run_begins(config: dict[str, object], message: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=message):
        validate(**config)


def test_every_value_of_the_shipped_params_yaml_is_accepted_and_means_itself(workspace: Workspace) -> None:
    workspace.params.write_text(template("params.yaml").read_text())
    shipped = params.read(workspace)
    blocks = yaml.safe_load(workspace.params.read_text())
    validate(**blocks)
    workspace.params.write_text(yaml.safe_dump({name: {} for name in params.BLOCKS} | {"prepare": {"short_side": 256}}))
    params.override(workspace, RawImagesConfig(**blocks).settings())
    assert params.read(workspace) == shipped


def test_omitted_keys_change_nothing_and_overrides_win() -> None:
    assert RawImagesConfig().settings() == {}
    assert RawImagesConfig(sources=["a"], pretrain=None).settings() == {}
    config = RawImagesConfig(
        pretrain={"epochs": 3, "encoder": {"name": "vit_b_16"}},
        overrides={"pretrain.epochs": "7", "pretrain.resize": "null"},
    )
    assert config.settings() == {
        "pretrain.epochs": "7",
        "pretrain.encoder.name": '"vit_b_16"',
        "pretrain.resize": "null",
    }


def test_a_dumped_configuration_is_accepted_as_run_configuration() -> None:
    validate(**RawImagesConfig(sources=["inbox"]).model_dump())
    validate()
