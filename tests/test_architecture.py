"""What the house promises as a whole: layers, the lock, the templates, the map in the README."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipeline import workspace as workspaces
from pipeline.dvc.project import load

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "simclr_core", "deploy")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imported(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pipeline.definitions", {"torch", "great_expectations", "onnxruntime", "pandas"}),
        ("import pipeline.cli.main", {"torch", "great_expectations", "onnxruntime", "dagster", "dvc"}),
        ("import pipeline.validation", {"torch", "dagster", "great_expectations"}),
        ("import tests.conftest", {"torch"}),
        ("import simclr_core.config, simclr_core.data.shards, simclr_core.data.order", {"torch", "dagster", "dvc"}),
        ("import deploy", {"torch", "PIL", "onnxruntime", "pydantic", "yaml"}),
    ],
)
def test_imports_stay_light(statement: str, absent: set[str]) -> None:
    assert imported(statement) & absent == set()


MOST_PARAMETERS, MOST_MODULES = 7, 18


@pytest.mark.seconds
def test_no_function_takes_more_than_seven_parameters() -> None:
    found = []
    for path in sources("pipeline", "simclr_core", "deploy"):
        functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS))
        found += [f"{path}:{one.lineno} {one.name}" for one in functions if len(parameters(one)) > MOST_PARAMETERS]
    assert found == []


def test_no_folder_holds_more_than_eighteen_modules() -> None:
    folders = Counter(path.parent for path in sources("pipeline", "simclr_core", "deploy", "benchmarks", "tests"))
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def folders_without_tests(root: Path) -> set[str]:
    """The folders of the packages that hold a module and have no folder of the same path in ``tests``."""
    modules = (path for package in PACKAGES for path in (root / package).rglob("*.py") if path.name != "__init__.py")
    folders = {path.parent.relative_to(root) for path in modules}
    return {folder.as_posix() for folder in folders if not (root / "tests" / folder).is_dir()}


def test_the_folders_of_tests_are_those_of_the_packages(tmp_path: Path) -> None:
    """But for the sample of the demo: tests/pipeline/cli/test_demo.py checks what its one module made."""
    assert folders_without_tests(ROOT) == {"pipeline/sample"}
    for path in ("deploy/new/one.py", "deploy/old/one.py", "tests/deploy/old/test_one.py"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert folders_without_tests(tmp_path) == {"deploy/new"}


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Their names, with ``*rest`` and ``**rest``, without the object itself."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [one.arg for one in named if one.arg not in ("self", "cls")]


def test_private_names_of_dagster_are_in_one_file() -> None:
    """So that an upgrade which moves one of them breaks that file alone."""
    private = re.compile(r"\bdagster(?:\._\w|_(?:webserver|shared|graphql)\b)")
    files = (path for folder in ("pipeline", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    found = [path.relative_to(ROOT).as_posix() for path in files if private.search(path.read_text())]
    assert found == ["pipeline/runs/dagster_internals.py"]


NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}  # public, in spite of their names


def private_attributes_of_others(source: str) -> set[str]:
    """Attributes with one underscore that are read from an object of another module.

    Those of ``self`` and ``cls`` have to be named in their own class or in a base class in the same file, all others
    anywhere in the file. What a class assigns itself is its own, also where it hides an attribute of a base class.
    """
    tree = ast.parse(source)
    owned = {each: given_names(each) for each in ast.walk(tree) if isinstance(each, ast.ClassDef)}
    by_name = {each.name: names for each, names in owned.items()}
    inherited = {
        each: names.union(*(by_name.get(ast.unparse(base), set()) for base in each.bases))
        for each, names in owned.items()
    }
    found = set()
    for each, names in (*inherited.items(), (tree, set().union(*owned.values()))):
        for node in filter(is_private, ast.walk(each)):
            on_itself = ast.unparse(node.value) in ("self", "cls")
            if node.attr not in names | NAMED_TUPLE and on_itself == isinstance(each, ast.ClassDef):
                found.add(ast.unparse(node))
    return found


def is_private(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) is not None


def given_names(each: ast.ClassDef) -> set[str]:
    """What its body and its methods define: ``_x = …``, ``self._x = …``, ``def _x``."""
    inside = list(ast.walk(each))
    assigned = [node for node in inside if isinstance(getattr(node, "ctx", None), ast.Store)]
    names = {node.id for node in assigned if isinstance(node, ast.Name)}
    names |= {node.attr for node in assigned if isinstance(node, ast.Attribute)}
    return names | {node.name for node in inside if isinstance(node, (*FUNCTIONS, ast.ClassDef))}


@pytest.mark.seconds
def test_private_attributes_of_others_are_read_in_few_files() -> None:
    """Of Dagster's objects in one; argparse has no public list of a parser's arguments, torch no times of its steps.
    `os._exit` is public, and the only way for a thread to end a process whose main thread hangs."""
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in sources("pipeline", "simclr_core", "deploy", "benchmarks")
        if (names := private_attributes_of_others(path.read_text()))
    }
    assert found == {
        "pipeline/runs/dagster_internals.py": {"part._instance"},
        "pipeline/cli/reference.py": {"parser._actions", "argparse._SubParsersAction"},
        "simclr_core/machine/handshake.py": {"os._exit"},
        "simclr_core/stopwatch.py": {"ddp._get_ddp_logging_data"},
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class A(Launcher):\n    def f(self): return self._instance", {"self._instance"}),
        ("class A:\n    _x = 1\nclass B(Other):\n    def f(self): return self._x", {"self._x"}),
        ("class A:\n    _x = 1\nclass B(A):\n    def f(self): return self._x", set()),
        ("class A:\n    def __init__(self): self._x = 1\n    def f(self): return self._x", set()),
        ("run._started", {"run._started"}),
        ("class A:\n    _x = 1\na = A()\na._x", set()),
        ("row._replace(a=1).__dict__", set()),
    ],
)
def test_a_private_attribute_of_another_is_found(source: str, found: set[str]) -> None:
    assert private_attributes_of_others(source) == found


def unsafe_starts(source: str) -> list[int]:
    """Lines that start this Python without ``-P``, so that it would import modules from the current folder."""
    tree = ast.parse(source)
    safe: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple):
            pairs = pairwise(node.elts)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Call):  # elastic_launch(config, python)("-P", …)
            pairs = pairwise([*node.func.args, *node.args])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Path":
            pairs = pairwise([*node.args, ast.Constant("-P")])  # a name, not a start
        else:
            continue
        safe |= {one for one, following in pairs if isinstance(following, ast.Constant) and following.value == "-P"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable" and node not in safe
    ]


@pytest.mark.seconds
def test_every_python_of_ours_imports_what_is_installed() -> None:
    """And not a file that happens to lie where the command was given (CWE-427)."""
    found = {
        path.relative_to(ROOT).as_posix(): lines
        for path in sources("pipeline", "simclr_core", "deploy")
        if (lines := unsafe_starts(path.read_text()))
    }
    assert found == {}
    for started in (
        "[sys.executable, '-m', 'dvc']",
        "(sys.executable, *more)",
        "run(sys.executable)",
        "f(sys.executable)('-c')",
    ):
        assert unsafe_starts(started) == [1]


PLANTED = {
    "pipeline > simclr_core > deploy": ("simclr_core/data/planted.py", "import pipeline.cli"),
    "the rooms of pipeline": ("pipeline/release/planted.py", "import pipeline.gates"),
    "the rooms of pipeline.validation": ("pipeline/validation/probe/planted.py", "import pipeline.validation.report"),
    "the rooms of simclr_core": ("simclr_core/model/planted.py", "import simclr_core.pretraining"),
    "the rooms of deploy": ("deploy/search/planted.py", "import deploy.cli"),
    "no circles on any level": ("pipeline/gates/__init__.py", "from pipeline.gates import stages"),
    "only pipeline.dvc knows DVC": ("pipeline/ingest/planted.py", "from dvc.repo import Repo"),
    "only what runs and shows the pipeline knows Dagster": ("pipeline/alerts.py", "import dagster"),
    "deploy needs numpy, Pillow and onnxruntime alone": ("deploy/images/planted.py", "import torch"),
    "simclr_core knows no orchestration": ("simclr_core/plots.py", "import pandas"),
    "gates and validation know neither Dagster nor torch": ("pipeline/gates/planted.py", "import torch"),
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A copy of the code and of the contracts, to be changed."""
    for package in ("pipeline", "simclr_core", "deploy"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.xz"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(root: Path) -> list[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", done.stdout, re.MULTILINE))
    assert verdicts.keys() == PLANTED.keys(), done.stdout + done.stderr
    return [name for name, verdict in verdicts.items() if verdict == "BROKEN"]


@pytest.mark.seconds
def test_each_contract_on_imports_is_kept_and_finds_what_breaks_it(packages: Path) -> None:
    assert broken_contracts(packages) == []
    for path, statement in PLANTED.values():
        with (packages / path).open("a") as file:
            file.write(f"\n{statement}\n")
    assert broken_contracts(packages) == list(PLANTED)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("path", "contract"),
    [
        ("pipeline/room.py", "the rooms of pipeline"),
        ("pipeline/validation/room/__init__.py", "the rooms of pipeline.validation"),
        ("simclr_core/room.py", "the rooms of simclr_core"),
        ("deploy/room/__init__.py", "the rooms of deploy"),
    ],
)
def test_a_new_folder_needs_a_layer(packages: Path, path: str, contract: str) -> None:
    (packages / path).parent.mkdir(exist_ok=True)
    (packages / path).touch()
    assert broken_contracts(packages) == [contract]


def test_the_wheel_carries_every_template() -> None:
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {name: f"pipeline/template/{name}" for name in (*workspaces.TEMPLATE, ".dvc/config")}
    assert all((ROOT / name).is_file() for name in included)


def test_base_dependencies_are_those_of_deploy_alone() -> None:
    names = {re.match(r"[a-z]+", requirement)[0] for requirement in PYPROJECT["project"]["dependencies"]}
    assert names == {"numpy", "onnxruntime", "pillow", "protobuf"}  # the last one is onnxruntime's, bounded


def test_the_reading_order_has_twelve_files_and_every_file_that_a_page_names_exists() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    way = page.partition("## The path of an image from file to vector")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| `[\w/]+\.py`", way, re.MULTILINE)) == 12
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        named = set(re.findall(r"`((?:pipeline|simclr_core|deploy)/[\w/.]+)`", path.read_text()))
        assert [name for name in named if not (ROOT / name).exists()] == [], path


def folders_in_the_table(page: str) -> dict[str, set[str]]:
    """By package, the rooms that the table of how-it-works.md names."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", page.partition("## The rooms")[2], re.MULTILINE)
    return {package: set(re.findall(r"`(\w+)`", rooms)) for package, rooms in rows}


def test_the_table_of_rooms_names_every_folder_and_each_says_what_it_holds() -> None:
    table = folders_in_the_table((ROOT / "docs" / "how-it-works.md").read_text())
    rooms = {package: {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} for package in PACKAGES}
    assert table == rooms
    lines = {
        path.parent.relative_to(ROOT).as_posix(): len(
            (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")
        )
        for package in PACKAGES
        for path in (ROOT / package).rglob("*/__init__.py")
    }
    assert [folder for folder, count in lines.items() if count < 3] == []  # what belongs there, and what does not


def test_the_picture_in_the_readme_has_the_edges_of_dvc_yaml() -> None:
    """Gates are drawn between a stage and those that wait for it, so a path through a gate counts as an edge."""
    picture = re.search(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    nodes = r"\s*--?>\s*"
    edges = set()
    for line in picture.splitlines()[1:]:
        parts = [[re.match(r"\w+", name)[0] for name in group.split(" & ")] for group in re.split(nodes, line.strip())]
        for sources, targets in pairwise(parts):
            edges |= {(source, target) for source in sources for target in targets}
    stages = {name.partition("@")[0] for name in (stage.name for stage in load(ROOT).stages)}
    stages |= {"raw_images", "champion", "released_encoder"}
    gates = {name for edge in edges for name in edge} - stages
    direct = {(a, c) for a, b in edges for d, c in edges if b == d and b in gates} | edges
    drawn = {(a, b) for a, b in direct if not {a, b} & gates}
    assert drawn - edges_of_dvc_yaml() == {("raw_images", "champion"), ("compare", "released_encoder")}
    assert edges_of_dvc_yaml() <= drawn


def edges_of_dvc_yaml() -> set[tuple[str, str]]:
    producers = {"data/raw": "raw_images", "models/champion": "champion"}
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        for kind in ("outs", "metrics", "plots"):
            for out in stage.get(kind, []):
                producers[next(iter(out)) if isinstance(out, dict) else out] = name
    producers |= {"models/finetuned/0.01": "finetune", "models/finetuned/0.1": "finetune"}
    made = (
        (dep, name)
        for name, stage in stages.items()
        for dep in stage["deps"]
        if dep not in ("overrides.csv", "weights")
    )
    return {(producers[dep], name) for dep, name in made}


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "test-fast", "ui", "bench", "lock", "format"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_repository_ignores_the_files_that_every_workspace_ignores() -> None:
    assert set(workspaces.IGNORED_BY_GIT) <= set((ROOT / ".gitignore").read_text().split())
    assert (ROOT / ".dvcignore").read_text().split() == list(workspaces.IGNORED_BY_DVC)
