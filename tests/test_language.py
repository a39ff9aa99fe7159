"""Code, messages and documentation are in plain American English: codespell checks the spelling, a word list the style.

The word list is tests/word_list.txt. Names that keep a British spelling because a file format, an HTTP field or an
option has it are in `ignore-regex` of [tool.codespell] in pyproject.toml, for both checks.
"""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = (
    *(".cff", ".conf", ".css", ".csv", ".html", ".ipynb", ".j2", ".js", ".md", ".mjs", ".py", ".service", ".sh"),
    *(".toml", ".txt", ".yaml", ".yml"),
)
NAMES = ("Dockerfile", "Makefile", "run", ".gitignore", ".dvcignore", "Dockerfile.dockerignore")
NO_PROSE = (".heic", ".json", ".lock", ".png", ".sha256", ".typed", ".xz", "LICENSE", "config")
NOT_CHECKED = ("test_language.py", "word_list.txt")
"""This file and the word list quote what the checks must find."""

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["codespell"]
ALLOWED = re.compile(SETTINGS["ignore-regex"])


def read_word_list(part: int) -> dict[str, re.Pattern[str]]:
    """Return the patterns of phrases (0) or of British forms (1), by the advice for each: `pattern → better`."""
    lines = (ROOT / "tests" / "word_list.txt").read_text(encoding="utf-8").split("# British forms")[part].splitlines()
    entries = [line.split(" → ") for line in lines if " → " in line and not line.startswith("#")]
    return {f"{pattern} → {better}": re.compile(pattern, re.IGNORECASE) for pattern, better in entries}


WORD_LIST, BRITISH = read_word_list(0), read_word_list(1)
WORD = re.compile(r"[^\W\d_]+")
BETWEEN_WORDS = re.compile(r"""[ \n\t\r_#*"`]+""")


@cache
def american(word: str) -> str:
    """The advice for a British form; empty for any other word. Once for each word, since most are repeated."""
    return next((advice.partition(" → ")[2] for advice, pattern in BRITISH.items() if pattern.search(word)), "")


def find_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, phrase and advice for every phrase of the word list in ``text``."""
    text = ALLOWED.sub(lambda match: " " * len(match[0]), text)
    normalized = BETWEEN_WORDS.sub(" ", text)
    for advice, pattern in WORD_LIST.items():
        for match in pattern.finditer(normalized):
            yield line_of(match.start(), text), match[0].lower(), advice.partition(" → ")[2]
    british = {word for word in set(WORD.findall(text)) if american(word.lower())}
    for match in WORD.finditer(text) if british else ():
        if match[0] in british:
            yield text.count("\n", 0, match.start()) + 1, match[0].lower(), american(match[0].lower())


def line_of(place: int, text: str) -> int:
    """The line of ``text`` with the character that is at this place once whatever is between two words is a space."""
    for between in BETWEEN_WORDS.finditer(text):
        if between.start() >= place:
            break
        place += len(between[0]) - 1
    return text.count("\n", 0, place) + 1


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.rstrip("\0").split("\0")]


def has_prose(file: Path) -> bool:
    return file.suffix in SUFFIXES or file.name in NAMES


def checked_files() -> list[str]:
    return [str(file) for file in tracked_files() if has_prose(file) and file.name not in NOT_CHECKED]


def test_a_file_is_checked_or_holds_no_prose_of_ours() -> None:
    """A file of a new kind has to be given to one of the two."""
    unknown = [file for file in tracked_files() if not has_prose(file) and (file.suffix or file.name) not in NO_PROSE]
    assert unknown == []


@pytest.mark.seconds
def test_no_phrase_of_the_word_list_is_used() -> None:
    found = [
        f"{file}:{line}: {phrase!r}; better: {better}"
        for file in checked_files()
        for line, phrase, better in find_words((ROOT / file).read_text(encoding="utf-8"))
    ]
    assert found == [], "\n".join(found)


@pytest.mark.seconds
def test_spelling_is_american() -> None:
    assert run_codespell(*checked_files()) == ""


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
        ("mostly unlabelled images", "unlabelled"),
        ("the quantisation table", "quantisation"),
        ("an unoptimised graph", "unoptimised"),
        ("def spoilt() -> str:", "spoilt"),
        ("its neighbourhoods", "neighbourhoods"),
        ("a discoloured block", "discoloured"),
    ],
)
def test_a_phrase_of_the_word_list_is_found(text: str, phrase: str) -> None:
    assert phrase in [found for _, found, _ in find_words("first line\n" + text)]


@pytest.mark.parametrize(
    "text",
    [
        "there is no index",
        "it is no longer used",
        "four times as many as before",
        'answer["neighbours"]',
        "besides",
        "raised, promised, called and spelled",
    ],
)
def test_plain_english_passes(text: str) -> None:
    assert list(find_words(text)) == []


def test_the_line_of_a_phrase_is_reported() -> None:
    assert [line for line, *_ in find_words("one\n\ntwo mend\n")] == [3]


@pytest.mark.seconds
@pytest.mark.parametrize("word", ["recieve", "colour", "l2_normalised", "LabelledImages", "NEIGHBOURS"])
def test_a_wrong_or_british_spelling_is_found(word: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(f"x = '{word}_of_it'\n", encoding="utf-8")
    assert "example.py:1" in run_codespell(str(tmp_path / "example.py"))
