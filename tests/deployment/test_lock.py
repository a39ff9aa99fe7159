"""The bounds in pyproject.toml, the lock files, and what is installed: each holds the others together."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / name for name in ("requirements.lock", "benchmarks/requirements.lock")]
SERVER = ROOT / "docs" / "deployment" / "server" / "requirements.txt"
UNLOCKED = {"wandb", "mlflow-skinny"}  # trackers that `make lock` leaves out: each asks for an account or a server
PINNED = re.compile(r"^([\w.-]+==[^\\\n]*?) *\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def declared() -> list[Requirement]:
    """Every direct dependency, of the build and of all extras, except the package itself."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    texts = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    texts += [text for extra in project["optional-dependencies"].values() for text in extra]
    return [needed for text in texts if (needed := Requirement(text)).name != project["name"]]


def unbounded(requirements: list[Requirement]) -> list[str]:
    return [str(needed) for needed in requirements if not {"<", "<=", "==", "~="} & operators(needed)]


def operators(needed: Requirement) -> set[str]:
    return {clause.operator for clause in needed.specifier}


def pins(file: Path) -> Iterator[tuple[Requirement, set[str]]]:
    """The versions of a lock file with their hashes."""
    for pin, hashes in PINNED.findall(file.read_text()):
        yield Requirement(pin), set(re.findall(r"[0-9a-f]{64}", hashes))


def test_every_direct_dependency_has_an_upper_bound() -> None:
    assert unbounded(declared()) == []


@pytest.mark.parametrize(("text", "found"), [("a", ["a"]), ("a>=1", ["a>=1"]), ("a>=1,<2", []), ("a>1", ["a>1"])])
def test_a_missing_upper_bound_is_found(text: str, found: list[str]) -> None:
    assert unbounded([Requirement(text)]) == found


def test_every_locked_version_is_inside_the_bounds() -> None:
    bounds = declared()
    locked = {canonicalize_name(needed.name) for file in LOCKS for needed, _ in pins(file)}
    assert {canonicalize_name(needed.name) for needed in bounds} - locked == UNLOCKED
    for file in LOCKS:
        for pinned, _ in pins(file):
            (clause,) = pinned.specifier
            for needed in bounds:
                if canonicalize_name(needed.name) == canonicalize_name(pinned.name):
                    assert needed.specifier.contains(clause.version), f"{file.name}: {pinned} against {needed}"


@pytest.mark.parametrize("file", [*LOCKS, SERVER], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_line_of_a_lock_is_a_version_with_hashes(file: Path) -> None:
    """pip refuses all of them when one has none."""
    rest = PINNED.sub("", file.read_text())
    assert [line for line in rest.splitlines() if not line.startswith("#")] == []
    assert len(list(pins(file))) > 10


@pytest.mark.seconds
def test_pip_refuses_a_file_with_another_hash(tmp_path: Path) -> None:
    """What the hashes are for, with a package made here: its own hash is taken, another one is not."""
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"")
    asked = tmp_path / "requirements.txt"
    command = ["python", "-m", "pip", "download", "--no-index", "--no-deps", "--find-links", tmp_path, "-r", asked]
    asked.write_text(f"a==1 --hash=sha256:{'0' * 64}\n")
    done = subprocess.run([*command, "--dest", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "DO NOT MATCH" in done.stderr


def test_the_lock_overrides_antlr_and_is_what_is_installed() -> None:
    locked = {needed.name: next(iter(needed.specifier)).version for needed, _ in pins(LOCKS[0]) if not needed.marker}
    assert locked["antlr4-python3-runtime"].startswith("4.13.")
    for name in ("dagster", "dvc", "great-expectations", "torch", "torchvision", "onnx", "onnxruntime", "pillow"):
        assert version(name) == locked[name], f"{name}: run `make .venv/installed`"
