"""Run the examples: Python blocks and commands of two pages, and every example in a docstring of `deploy`."""

import doctest
import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import deploy
from deploy.cli.main import main
from tests.deploy.conftest import encoded, noise

PAGE, SEARCH = (
    (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8") for name in ("deploy.md", "search.md")
)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE + SEARCH, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def files(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the examples use."""
    monkeypatch.chdir(tmp_path)
    for folder in ("models", "photos", "examples/cat", "examples/dog"):
        Path(folder).mkdir(parents=True)
    bundle.rename("models/bundle")
    for number, name in enumerate(("cat.jpg", "dog.png", "photos/a.png", "photos/b.png", "photos/c.png")):
        Path(name).write_bytes(encoded(noise(number), "JPEG" if name.endswith("jpg") else "PNG"))
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        Path("examples", name).write_bytes(encoded(noise(len(name))))


def test_the_page_is_short() -> None:
    assert len(PAGE.splitlines()) <= 150


MODULES = (
    "deploy",
    "deploy.embeddings",
    "deploy.encoder",
    "deploy.errors",
    "deploy.explore.app",
    "deploy.explore.columns",
    "deploy.folders.folder",
    "deploy.images.preprocess",
    "deploy.search.few_shot",
    "deploy.search.index",
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0


def public_names() -> list[tuple[str, Any]]:
    """Return the names that `deploy` exports, and the public methods and properties of its classes."""
    found = []
    for name in deploy.__all__:
        exported = getattr(deploy, name)
        found.append((name, exported))
        if inspect.isclass(exported):
            own = {attribute: value for attribute, value in vars(exported).items() if not attribute.startswith("_")}
            methods = (property, classmethod, staticmethod, type(public_names))
            found += [(f"{name}.{attribute}", value) for attribute, value in own.items() if isinstance(value, methods)]
    return found


def test_every_public_name_has_a_docstring_and_every_class_an_example() -> None:
    documented = {name: inspect.getdoc(value) or "" for name, value in public_names()}
    assert [name for name, text in documented.items() if not text] == []
    assert {"load", "Encoder.embed", "Encoder.verify", "Index.search", "Index.open"} <= documented.keys()
    without = [name for name in ("load", "Embeddings", "Encoder", "Index") if ">>>" not in documented[name]]
    assert without == []


@pytest.mark.parametrize("code", EXAMPLES)
def test_a_python_example_runs(code: str) -> None:
    exec(code, {})


def test_an_unreadable_image_does_not_affect_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/broken.png").write_bytes(encoded(noise(1))[:60])
    (code,) = [example for example in EXAMPLES if "embed_iter" in example]
    exec(code, {})
    assert capsys.readouterr().out == "3 (3, 5) {'photos/broken.png': 'truncated'}\n"


@pytest.mark.seconds
def test_the_commands_run_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^simclr-deploy (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 11
    for line in lines:
        assert main(shlex.split(line.partition(">")[0])) == 0, line
    assert capsys.readouterr().out.endswith("triton/mean-color\n")
    assert {"embeddings", "photos.index", "again.index", "photos.sql", "triton"} <= {
        path.name for path in Path().iterdir()
    }


def test_the_commands_about_an_index_run_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    Path("new").mkdir()
    for number, name in enumerate(("new/d.png", "photos/edited.jpg", "photos/private.jpg"), start=10):
        Path(name).write_bytes(encoded(noise(number)))
    Path("photos.csv").write_text("path,label,year\nphotos/a.png,cat,2025\nphotos/b.png,dog,2026\n")
    Path("new.csv").write_text("path,label,year\nnew/d.png,cat,2026\n")
    lines = re.findall(r"^simclr-deploy (.*)$", SEARCH, re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        capsys.readouterr()
        assert main(shlex.split(line, comments=True)) == 0, line
        if line.startswith("search"):
            words = capsys.readouterr().out.split()
            assert sorted(words[2::2]) == ["new/d.png", "photos/a.png"]
