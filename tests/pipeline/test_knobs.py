"""Every knob is described once, in its model; the comments of params.yaml say the same."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Literal

import pytest
import yaml
from pydantic import Field
from pydantic.fields import FieldInfo

from pipeline import knobs, params
from pipeline import workspace as workspaces
from simclr_core.params import Block
from simclr_core.values import Fractions, Range, Seeds

PARAMS = workspaces.template("params.yaml").read_text(encoding="utf-8")


class Paint(Block):
    """How a wall is painted. With a brush, see ``brush``.

    Of no interest to a painter.
    """

    coats: int = Field(default=2, ge=1, le=9, description="number of coats. Two are enough")
    tool: Literal["brush", "roller"] = Field(default="brush", description="what to paint with")


class House(Block):
    """A house to paint."""

    color: str | None = Field(default=None, description="color of the walls; null: none")
    primer: Paint | None = Field(default=None, description="what comes below; null: nothing")
    walls: Paint = Paint()
    tools: tuple[Literal["brush", "roller", "spray"], ...] = Field(
        default=(), strict=False, min_length=1, description="what may be used"
    )
    size: Range = Field(default=(1.0, 2.0), description="sides")
    seeds: Seeds = Field(default=(1,), description="numbers")
    shares: Fractions = Field(default=("0.1",), description="parts")
    share: float = Field(default=0.5, gt=0, lt=1, description="part")
    dry: bool = Field(default=True, description="wait")


def fields(model: type[Block], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}.{name}", field
        block = knobs.find_block(field)
        if block:
            yield from fields(block, f"{prefix}.{name}")


KNOBS = dict(found for name, model in params.BLOCKS.items() for found in fields(model, name))


def test_every_knob_and_every_block_is_described() -> None:
    assert len(KNOBS) > 130
    for name, field in KNOBS.items():
        block = knobs.find_block(field)
        assert block or field.description, name
        assert len(knobs.describe(field)) > len("Its value."), name
    for name, model in params.BLOCKS.items():
        assert model.__doc__ != Block.__doc__, name


@pytest.mark.parametrize("name", KNOBS)
def test_a_description_is_a_fragment_in_lower_case_without_a_period(name: str) -> None:
    description = KNOBS[name].description or ""
    assert "\n" not in description
    assert "  " not in description
    assert not description.endswith((".", " "))
    assert not re.match(r"[A-Z][a-z]", description), "it begins as the comment that it is in params.yaml"


def test_modules_that_the_blocks_name_exist() -> None:
    blocks = {*params.BLOCKS.values(), *filter(None, map(knobs.find_block, KNOBS.values()))}
    named = [name for block in blocks for name in re.findall(r"``([\w.]+)``", block.__doc__ or "")]
    assert len(named) >= 8
    assert [name for name in named if not find_spec(name)] == []


def test_a_block_is_described_by_the_first_paragraph_of_its_docstring() -> None:
    assert knobs.describe_block(Paint) == "How a wall is painted. With a brush, see ``brush``."
    assert knobs.describe(House.model_fields["walls"]) == "How a wall is painted. With a brush, see ``brush``."
    assert knobs.describe(House.model_fields["primer"]) == "What comes below; null: nothing."
    assert knobs.describe(Paint.model_fields["coats"]) == "Number of coats. Two are enough."


@pytest.mark.parametrize(
    ("name", "allowed", "null"),
    [
        ("color", "text", True),
        ("primer", "a block", True),
        ("walls", "a block", False),
        ("tools", "a non-empty list, each brush, roller, or spray", False),
        ("size", "a list of 2, each a number, above 0", False),
        ("seeds", "a list, each a whole number, at least 0", False),
        ("shares", "a list, each text", False),
        ("share", "a number, above 0, below 1", False),
        ("dry", "true or false", False),
    ],
)
def test_allowed_values_are_described(name: str, allowed: str, null: bool) -> None:
    field = House.model_fields[name]
    assert (knobs.describe_allowed(field), knobs.takes_null(field)) == (allowed, null)


def test_choices_are_listed_as_in_a_sentence() -> None:
    assert knobs.enumerate_choices(["a"]) == "a"
    assert knobs.enumerate_choices(["a", "b"]) == "a or b"
    assert knobs.enumerate_choices(["a", "b", "c"]) == "a, b, or c"


def test_rewriting_the_comments_changes_nothing_else() -> None:
    before = """\
# A line at the top # with a mark
house:  # an old comment
  color: "red # green"
  primer: {coats: 1, tool: brush} # old

  # a separate line
  walls:
    coats: 3            # old
    tool: roller
  tools: [brush,
    spray]
"""
    after = """\
# A line at the top # with a mark
house:                        # A house to paint
  color: "red # green"        # color of the walls; null: none
  primer: {coats: 1, tool: brush}  # what comes below; null: nothing

  # a separate line
  walls:                      # How a wall is painted
    coats: 3                  # number of coats
    tool: roller              # brush or roller: what to paint with
  tools: [brush,
    spray]                    # brush, roller, or spray: what may be used
"""
    assert knobs.annotate(before, {"house": House}) == after
    assert knobs.annotate(after, {"house": House}) == after


def test_the_shipped_params_yaml_has_a_comment_for_every_key_and_no_long_line() -> None:
    lines = PARAMS.splitlines()
    assert [line for line in lines if re.match(r" *\w+:", line) and " # " not in line] == []
    assert [line for line in lines if len(line) > 120] == []


def test_comments_do_not_change_a_value() -> None:
    bare = re.sub(r"  # .*", "", PARAMS)
    assert yaml.safe_load(knobs.annotate(bare, params.BLOCKS)) == yaml.safe_load(PARAMS)
    assert knobs.annotate(bare, params.BLOCKS) == PARAMS
