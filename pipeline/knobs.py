"""What every knob of params.yaml means and allows, as text, read from the models of the blocks.

A knob is described once, by ``Field(description=...)``, and a block by the first paragraph of its docstring. The
comments of params.yaml, the help in the launchpad and docs/reference/params.md are made of that here.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from inspect import getdoc
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from simclr_core.params import Block

BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
COMMENT_COLUMN = 30


def describe_block(model: type[Block]) -> str:
    """The first paragraph of its docstring."""
    return " ".join((getdoc(model) or "").partition("\n\n")[0].split())


def describe(field: FieldInfo) -> str:
    """What the knob means, as sentences."""
    text = _text(field)
    return f"{text[0].upper()}{text[1:].removesuffix('.')}."


def find_block(field: FieldInfo) -> type[Block] | None:
    """The block that the value is, if it is one."""
    kind, _ = value_type(field)
    return kind if isinstance(kind, type) and issubclass(kind, Block) else None


def value_type(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a value without ``| None`` and ``Annotated``, and its constraints."""
    kind, constraints = strip(field.annotation)
    return kind, [*constraints, *field.metadata]


def strip(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without ``| None`` and ``Annotated``, and the constraints in it."""
    constraints: list[Any] = []
    while get_origin(annotation) in (Annotated, Union, types.UnionType):
        if get_origin(annotation) is Annotated:
            constraints += _constraints(annotation.__metadata__)
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    return annotation, constraints


def describe_allowed(field: FieldInfo) -> str:
    """Which values the knob takes besides null: ``a whole number, at least 1``."""
    return _allowed(*value_type(field))


def takes_null(field: FieldInfo) -> bool:
    """Whether null is allowed as well."""
    return type(None) in get_args(field.annotation)


def enumerate_choices(choices: Sequence[str]) -> str:
    """``a``; ``a or b``; ``a, b, or c``."""
    *others, last = choices
    return f"{', '.join(others)}{',' * (len(others) > 1)} or {last}" if others else last


def annotate(text: str, blocks: Mapping[str, type[Block]]) -> str:
    """The text of a params.yaml with a comment behind every key, from its description; all else stays as it is.

    A comment names the choices, if there are any, and then the first sentence of the description.
    """
    lines = text.splitlines()
    document = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(document, yaml.MappingNode)
    for key, value in document.value:
        model = blocks[key.value]
        _set_comment(lines, key.start_mark.line, key.end_mark.column + 1, _first_sentence(describe_block(model)))
        for line, column, comment in _comments(value, model):
            _set_comment(lines, line, column, comment)
    return "\n".join(lines) + "\n"


def _comments(mapping: yaml.MappingNode, model: type[Block]) -> Iterator[tuple[int, int, str]]:
    """For each key in the mapping: its line, the column where the value ends, and the comment."""
    for key, value in mapping.value:
        field = model.model_fields[key.value]
        block = find_block(field)
        comment = _first_sentence(_text(field))
        if block and isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield key.start_mark.line, key.end_mark.column + 1, comment
            yield from _comments(value, block)
        else:
            choices = _choices(field)
            yield value.end_mark.line, value.end_mark.column, f"{choices}: {comment}" if choices else comment


def _set_comment(lines: list[str], line: int, column: int, comment: str) -> None:
    lines[line] = f"{lines[line][:column]:<{COMMENT_COLUMN - 2}}  # {comment}"


def _text(field: FieldInfo) -> str:
    """Its own description, or that of the block that it holds."""
    block = find_block(field)
    return field.description or (describe_block(block) if block else "")


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".")


def _choices(field: FieldInfo) -> str:
    kind, _ = value_type(field)
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return enumerate_choices(get_args(kind)) if get_origin(kind) is Literal else ""


def _allowed(kind: Any, constraints: Sequence[Any]) -> str:
    if get_origin(kind) is Literal:
        words = enumerate_choices(get_args(kind))
    elif get_origin(kind) is tuple:
        count = "" if get_args(kind)[-1] is Ellipsis else f" of {len(get_args(kind))}"
        kept = "non-empty " if any(getattr(one, "min_length", 0) for one in constraints) else ""
        words = f"a {kept}list{count}, each {_allowed(*strip(get_args(kind)[0]))}"
    elif kind in SCALARS:
        words = SCALARS[kind]
    else:
        words = "a block"
    return ", ".join([words, *_bounds(constraints)])


def _bounds(constraints: Sequence[Any]) -> list[str]:
    found = [(words, getattr(one, name, None)) for one in constraints for name, words in BOUNDS.items()]
    return [f"{words} {bound:,}" for words, bound in found if bound is not None]


def _constraints(metadata: Sequence[Any]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else [one]
