"""What is published: the wheel and the source archive hold what they should, and the wheel alone embeds an image."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackagePath, distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deploy.tiny_bundle import main as publish_tiny_bundle

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("pipeline", "simclr_core", "deploy")


def build(out: Path, *options: str, **environment: str) -> Path:
    """The one file that ``python -m build`` makes, without the network."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", out, ROOT]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    subprocess.run(command, check=True, capture_output=True, text=True, env=inherited | environment)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def metadata(wheel: Path) -> email.message.Message:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_bytes(archive.read(name))


@pytest.mark.seconds
def test_every_package_is_marked_as_typed(names: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_wheel_has_every_file_of_the_packages_and_no_other(names: set[str]) -> None:
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True)
    assert set(tracked.stdout.split("\n")) - {""} <= names
    template, information = "pipeline/template/", f"simclr_pipeline-{PROJECT['version']}.dist-info/"
    others = {name for name in names if not (ROOT / name).is_file() and not name.startswith((template, information))}
    assert others == set()
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, information.rstrip("/")}


@pytest.mark.seconds
def test_the_source_archive_has_what_a_packager_needs(tmp_path: Path) -> None:
    archive = build(tmp_path, "--sdist")
    with tarfile.open(archive) as content:
        found = {name.partition("/")[2] for name in content.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "Makefile", "requirements.lock", "hatch_build.py", "tests/conftest.py"} <= found


def test_the_version_is_written_once(wheel: Path) -> None:
    """In pyproject.toml; whatever else names a version names that one."""
    assert metadata(wheel)["Version"] == PROJECT["version"] == version("simclr-pipeline")
    named = {
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"\A# Changelog\n\n## (\S+)",
        "docs/deployment/server/compose.yaml": r"image: simclr-server:(\S+)",
        "docs/deployment/compose/compose.yaml": r"image: simclr-pipeline:(\S+)",
        "docs/deployment/kubernetes/base/deployment.yaml": r"image: simclr-pipeline:(\S+)",
    }
    for file, pattern in named.items():
        found = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert found == [PROJECT["version"]], file


def test_the_citation_has_the_date_of_the_change_log() -> None:
    """None before the release."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    dated = re.findall(r"\A# Changelog\n\n## \S+ \((\d{4}-\d\d-\d\d)\)", text)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^date-released: (\S+)$", citation, re.MULTILINE) == dated


@pytest.mark.seconds
def test_the_addresses_are_those_of_the_repository_that_builds_it(wheel: Path, tmp_path: Path) -> None:
    assert metadata(wheel).get_all("Project-URL") is None
    built = build(tmp_path, "--wheel", GITHUB_SERVER_URL="https://example.org", GITHUB_REPOSITORY="some/where")
    addresses = dict(line.split(", ") for line in metadata(built).get_all("Project-URL"))
    assert addresses["Source"] == "https://example.org/some/where"
    assert addresses["Issues"] == "https://example.org/some/where/issues"
    assert len(addresses) == 5


@pytest.mark.seconds
def test_the_wheel_alone_embeds_an_image(wheel: Path, tmp_path: Path) -> None:
    """As installed into an empty environment: a folder with links to the base dependencies, and nothing else."""
    alone = tmp_path / "alone"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(alone)
    for file in needed(PROJECT["name"]):
        if not (alone / file.parts[0]).exists() and file.parts[0] != "..":
            (alone / file.parts[0]).symlink_to(file.locate().parents[len(file.parts) - 1] / file.parts[0])
    publish_tiny_bundle(tmp_path / "bundle")
    # -S: the environment's own packages are out of sight.
    command = [sys.executable, "-S", "-P", ROOT / "tests" / "deploy" / "alone.py", tmp_path / "bundle"]
    environment = os.environ | {"PYTHONPATH": str(alone)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"deploy {alone}/deploy/__init__.py" in done.stdout
    with_torch = subprocess.run([sys.executable, *command[3:]], capture_output=True, text=True, cwd=ROOT)
    assert "torch" in with_torch.stderr
    assert with_torch.returncode == 1


def needed(name: str) -> Iterator[PackagePath]:
    """The files of what ``name`` requires without extras, and of what those require."""
    pending, done = [name], set[str]()
    while pending:
        requirements = [Requirement(text) for text in distribution(pending.pop()).requires or ()]
        for requirement in requirements:
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and requirement.name not in done:
                done.add(requirement.name)
                pending.append(requirement.name)
                yield from distribution(requirement.name).files or ()


FROM_AN_INDEX = re.compile(rb"""\b(?:install|add)(?:\s+--?[\w-]+)*[\s'"`]+simclr[-_.]pipeline\b""")
"""A command that takes the package from an index, where anyone may own its name until it is published."""


def test_no_command_installs_the_package_from_an_index() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    names = tracked.stdout.rstrip("\0").split("\0")
    assert [name for name in names if FROM_AN_INDEX.search((ROOT / name).read_bytes())] == []


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("pip install", " 'simclr-pipeline[search]'"),
        ("pip install", " --upgrade simclr-pipeline"),
        ('"install the rest with: pip install ', "\"\n    \"'simclr-pipeline[pipeline]'"),
        ("uv add", " simclr_pipeline"),
    ],
)
def test_a_command_that_installs_from_an_index_is_found(command: str, package: str) -> None:
    assert FROM_AN_INDEX.search((command + package).encode())
