"""A proposal as a table for a person and as the text of a params.yaml, whose comments are the reasons."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from textwrap import wrap
from typing import Any

import yaml

from deploy.plural import align, counted
from pipeline.proposal.collection import Collection
from pipeline.proposal.machine import Machine
from pipeline.proposal.propose import Choice, Proposal
from pipeline.recipes.recipe import overlay, params_of

WIDTH = 118  # of the comments at the top
VALUE_COLUMN = 30  # where the reason begins behind a value


def params_text(
    base: str, proposal: Proposal, collection: Collection, machine: Machine, given: Sequence[Choice]
) -> str:
    """``params.yaml``: the recipe, with the values proposed for these images and those that a person has ``given``;
    ``base`` is the template's."""
    chosen = (*proposal.choices, *given)
    header = [
        f"Recipe auto: {proposal.recipe}, fitted to {collection.images:,} images and to this machine",
        f"Chosen on {date.today()} by looking at {len(collection.glances):,} of {collection.images:,} images: "
        f"{proposal.reason}. "
        f"The machine has {machine}. You can change every value; a value chosen here has its reason as a comment.",
        f"Source of all other values: the recipe {proposal.recipe}, described by `simclr init --help`.",
    ]
    lines = [line for paragraph in header for line in wrap(paragraph, WIDTH)]
    comments = "".join(f"# {line}\n" for line in lines)
    return overlay(params_of(proposal.recipe, base), comments + "\n".join(_blocks(chosen)) + "\n")


def describe(proposal: Proposal, collection: Collection, machine: Machine, shortages: Sequence[str]) -> list[str]:
    """Lines for a terminal: what was found, what is proposed and why, what to know before a run.

    Args:
        shortages: what the numbers of images do not allow.
    """
    notes = [f"note: {note}" for note in (*shortages, *proposal.notes)]
    found = [
        f"{counted(collection.images, 'image')}: {_counts(collection)}",
        f"shorter side {collection.short_side(0.1)} to {collection.short_side(0.9)} pixels, {_kinds(collection)}",
    ]
    if collection.others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in Counter(collection.others).most_common(5))
        found.append(f"{counted(sum(collection.others.values()), 'other file')}: {kinds}")
    found.append(f"machine: {machine}")
    rows = [("recipe", proposal.recipe, proposal.reason)]
    rows += [(one.key, _inline(one.value), one.reason) for one in proposal.choices]
    return [*found, "", *align(rows), *(["", *notes] if notes else [])]


def _kinds(collection: Collection) -> str:
    if collection.channels:  # what is shown of them has colors that stand for channels
        return f"read at full depth with {counted(collection.channels, 'channel')}"
    return f"{collection.share('has_color'):.0%} in color, {collection.share('has_alpha'):.0%} with transparency"


def _counts(collection: Collection) -> str:
    labeled, test = (sum(collection.count(split).values()) for split in ("train", "test"))
    unlabeled = collection.training_images - labeled
    return f"{unlabeled:,} without a label, {labeled:,} labeled, {test:,} held out for testing"


def _blocks(choices: tuple[Choice, ...]) -> Iterator[str]:
    """The choices as YAML, block by block, each with its reason as a comment."""
    tree: dict[str, Any] = {}
    for one in choices:
        *parents, name = one.key.split(".")
        block = tree
        for parent in parents:
            block = block.setdefault(parent, {})
        block[name] = one
    yield from _lines(tree, "")


def _lines(tree: dict[str, Any], indent: str) -> Iterator[str]:
    for name, one in tree.items():
        if isinstance(one, Choice):
            yield f"{f'{indent}{name}: {_inline(one.value)}':<{VALUE_COLUMN - 2}}  # {one.reason}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(one, indent + "  ")


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
