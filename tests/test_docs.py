"""The guide tells the truth: links lead somewhere, commands and settings exist, quoted messages are really printed.

Every check has a planted lie that it must find.
"""

import ast
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dvc.cli import DvcParserError
from dvc.cli import parse_args as parse_dvc
from pydantic import ValidationError

from deploy.cli.main import build_parser as deploy_parser
from pipeline.cli.main import simclr
from pipeline.knobs import find_block
from pipeline.params import BLOCKS
from pipeline.validation.reasons import REASONS, RELEASABLE
from simclr_core.compute.settings import Compute
from simclr_core.params import Block as ParamsBlock

ROOT = Path(__file__).parent.parent
ABOUT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
PAGES = [*(ROOT / name for name in ABOUT), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDE = {"tutorial.md": 215, "operations.md": 200, "runbook.md": 250}  # lines
SHELLS = ("sh", "bash")
OWN = ("simclr", "simclr-deploy", "dvc")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page.name, text[: match.start()].count("\n") + 1, match[1], match[2])


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Inline code; ``\\|`` is how a table has a bar in it."""
    return [span.replace(r"\|", "|") for span in re.findall(r"`([^`\n]+)`", prose(text))]


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize(("name", "limit"), GUIDE.items())
def test_the_guide_is_short(name: str, limit: int) -> None:
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    assert 50 < len(lines) <= limit


# Links


def dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", prose(text)):
        if "://" in target:
            dead += [f"{target}: an image from elsewhere"] if image else []
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists():
            dead.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.+)$", prose(file.read_text(encoding="utf-8")).lower(), re.MULTILINE)
            dead += [] if fragment in [re.sub(r"[^\w-]", "", one.replace(" ", "-")) for one in headings] else [target]
    return dead + [f"{tag}: an image from elsewhere" for tag in re.findall(r"<img[^>]*://[^>]*>", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "lie", ["[a](nowhere.md)", "[a](README.md#nowhere)", "![a](https://example.org/a.png)", "<img src='http://a/b'>"]
)
def test_a_dead_link_is_found(lie: str) -> None:
    assert dead_links(ROOT / "README.md", lie) != []


# Commands


def commands(text: str) -> Iterator[list[str]]:
    """The words of each of our commands in shell text, also behind assignments, `sudo` or `docker compose exec`."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|<>()"):
                starts = [place for place, one in enumerate(words) if re.fullmatch(rf"(/.*/)?({'|'.join(OWN)})", one)]
                if starts and starts[-1] + 1 < len(words):
                    yield [Path(words[starts[-1]]).name, *words[starts[-1] + 1 :]]
                words = []
            else:
                words.append(word)


def spoken(span: str) -> list[str]:
    """``simclr release list|promote`` → each of both; ``[SRC]...`` → ``SRC``."""
    plain = re.sub(r"\[([^\]]*)\]|\.\.\.", r"\1", span)
    alternatives = re.search(r"\S+(?:\|\S+)+", plain)
    if not alternatives:
        return [plain]
    return [plain.replace(alternatives[0], one) for one in alternatives[0].split("|")]


def command_fault(words: list[str]) -> str | None:
    """Why this command line would be refused; None when it would not."""
    (program, *arguments), said = words, io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            if program == "simclr":
                _parse_click(simclr, arguments)
            elif program == "simclr-deploy":
                deploy_parser().parse_args(arguments)
            else:
                parse_dvc(arguments)
    except click.ClickException as error:
        return error.format_message()
    except DvcParserError as error:
        return f"{error}: {said.getvalue()}"
    except (click.exceptions.Exit, SystemExit):  # --help, which is fine, or what argparse says before it ends
        return said.getvalue().partition("error: ")[2] or None
    return None


def _parse_click(command: click.Command, arguments: list[str]) -> None:
    context = command.make_context(command.name, list(arguments))
    if isinstance(command, click.Group):
        _, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert sub is not None
        _parse_click(sub, rest)


def documented(inline: bool) -> list[tuple[str, str]]:
    """Every command line in the blocks of the pages, or else in their inline code, with its page, each once."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        own = [one for span in spans(text) if span.split()[0] in OWN for one in spoken(span)]
        indented = re.findall(r"^    (?=[a-z]).*$", prose(text), re.MULTILINE)
        fenced = [block.text for block in blocks(page) if block.language in SHELLS]
        found |= {
            shlex.join(words): page.name for one in (own if inline else fenced + indented) for words in commands(one)
        }
    return sorted(found.items())


@pytest.mark.parametrize(("line", "page"), documented(inline=False))
def test_documented_commands_exist(line: str, page: str) -> None:
    assert command_fault(shlex.split(line)) is None, page


@pytest.mark.parametrize(("line", "page"), documented(inline=True))
def test_mentioned_commands_exist(line: str, page: str) -> None:
    """Inline code may leave arguments out."""
    fault = command_fault(shlex.split(line))
    assert fault is None or re.search("required|requires an argument|Missing argument", fault), page


@pytest.mark.parametrize(
    "lie",
    [
        "simclr frobnicate",
        "simclr run --selects pretrain",
        "simclr init",
        "simclr ui --port three",
        "simclr --workplace x status",
        "simclr-deploy embed models/bundle photo.jpg",
        "simclr-deploy serve models/bundle --ports 8000",
        "dvc remote modify --defaultt storage verify true",
    ],
)
def test_an_invented_command_is_found(lie: str) -> None:
    ((*words,),) = commands(f"A=1 {lie} | head -3")
    assert command_fault(words) is not None


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.language in SHELLS], ids=str)
def test_shell_text_is_sound(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, capture_output=True)


# Settings


def setting_fault(key: str) -> str | None:
    """``gates.max_loss`` exists; ``gates.max_los`` does not."""
    name, *parts = key.split(".")
    block: type[ParamsBlock] | None = BLOCKS[name]
    for part in parts:
        if block is None or part not in block.model_fields:
            return f"{key}: no such key"
        block = find_block(block.model_fields[part])
    return None


def settings(text: str) -> list[str]:
    """Dotted keys of params.yaml in inline code, and in `--set KEY=VALUE`."""
    keys = [key for span in spans(text) for key in re.findall(r"^([a-z_]+(?:\.[a-z0-9_]+)+)(?::|=|$)", span)]
    keys += re.findall(r"--set '?([a-z_]+(?:\.[a-z0-9_]+)+)=", text)
    return [key for key in keys if key.partition(".")[0] in BLOCKS and not key.endswith((".py", ".yaml", ".json"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_settings_exist(page: Path) -> None:
    assert [fault for key in settings(page.read_text(encoding="utf-8")) if (fault := setting_fault(key))] == []


def test_an_invented_setting_is_found() -> None:
    (key,) = settings("Set `gates.max_los: 3` to be strict, not `deploy.load`.")
    assert setting_fault(key)
    (key,) = settings("simclr run --set pretrain.augmentation.blurs=1")
    assert setting_fault(key)
    assert setting_fault("pretrain.queue.length")
    assert setting_fault("pretrain.epochs.more")
    assert setting_fault("pretrain.queue.size") is None


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.language == "yaml"], ids=str)
def test_yaml_examples_are_accepted_by_the_program_that_reads_them(block: Block) -> None:
    """Part of params.yaml or of dagster.yaml, or .simclr/compute.yaml, whichever of them accepts it."""
    content = yaml.safe_load(block.text)
    assert not params_faults(content) or not dagster_faults(content) or not compute_faults(content)


@pytest.mark.parametrize("lie", ["storage: {max_cash: 3}", "retrain: {}", "storage: {postgres: {postgres_uri: a}}"])
def test_invented_yaml_is_found(lie: str) -> None:
    assert params_faults(yaml.safe_load(lie))
    assert compute_faults(yaml.safe_load(lie))
    assert dagster_faults(yaml.safe_load(lie))


def params_faults(content: dict[str, Any]) -> list[str]:
    if not content.keys() <= BLOCKS.keys():
        return ["not blocks of params.yaml"]
    try:
        for name, values in content.items():
            BLOCKS[name].model_validate(values)
    except ValidationError as error:
        return [str(error)]
    return []


def compute_faults(content: dict[str, Any]) -> list[str]:
    try:
        Compute.model_validate(content)
    except ValidationError as error:
        return [str(error)]
    return []


def dagster_faults(content: dict[str, Any]) -> list[str]:
    from dagster._config import validate_config
    from dagster._core.instance.config import dagster_instance_config_schema

    return [error.message for error in validate_config(dagster_instance_config_schema(), content).errors or []]


# Names that the program reads, and words that it prints


@cache
def sources() -> str:
    folders = ("pipeline", "simclr_core", "deploy", "docs/deployment")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files if path.suffix != ".pyc")


@pytest.mark.seconds
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_environment_variables_are_read_somewhere(page: Path) -> None:
    names = set(re.findall(r"\bSIMCLR_[A-Z_]+\b", page.read_text(encoding="utf-8")))
    # Each password may also be in a file, whose variable the code makes up of the other's name.
    bare = {re.sub("(?<=_PASSWORD)_FILE$", "", name) for name in names}
    assert sorted(name for name in bare if not re.search(rf"\b{name}\b", sources())) == []


def variables_without_description(page: str) -> list[str]:
    """The variables that programs or deployment files name, and the page does not; `SIMCLR_ALERT_*` is not a name."""
    named = re.findall(r"\bSIMCLR_[A-Z_]*[A-Z]\b", sources())
    return sorted({name for name in named if f"`{name}`" not in page})


def test_every_environment_variable_is_described() -> None:
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    assert variables_without_description(page) == []


@pytest.mark.seconds
def test_a_variable_that_is_not_described_is_found() -> None:
    assert len(variables_without_description("")) > 20
    page = " ".join(f"`{name}`" for name in variables_without_description(""))
    assert variables_without_description(page.replace("`SIMCLR_UI_HOSTS`", "`SIMCLR_UI_HOST`")) == ["SIMCLR_UI_HOSTS"]


@cache
def printed() -> str:
    """Every text in the code as the reader of a message sees it; a value in it is `…`."""
    texts = []
    for path in (path for folder in ("pipeline", "simclr_core", "deploy") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(str(part) for part in parts))
    return "\n".join(texts)


def invented(message: str) -> list[str]:
    """The parts of a quoted message between its `…` that no text in the code has."""
    parts = [part.strip() for part in " ".join(message.split()).split("…")]
    return [part for part in parts if len(part) > 3 and part not in " ".join(printed().split())]


@pytest.mark.seconds
@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.language == "text"], ids=str)
def test_quoted_messages_are_printed_by_the_code(block: Block) -> None:
    lines = [line.removeprefix("error: ") for line in block.text.splitlines()]
    assert [part for line in lines for part in invented(line)] == []


@pytest.mark.seconds
def test_an_invented_message_is_found() -> None:
    assert invented("…: not a workspace, it has no dvc.yaml; make one with `simclr init …`") == []
    assert invented("…: not a workspace, it has no makefile") != []


def test_the_reasons_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "validation.md").read_text(encoding="utf-8")
    reported = re.findall(r"^\| `(\w+)`( †)? \| (.*) \|$", page, re.MULTILINE)
    assert reported == [(name, " †" if name in RELEASABLE else "", meaning) for name, meaning in REASONS.items()]
