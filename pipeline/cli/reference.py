"""Write what is said about the code from the code: the comments of params.yaml, and pages of docs/reference.

    python -m pipeline.cli.reference        in a clone; `make reference`

Commands come from the parsers, knobs from the models of params.yaml. A test holds the files against ``texts``.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deploy.artifact import write_atomically
from deploy.cli.main import build_parser as deploy_parser
from pipeline import knobs
from pipeline.cli.main import simclr
from pipeline.params import BLOCKS
from simclr_core.__main__ import build_parser as core_parser
from simclr_core.params import Block

ROOT = Path(__file__).parents[2]
PROGRAMS = ("simclr", "simclr-deploy", "python -m simclr_core")
GENERATED = "<!-- Written from the code by `make reference`; change the code instead. -->"

PARAMETERS = f"""\
{GENERATED}

# Parameters

Every knob is a key of `params.yaml`, in one block per stage. `simclr run --set pretrain.epochs=100` changes one first.
All values are checked together before anything starts; an unknown key is an error, and a missing one has the default
given here. A new workspace has every key, with the values of a recipe: `simclr init --help` lists the recipes.
"""

COMMANDS = f"""\
{GENERATED}

# Commands

`simclr` works on a workspace. `simclr-deploy` works with a finished encoder and needs no torch. `python -m simclr_core`
runs one stage, as `dvc.yaml` does. `--help` after any of them prints what is written here. For variables of the
environment, see [their page](environment.md).
"""


@dataclass(frozen=True)
class Command:
    """A command as its page shows it; ``options`` are pairs of names and meaning."""

    name: str
    usage: str
    text: str
    options: list[tuple[str, str]]


def texts(root: Path = ROOT) -> dict[str, str]:
    """The path of each written file in the repository, and what it has to contain."""
    params = (root / "params.yaml").read_text(encoding="utf-8")
    return {
        "params.yaml": knobs.annotate(params, BLOCKS),
        "docs/reference/params.md": parameters_page(),
        "docs/reference/commands.md": commands_page(),
    }


def parameters_page() -> str:
    """Every block and key of params.yaml, with what it allows, its default and its description."""
    return "\n".join([PARAMETERS, *(section for name, model in BLOCKS.items() for section in _sections(name, model))])


def commands_page() -> str:
    """Every command with its arguments and options."""
    workspace, deploy, core = PROGRAMS
    programs = (
        _click_commands(simclr, workspace),
        _argparse_commands(deploy_parser(), deploy),
        _argparse_commands(core_parser(), core),
    )
    return "\n".join([COMMANDS, *(_section(command) for program in programs for command in program)])


def _sections(path: str, model: type[Block]) -> Iterator[str]:
    """The table of a block, then those of the blocks in it."""
    heading = "#" * (2 + path.count("."))
    rows = [_row(f"{path}.{name}", field) for name, field in model.model_fields.items()]
    about = re.sub("``(.+?)``", r"`\1`", knobs.describe_block(model))
    yield f"{heading} {path}\n\n{about}\n\n{_table(('key', 'allowed', 'default', 'meaning'), rows)}"
    for name, field in model.model_fields.items():
        block = knobs.find_block(field)
        if block:
            yield from _sections(f"{path}.{name}", block)


def _row(key: str, field: FieldInfo) -> tuple[str, str, str, str]:
    block = knobs.find_block(field)
    name = f"[`{key}`](#{key.replace('.', '')})" if block else f"`{key}`"
    allowed = f"{knobs.describe_allowed(field)}{', or null' if knobs.takes_null(field) else ''}"
    default = "" if isinstance(field.default, BaseModel) else f"`{_as_yaml(field.default)}`"
    return name, allowed, default, re.sub("``(.+?)``", r"`\1`", knobs.describe(field))


def _as_yaml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _click_commands(command: click.Command, name: str) -> Iterator[Command]:
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    options = [_click_option(one, context) for one in command.params if isinstance(one, click.Option)]
    yield Command(name, usage, f"{cleandoc(command.help or '')}\n\n{command.epilog or ''}", options)
    for inner, sub in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
        if not sub.hidden:
            yield from _click_commands(sub, f"{name} {inner}")


def _click_option(option: click.Option, context: click.Context) -> tuple[str, str]:
    takes = "" if option.is_flag else f" {option.make_metavar(context)}"
    default = f"Default: {option.default}." if option.show_default else ""
    required = "Required." if option.required else ""
    return ", ".join([*option.opts, *option.secondary_opts]) + takes, " ".join(
        filter(None, [option.help, default, required])
    )


def _argparse_commands(parser: argparse.ArgumentParser, name: str) -> Iterator[Command]:
    actions = [one for one in parser._actions if one.dest != "help"]  # noqa: SLF001  argparse has no public list of them
    subparsers = [one for one in actions if isinstance(one, argparse._SubParsersAction)]  # noqa: SLF001
    arguments = [one for one in actions if one not in subparsers]
    options = [one for one in arguments if one.option_strings]
    positional = [_argparse_name(one) for one in arguments if one not in options]
    commands = ["COMMAND [ARGS]..."] if subparsers else []
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *positional, *commands])
    rows = [(_argparse_name(one), _argparse_help(one, one in options)) for one in arguments]
    yield Command(name, usage, f"{parser.description or ''}\n\n{parser.epilog or ''}", rows)
    for action in subparsers:
        for inner, sub in sorted(action.choices.items()):
            yield from _argparse_commands(sub, f"{name} {inner}")


def _argparse_name(action: argparse.Action) -> str:
    value = f"{{{','.join(action.choices)}}}" if action.choices else str(action.metavar or action.dest.upper())
    shown = {None: value, "+": f"{value}...", "*": f"[{value}]...", 0: ""}[action.nargs]
    return " ".join(filter(None, [", ".join(action.option_strings), shown]))


def _argparse_help(action: argparse.Action, option: bool) -> str:
    return f"{action.help or ''}{'; required' if option and action.required else ''}"


def _section(command: Command) -> str:
    heading = "##" if command.name in PROGRAMS else "###"
    paragraphs = [_paragraph(one) for one in re.split(r"\n{2,}", command.text.strip("\n"))]
    options = [(f"`{name}`", meaning) for name, meaning in command.options]
    parts = [f"{heading} {command.name}", f"```\n{command.usage}\n```", *paragraphs]
    if options:
        parts.append(_table(("argument or option", "meaning"), options).rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str) -> str:
    """Markdown of a paragraph of help; lines that keep their places there become a block of code."""
    lines = text.removeprefix("\b\n").splitlines()
    if not text.startswith("\b") and not any(line.startswith("  ") for line in lines):
        return text
    title, colon, first = lines[0].partition(":")
    if not colon or "  " in title:
        return _fenced("", lines)
    language = "sh" if title.lower().startswith("example") else ""
    return f"{title[0].upper()}{title[1:]}:\n\n{_fenced(language, [first, *lines[1:]])}"


def _fenced(language: str, lines: Iterable[str]) -> str:
    code = "\n".join(line.strip() for line in lines).strip()
    return f"```{language}\n{code}\n```"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def main() -> None:
    """Write every file again."""
    for name, text in texts().items():
        write_atomically(ROOT / name, text)


if __name__ == "__main__":
    main()
