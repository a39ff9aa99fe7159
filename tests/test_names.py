"""Every name that a page or a notebook takes from our packages exists: a move must not pass them by.

The notebooks also run and the site is also built, but in the slow tests.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("deploy", "pipeline", "simclr_core")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
DIRECTIVE = re.compile(r"^\.\. auto\w+:: ([\w.]+)$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def imported(code: str) -> Iterator[str]:
    """Every dotted name of our packages that Python code imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)


def names_of_page(text: str) -> set[str]:
    return {*DIRECTIVE.findall(text), *(name for code in PYTHON.findall(text) for name in imported(code))}


def names_of_notebook(path: Path) -> set[str]:
    cells = nbformat.read(path, as_version=4).cells
    return {name for cell in cells if cell.cell_type == "code" for name in imported(cell.source)}


def exists(name: str) -> bool:
    """Is it a module, or what a module or a class of one holds?"""
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.seconds
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    missing = sorted(name for name in names_of_page(page.read_text()) if not exists(name))
    assert not missing, f"{page.name} names what does not exist: {missing}"


@pytest.mark.seconds
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_what_a_notebook_imports_exists(notebook: Path) -> None:
    names = names_of_notebook(notebook)
    missing = sorted(name for name in names if not exists(name))
    assert names
    assert not missing, f"{notebook.name} imports what does not exist: {missing}"


@pytest.mark.parametrize("lie", ["deploy.lode", "simclr_core.data.nowhere", "simclr_core.data.shards.Sample.weight"])
def test_an_invented_name_is_found(lie: str) -> None:
    assert not exists(lie)


def test_names_are_read_from_pages() -> None:
    page = (
        "```{eval-rst}\n.. autofunction:: deploy.load\n```\n\n```python\nfrom deploy import Encoder\nimport os\n```\n"
    )
    assert names_of_page(page) == {"deploy.load", "deploy.Encoder"}
