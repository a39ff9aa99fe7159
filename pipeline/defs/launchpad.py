"""Every key of params.yaml as a typed, documented field of Dagster's launchpad, generated from the blocks' own models.

Nothing is described twice: types, ranges and words come from the models, by ``pipeline.knobs``. A field that is left
out, or null, is as params.yaml has it.
"""

import json
import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from pipeline import knobs, params
from simclr_core.params import Block, flatten


class LaunchConfig(dg.Config):
    """Which images to ingest, and which keys of params.yaml to change before anything runs."""

    sources: list[str] | None = Field(
        default=None,
        description="Folders, globs or fsspec URLs to ingest, a relative one taken from the workspace, such as "
        "[inbox, s3://bucket/camera-7]; null: retraining.sources of params.yaml.",
    )
    overrides: dict[str, str] = Field(
        default={},
        description='Any key by its full name, the value as YAML in quotes: {"pretrain.resize": "null"}. '
        "Wins over the typed fields.",
    )

    restart: bool = Field(
        default=False,
        description="What happens to new images if a run was interrupted. False: it is finished first, and they "
        "come with the run after it; true: they are ingested, and it begins again.",
    )

    def settings(self) -> dict[str, str]:
        """What to write into params.yaml: ``{"pretrain.epochs": "100"}``, the values as YAML."""
        blocks = self.model_dump(exclude={"sources", "overrides", "restart"}, exclude_none=True)
        return {name: json.dumps(value) for name, value in flatten(blocks)} | self.overrides


def launch_config(name: str) -> type[LaunchConfig]:
    """``LaunchConfig`` with one more field for each block of params.yaml."""
    fields = {block: _block(model, (block,), knobs.describe_block(model)) for block, model in params.BLOCKS.items()}
    model: type[LaunchConfig] = _model(name, LaunchConfig, LaunchConfig.__doc__, fields)
    return model


def _block(model: type[Block], path: tuple[str, ...], description: str) -> tuple[Any, Any]:
    """A field whose value is an optional mapping: what ``create_model`` takes, a type and its ``Field``."""
    fields = {name: _field(field, (*path, name)) for name, field in model.model_fields.items()}
    config = _model(f"{_camel_case(path)}Config", dg.Config, description, fields)
    return config | None, Field(default=None, description=description)


def _field(field: FieldInfo, path: tuple[str, ...]) -> tuple[Any, Any]:
    description, block = knobs.describe(field), knobs.find_block(field)
    if block:
        return _block(block, path, description)
    kind, _ = knobs.value_type(field)
    return _dagster_type(kind, path) | None, Field(
        default=None, description=f"{description} Allowed: {knobs.describe_allowed(field)}."
    )


def _dagster_type(kind: Any, path: tuple[str, ...]) -> Any:
    """The type that Dagster checks before it starts a run."""
    if get_origin(kind) is Literal:
        return Enum(_camel_case(path), {choice: choice for choice in get_args(kind)}, type=str)
    if get_origin(kind) is tuple:
        inner, _ = knobs.strip(get_args(kind)[0])
        return list[_dagster_type(inner, path)]  # type: ignore[misc]
    return kind


def _camel_case(path: tuple[str, ...]) -> str:
    return "".join(part.title().replace("_", "") for part in path)


def _model(name: str, base: type[dg.Config], words: str | None, fields: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        # The block `validate` has the name of a method of pydantic 1 that pydantic keeps, and that nothing here calls.
        warnings.filterwarnings("ignore", 'Field name "validate" in', UserWarning)
        return create_model(name, __base__=base, __doc__=words, **fields)
