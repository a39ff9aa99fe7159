"""What docs/deploy.md shows is run: every Python block, and every command that ends by itself."""

import re
import shlex
from pathlib import Path

import pytest

from deploy.cli.main import main
from tests.deploy.conftest import encoded, noise

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def files(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    for folder in ("models", "photos", "examples/cat", "examples/dog"):
        Path(folder).mkdir(parents=True)
    bundle.rename("models/bundle")
    for number, name in enumerate(("cat.jpg", "dog.png", "photos/a.png", "photos/b.png", "photos/c.png")):
        Path(name).write_bytes(encoded(noise(number), "JPEG" if name.endswith("jpg") else "PNG"))
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        Path("examples", name).write_bytes(encoded(noise(len(name))))


def test_the_page_is_read_in_one_sitting() -> None:
    assert len(PAGE.splitlines()) <= 150


@pytest.mark.parametrize("code", EXAMPLES)
def test_a_python_example_runs(code: str) -> None:
    exec(code, {})


def test_an_image_that_cannot_be_read_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/broken.png").write_bytes(encoded(noise(1))[:60])
    (code,) = [example for example in EXAMPLES if "embed_iter" in example]
    exec(code, {})
    assert capsys.readouterr().out == "3 (3, 5) {'photos/broken.png': 'truncated'}\n"


def test_the_commands_run_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.findall(r"^simclr-deploy (.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 12
    for line in lines:
        assert main(shlex.split(line.partition(">")[0])) == 0, line
    assert capsys.readouterr().out.endswith("triton/mean-colour\n")
    assert {"embeddings", "photos.index", "again.index", "photos.sql", "triton"} <= {
        path.name for path in Path().iterdir()
    }
