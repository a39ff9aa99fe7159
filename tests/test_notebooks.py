"""The notebooks of examples/ run from top to bottom, in one folder, and end with what they claim."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = ("pretrain", "search")
NO_NETWORK = """
import socket

def refuse(*arguments, **options):
    raise OSError("an example needs no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def read(name: str) -> NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": folder}})
    return client.execute()


def value(notebook: NotebookNode) -> dict[str, float]:
    """What the last cell shows."""
    (output,) = notebook.cells[-1].outputs
    return ast.literal_eval(output.data["text/plain"])


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
            patch.setenv(variable, str(folder / "jupyter"))
        found = {name: value(run(read(name), folder)) for name in NOTEBOOKS}
    print(found)
    return found


@pytest.mark.slow
def test_twenty_lines_of_simclr_beat_the_random_encoder(values: dict[str, dict[str, float]]) -> None:
    """With seed 0 it gained 13 points; with 500 test images, 5 points are more than chance."""
    assert values["pretrain"]["simclr"] >= values["pretrain"]["random"] + 5


@pytest.mark.slow
def test_the_exported_encoder_finds_pictures_of_the_same_class(values: dict[str, dict[str, float]]) -> None:
    assert values["search"]["pictures"] == 500
    assert values["search"]["finds_itself"]
    assert values["search"]["same_class"] > 0.5  # one in ten by chance


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_training_is_twenty_lines() -> None:
    (training,) = [cell.source for cell in read("pretrain").cells if "loss.backward()" in cell.source]
    assert len(training.splitlines()) == 20


def test_searching_needs_no_torch() -> None:
    imported = {name.split(".")[0] for cell in read("search").cells for name in imports(cell)}
    assert imported <= {"deploy", "importlib", "numpy", "pathlib", "PIL", "tarfile"}
    assert "torch" in {name for cell in read("pretrain").cells for name in imports(cell)}


def imports(cell: NotebookNode) -> set[str]:
    nodes = list(ast.walk(ast.parse(cell.source))) if cell.cell_type == "code" else []
    return {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom)
    }
