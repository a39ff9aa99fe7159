"""Every key of params.yaml as a typed, documented field of Dagster's launchpad, generated from the blocks' own models.

Nothing is described twice: types and ranges come from ``pipeline.params``, the words from the comments of the
params.yaml that every workspace begins with. A field that is left out, or null, is as params.yaml has it.
"""

import json
import re
import types
import warnings
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from pipeline import params
from pipeline.workspace import template
from simclr_core.params import Block

BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


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

    def settings(self) -> dict[str, str]:
        """What to write into params.yaml: ``{"pretrain.epochs": "100"}``, the values as YAML."""
        blocks = self.model_dump(exclude={"sources", "overrides"}, exclude_none=True)
        return dict(_flatten(blocks)) | self.overrides


def launch_config(name: str) -> type[LaunchConfig]:
    """``LaunchConfig`` with one more field for each block of params.yaml."""
    comments = read_comments(template("params.yaml").read_text(encoding="utf-8"))
    fields = {block: _nested(model, (block,), comments) for block, model in params.BLOCKS.items()}
    model: type[LaunchConfig] = _model(name, LaunchConfig, LaunchConfig.__doc__, fields)
    return model


def read_comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment beside each key of a YAML file in block style: ``{("pretrain", "epochs"): "..."}``."""
    comments: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r"( *)(\w+):(?:.*\s#\s+(.*))?", line)
        if found:
            indent, key, comment = len(found[1]), found[2], found[3]
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key)]
            if comment:
                comments[tuple(name for _, name in path)] = comment.strip()
    return comments


def _nested(model: type[Block], path: tuple[str, ...], comments: Mapping[tuple[str, ...], str]) -> tuple[Any, Any]:
    """A field whose value is an optional mapping: what ``create_model`` takes, a type and its ``Field``."""
    fields = {name: _field(field, (*path, name), comments) for name, field in model.model_fields.items()}
    words = comments.get(path) or " ".join((model.__doc__ or "").split())
    config = _model("".join(part.title().replace("_", "") for part in path) + "Config", dg.Config, words, fields)
    return config | None, Field(default=None, description=words)


def _field(field: FieldInfo, path: tuple[str, ...], comments: Mapping[tuple[str, ...], str]) -> tuple[Any, Any]:
    kind, metadata = _strip(field.annotation)
    if isinstance(kind, type) and issubclass(kind, Block):
        return _nested(kind, path, comments)
    dagster_type, allowed = _translate(kind, path)
    bounds = _bounds([*metadata, *field.metadata])
    parts = [_words(comments.get(path) or field.description), ", ".join([allowed, *bounds])]
    return dagster_type | None, Field(default=None, description="; ".join(part for part in parts if part) + ".")


def _words(comment: str | None) -> str:
    """Beside a value stand the other choices, ``or lars, adamw``: here they are all named anyway."""
    words = comment or ""
    return words.removeprefix("or ") if ":" in words or not words.startswith("or ") else ""


def _translate(kind: Any, path: tuple[str, ...]) -> tuple[Any, str]:
    """The type that Dagster checks before it starts a run, and what is allowed in words."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        names = "".join(part.title().replace("_", "") for part in path)
        return Enum(names, {choice: choice for choice in choices}, type=str), " or ".join(choices)
    if get_origin(kind) is tuple:
        inner, metadata = _strip(get_args(kind)[0])
        dagster_type, allowed = _translate(inner, path)
        count = "" if get_args(kind)[-1] is Ellipsis else f" of {len(get_args(kind))}"
        return list[dagster_type], ", ".join([f"a list{count}, each {allowed}", *_bounds(metadata)])  # type: ignore[valid-type]
    return kind, SCALARS[kind]


def _strip(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without ``| None`` and ``Annotated``, and what was annotated."""
    metadata: list[Any] = []
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        if get_origin(annotation) is Annotated:
            metadata += _constraints(annotation.__metadata__)
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    return annotation, metadata


def _constraints(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else [one]


def _bounds(metadata: list[Any]) -> list[str]:
    found = [(words, getattr(one, name, None)) for one in metadata for name, words in BOUNDS.items()]
    return [f"{words} {bound:,}" for words, bound in found if bound is not None]


def _model(name: str, base: type[dg.Config], words: str | None, fields: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        # The block `validate` has the name of a method that pydantic keeps from its first version, and nobody calls.
        warnings.filterwarnings("ignore", 'Field name "validate" in', UserWarning)
        return create_model(name, __base__=base, __doc__=words, **fields)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flatten(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(inner)
