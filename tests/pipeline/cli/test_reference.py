"""The reference pages and the comments of params.yaml are those that the code makes."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic.fields import FieldInfo

from deploy.cli.main import build_parser as deploy_parser
from pipeline import knobs
from pipeline.cli import reference
from pipeline.cli.main import simclr
from pipeline.params import BLOCKS
from simclr_core.__main__ import build_parser as core_parser
from simclr_core.params import Block

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", reference.texts())
def test_what_is_in_the_repository_is_what_the_code_makes(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == reference.texts()[name], "run `make reference`"


def test_an_edited_comment_is_found_and_written_again(tmp_path: Path) -> None:
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    edited = re.sub(r"(  settle_seconds: 2.0 +# ).*", r"\1as long as it takes", shipped)
    assert edited != shipped
    (tmp_path / "params.yaml").write_text(edited, encoding="utf-8")
    assert reference.texts(tmp_path)["params.yaml"] == shipped


def keys(path: str, model: type[Block]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{path}.{name}", field
        block = knobs.find_block(field)
        if block:
            yield from keys(f"{path}.{name}", block)


def test_every_key_has_one_row_with_its_description() -> None:
    page = reference.parameters_page()
    for name, model in BLOCKS.items():
        for key, field in keys(name, model):
            (row,) = re.findall(rf"^\| \[?`{key}`.*\|$", page, re.MULTILINE)
            assert (field.description or "")[1:] in row, key


def test_a_row_says_what_is_allowed_and_the_default() -> None:
    lines = reference.parameters_page().splitlines()
    seed = "| `pretrain.seed` | a whole number, at least 0, below 4,294,967,296 | `0` | Seed of every random choice. |"
    assert seed in lines
    (resize,) = [line for line in lines if line.startswith("| `pretrain.resize` |")]
    assert resize.startswith("| `pretrain.resize` | a whole number, at least 8, or null | `null` | Shorter side")
    (queue,) = [line for line in lines if "`pretrain.queue`" in line]
    assert queue.startswith("| [`pretrain.queue`](#pretrainqueue) | a block, or null | `null` | Negatives from")
    assert "### pretrain.queue" in lines
    assert '| `retraining.sources` | a non-empty list, each text | `["inbox"]` |' in reference.parameters_page()


COMMANDS = reference.commands_page()


def section(name: str) -> str:
    """What the page says between the heading of a command and the next one."""
    return re.split(r"^##+ ", COMMANDS.partition(f"# {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def click_options(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    yield name, ""
    for param in command.params:
        if isinstance(param, click.Option):
            yield from ((name, option) for option in (*param.opts, *param.secondary_opts))
    if isinstance(command, click.Group):
        for inner, sub in command.commands.items():
            if not sub.hidden:
                yield from click_options(sub, f"{name} {inner}")


def argparse_options(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    yield name, ""
    for option in parser._option_string_actions:
        if option not in ("-h", "--help"):
            yield name, option
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, sub in action.choices.items():
                yield from argparse_options(sub, f"{name} {inner}")


def test_every_command_and_option_is_there() -> None:
    found = [
        *click_options(simclr, "simclr"),
        *argparse_options(deploy_parser(), "simclr-deploy"),
        *argparse_options(core_parser(), "python -m simclr_core"),
    ]
    assert {
        ("simclr run", "--set"),
        ("simclr run", "--continue"),
        ("simclr release diff", ""),
        ("simclr-deploy embed", "-o"),
    } <= set(found)
    assert ("python -m simclr_core finetune", "--fraction") in found
    for name, option in found:
        assert section(name), name
        assert re.search(rf"^\| `[^`]*(?<![\w-]){option}(?![\w-])", section(name), re.MULTILINE) or not option, name


def test_options_have_their_values_defaults_and_needs() -> None:
    assert not section("simclr alert"), "an old name that still works"
    assert "| `--set KEY=VALUE` |" in section("simclr run")
    assert "| `--port INTEGER` | Default: 3000. |" in section("simclr ui")
    assert re.search(r"\| `--why TEXT` \| .* Required\. \|", section("simclr quarantine deny"))
    assert re.search(r"\| `-o, --out DIR` \| .*; required \|", section("simclr-deploy embed"))
    assert "| `--format {npy,csv,parquet}` |" in section("simclr-deploy embed")
    assert "| `--json` |" in section("simclr-deploy search")
    assert "| `--threads N` |" in section("simclr-deploy search")


def test_the_usage_shows_the_arguments() -> None:
    assert "```\nsimclr quarantine deny [OPTIONS] HASH|PATH...\n```" in section("simclr quarantine deny")
    assert "```\nsimclr-deploy index [OPTIONS] BUNDLE OUT [IMAGE]...\n```" in section("simclr-deploy index")
    assert "```\npython -m simclr_core compare\n```" in section("python -m simclr_core compare")
    assert "```\nsimclr-deploy [OPTIONS] COMMAND [ARGS]...\n```" in section("simclr-deploy")


def test_examples_are_blocks_of_shell_that_the_tests_of_the_docs_try() -> None:
    assert "Examples:\n\n```sh\nsimclr release rollback\nsimclr release rollback v0.0.1\n```" in section(
        "simclr release rollback"
    )
    assert "```sh\nsimclr-deploy info models/bundle\n" in section("simclr-deploy")
    assert "Recipes:\n\n```\nauto  " in section("simclr init")
