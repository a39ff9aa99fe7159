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
