"""A registry is accepted wherever a bundle is, and its CURRENT cannot point outside of it."""

import json
import re
import shutil
from pathlib import Path

import pytest

import deploy
from deploy.cli.main import main
from deploy.errors import MissingArtifactError, RegistryError
from deploy.registry import CURRENT, resolve, version, versions


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    for name in ("v0.0.1", "v0.0.2"):
        shutil.copytree(bundle, folder / name)
    (folder / CURRENT).write_text("v0.0.2\n")
    return folder


def test_a_bundle_resolves_to_itself_and_a_registry_to_its_current_version(bundle: Path, registry: Path) -> None:
    assert (resolve(bundle), version(bundle)) == (bundle, None)
    assert (resolve(registry), version(registry)) == (registry / "v0.0.2", "v0.0.2")
    assert deploy.load(registry).info["version"] == "v0.0.2"
    assert deploy.load(bundle).info["version"] is None
    (registry / CURRENT).write_text("v0.0.1")
    assert deploy.load(str(registry)).info["version"] == "v0.0.1"


def test_versions_are_in_the_order_of_their_numbers(registry: Path, bundle: Path) -> None:
    for name in ("v0.0.10", "v0.1.0", ".v0.2.0.unfinished"):
        (registry / name).mkdir()
    (registry / "v9.0.0").touch()
    assert versions(registry) == ["v0.0.1", "v0.0.2", "v0.0.10", "v0.1.0"]
    assert versions(bundle) == versions(bundle / "absent") == []


def test_every_command_takes_a_registry(registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = registry / "v0.0.1" / "golden" / "00.png"
    assert main(["info", str(registry)]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "v0.0.2"
    assert main(["verify", str(registry)]) == 0
    assert "v0.0.2" in capsys.readouterr().out
    assert main(["embed", str(registry), str(image), "-o", str(tmp_path / "out")]) == 0
    assert main(["classify", str(registry), str(image)]) == 0


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "v0.0.2\n\n",
        " v0.0.2",
        "../registry/v0.0.2",
        "v0.0.2/../../bundle",
        "/etc",
        "..",
        "v1",
        "v٠.0.2",
        "v" * 99,
    ],
)
def test_current_must_name_a_version(registry: Path, content: str) -> None:
    (registry / CURRENT).write_text(content, encoding="utf-8")
    with pytest.raises(RegistryError, match="not a version such as"):
        resolve(registry)
    (registry / CURRENT).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RegistryError, match="not a version such as"):
        deploy.load(registry)


def test_current_must_name_a_folder_of_the_registry(
    registry: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (registry / CURRENT).write_text("v0.0.3\n")
    with pytest.raises(RegistryError, match=r"v0\.0\.3, which is not a folder.*simclr release promote v0\.0\.3"):
        resolve(registry)
    (registry / "v0.0.3").symlink_to(bundle)
    with pytest.raises(RegistryError, match="not a folder"):
        resolve(registry)
    assert main(["info", str(registry)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("names", [(), (".lock", "releases", "rejected")])
def test_a_registry_without_a_version_names_what_releases_the_first(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    said = f"{tmp_path}: no version is released yet; `simclr run` releases the first"
    with pytest.raises(RegistryError, match=re.escape(said)):
        resolve(tmp_path)
    assert main(["info", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    (tmp_path / "encoder.onnx").touch()
    assert version(tmp_path) is None, "half a bundle, and no registry"


def test_a_registry_without_current_is_refused_with_advice(registry: Path, tmp_path: Path) -> None:
    (registry / CURRENT).unlink()
    with pytest.raises(RegistryError, match="simclr release promote"):
        resolve(registry)
    with pytest.raises(MissingArtifactError, match="no such directory"):
        deploy.load(tmp_path / "none")
