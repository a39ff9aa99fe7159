"""Code, messages and documentation are in plain American English: codespell checks the spelling, a word list the style.

The word list is tests/word_list.txt. Names that keep a British spelling because a file format, an HTTP field or an
option has it are in `ignore-regex` of [tool.codespell] in pyproject.toml, for both checks.
"""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = (
    "deploy",
    "simclr_core",
    "pipeline",
    "benchmarks",
    "docs",
    "examples",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "params.yaml",
    "dvc.yaml",
    "dagster.yaml",
    "Makefile",
    ".github",
    "CODE_OF_CONDUCT.md",
)
"""Files and folders that are checked; this file and the word list quote what the checks must find."""

SUFFIXES = (".css", ".csv", ".html", ".ipynb", ".js", ".md", ".py", ".toml", ".txt", ".yaml", ".yml")
NOT_CHECKED = ("package-lock.json", "test_language.py", "word_list.txt")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["codespell"]
ALLOWED = re.compile(SETTINGS["ignore-regex"])


def read_word_list() -> dict[str, re.Pattern[str]]:
    """Return the patterns of the word list by the advice for each: `pattern → better`."""
    lines = (ROOT / "tests" / "word_list.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.split(" → ") for line in lines if line and not line.startswith("#")]
    return {f"{pattern} → {better}": re.compile(pattern, re.IGNORECASE) for pattern, better in entries}


WORD_LIST = read_word_list()


def find_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, phrase and advice for every phrase of the word list in ``text``."""
    text = ALLOWED.sub(lambda match: " " * len(match[0]), text)
    characters, positions = [], list[int]()
    for position, character in enumerate(text):
        plain = " " if character in '\n\t\r_#*"`' else character
        if plain != " " or not characters or characters[-1] != " ":
            characters.append(plain)
            positions.append(position)
    normalized = "".join(characters)
    for advice, pattern in WORD_LIST.items():
        for match in pattern.finditer(normalized):
            line = text.count("\n", 0, positions[match.start()]) + 1
            yield line, match[0].lower(), advice.partition(" → ")[2]


def checked_files() -> Iterator[Path]:
    for name in CHECKED:
        path = ROOT / name
        assert path.exists(), f"{name}: listed in CHECKED, but does not exist"
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in SUFFIXES and file.name not in NOT_CHECKED:
                yield file


@pytest.mark.seconds
def test_no_phrase_of_the_word_list_is_used() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {phrase!r}; better: {better}"
        for file in checked_files()
        for line, phrase, better in find_words(file.read_text(encoding="utf-8"))
    ]
    assert found == [], "\n".join(found)


@pytest.mark.seconds
def test_spelling_is_american() -> None:
    assert run_codespell(*CHECKED) == ""


def run_codespell(*paths: str) -> str:
    done = subprocess.run(["codespell", *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("it is mended\n", "mended"),
        ("# the run goes\n    # on from there", "goes on"),
        ("def test_the_run_goes_on() -> None:", "goes on"),
        ('raise ArgumentError(f"{name!r} is no version")', "is no version"),
        ("it waits for ever", "for ever"),
        ("after as many, stop", "as many"),
        ("whoever asks", "whoever"),
        ("its log lies beside it", "beside"),
        ("a process of its own", "of its own"),
        ("bytes that could not be had", "could not be had"),
    ],
)
def test_a_phrase_of_the_word_list_is_found(text: str, phrase: str) -> None:
    assert phrase in [found for _, found, _ in find_words("first line\n" + text)]


@pytest.mark.parametrize(
    "text",
    ["there is no index", "it is no longer used", "four times as many as before", 'answer["neighbours"]', "besides"],
)
def test_plain_english_passes(text: str) -> None:
    assert list(find_words(text)) == []


def test_the_line_of_a_phrase_is_reported() -> None:
    assert [line for line, *_ in find_words("one\n\ntwo mend\n")] == [3]


@pytest.mark.parametrize("word", ["recieve", "colour", "l2_normalised", "LabelledImages", "NEIGHBOURS"])
def test_a_wrong_or_british_spelling_is_found(word: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(f"x = '{word}_of_it'\n", encoding="utf-8")
    assert "example.py:1" in run_codespell(str(tmp_path / "example.py"))
