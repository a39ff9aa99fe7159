"""The packages have common names: another module of such a name that comes first on the path is named at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("file", "program"),
    [
        ("deploy.py", "import pipeline"),
        ("deploy.py", "import simclr_core"),
        ("deploy/__init__.py", "import simclr_core"),
        ("simclr_core.py", "import pipeline.cli.main"),
    ],
)
def test_a_shadowing_module_is_named(file: str, program: str, tmp_path: Path) -> None:
    other = tmp_path / file
    other.parent.mkdir(exist_ok=True)
    other.touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    name = file.partition("/")[0].removesuffix(".py")
    ours = ROOT / name / "__init__.py"
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {name} is {other}, and simclr-pipeline needs {ours}; rename the other one, "
        "take its folder off PYTHONPATH, or use a separate environment"
    )


@pytest.mark.seconds
def test_a_plain_folder_of_the_same_name_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", "import pipeline, simclr_core"], env=environment, check=True, cwd=tmp_path)


SHADOWS = ("argparse", "logging", "numpy", "yaml", "deploy", "polars")


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("simclr_core", "--help"), "the training stages"),
        (("pipeline", "--help"), "Turn a folder of raw images"),
        (("pipeline.embedding_drift",), "not a workspace, it has no dvc.yaml"),
    ],
)
def test_a_stage_imports_nothing_from_the_folder_that_it_is_started_in(
    command: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    """``dvc repro`` by hand, in a workspace that has files of these names: its commands are ``python -m``."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} of the workspace was imported')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert said.lower() in (done.stdout + done.stderr).lower()
    assert "of the workspace" not in done.stderr


def test_an_import_in_a_program_leaves_the_path_as_it_is(tmp_path: Path) -> None:
    program = "import sys; before = list(sys.path); import pipeline, simclr_core; print(before == sys.path)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "True\n"
