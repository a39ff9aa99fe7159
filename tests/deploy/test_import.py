"""`import deploy` is fast, sends no telemetry, and never needs torch. Each check runs in a separate process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "onnx", "pydantic", "yaml", "dagster", "dvc"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def run_python(code: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | environment, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.seconds
def test_import_loads_neither_pillow_nor_onnxruntime_nor_torch() -> None:
    code = (
        "import deploy, deploy.cli.main, sys; print(sorted({'PIL', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


@pytest.mark.seconds
def test_embedding_works_where_torch_cannot_be_imported(bundle: Path) -> None:
    code = BLOCK_TORCH + "import deploy; print(deploy.load(sys.argv[1]).verify().images)"
    assert run_python(code, bundle) == "3"


@pytest.mark.seconds
@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")])
def test_telemetry_is_off_before_onnxruntime_is_imported(given: dict[str, str], expected: str, bundle: Path) -> None:
    code = """
import sys, os
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
import deploy
deploy.load(sys.argv[1])
"""
    assert run_python(code, bundle, **given) == expected
