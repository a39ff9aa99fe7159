"""The stage before pretraining: the same bytes for every start from scratch, the champion's network or an error."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.artifact import identity, publish, verify
from deploy.errors import CorruptArtifactError
from simclr_core.config import PretrainConfig
from simclr_core.errors import ChampionError, InitialError
from simclr_core.params import read_block
from simclr_core.pretraining import initial
from tests.conftest import TINY_PARAMS
from tests.simclr_core.conftest import crown

PARAMS: dict[str, Any] = TINY_PARAMS["pretrain"]


def configure(workspace: Path, **changes: object) -> PretrainConfig:
    path = workspace / "params.yaml"
    path.write_text(yaml.safe_dump({"pretrain": {**PARAMS, **changes}}), encoding="utf-8")
    return read_block(path, "pretrain", PretrainConfig)


def put_pretrained(workspace: Path, weights: bytes = b"weights", **changes: object) -> None:
    """What a release has of pretraining, as far as this stage looks at it."""
    config = PretrainConfig.model_validate({**PARAMS, **changes})
    with publish(workspace / "models" / "pretrained", replace=True) as work:
        (work / "model.json").write_text(json.dumps({"config": config.model_dump()}), encoding="utf-8")
        (work / "encoder.safetensors").write_bytes(weights)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """With v0.0.1 as champion, and ``pretrain.init: champion``."""
    put_pretrained(tmp_path)
    crown(tmp_path)
    configure(tmp_path, init="champion")
    return tmp_path


def test_a_start_from_scratch_does_not_read_the_champion(workspace: Path) -> None:
    config = configure(workspace, init="scratch")
    initial.run(workspace)
    before = contents(workspace / "models" / "initial")
    assert before.keys() == {"initial.json", "MANIFEST.sha256"}
    assert json.loads(before["initial.json"]) == {"format_version": 1, "init": "scratch"}
    for champion in ("v0.0.2", None, "nothing at all"):
        if champion == "nothing at all":
            shutil.rmtree(workspace / "models" / "champion")
        else:
            crown(workspace, champion)
        initial.run(workspace)
        assert contents(workspace / "models" / "initial") == before
    start = initial.read_start(workspace, config)
    assert (str(start), start.champion, start.network) == ("scratch", None, None)
    assert start.identity == identity(workspace / "models" / "initial")


def test_a_warm_start_has_the_network_of_the_champion_and_its_version(workspace: Path) -> None:
    initial.run(workspace)
    folder = workspace / "models" / "initial"
    verify(folder)
    assert json.loads((folder / "initial.json").read_text()) == {
        "format_version": 1,
        "init": "champion",
        "version": "v0.0.1",
    }
    assert contents(folder / "pretrained") == contents(workspace / "models" / "champion" / "pretrained")
    start = initial.read_start(workspace, configure(workspace, init="champion"))
    assert (str(start), start.network) == ("champion v0.0.1", folder / "pretrained")
    before = contents(folder)
    initial.run(workspace)
    assert contents(folder) == before


def test_every_start_has_its_own_identity(workspace: Path) -> None:
    found = []
    for init, version, weights in (
        ("scratch", "v0.0.1", b"a"),
        ("champion", "v0.0.1", b"a"),
        ("champion", "v0.0.2", b"a"),
        ("champion", "v0.0.1", b"b"),
    ):
        config = configure(workspace, init=init)
        put_pretrained(workspace, weights)
        crown(workspace, version)
        initial.run(workspace)
        found.append(initial.read_start(workspace, config).identity)
    assert len(set(found)) == 4


def test_before_the_first_release_a_warm_start_is_one_from_scratch_and_says_so(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure(workspace, init="scratch")
    initial.run(workspace)
    scratch = contents(workspace / "models" / "initial")
    assert not caplog.records
    config = configure(workspace, init="champion")
    crown(workspace, None)
    with caplog.at_level(logging.WARNING):
        initial.run(workspace)
    assert "nothing has been released yet: starting from scratch" in caplog.text
    assert contents(workspace / "models" / "initial") == scratch
    assert initial.read_start(workspace, config).champion is None


def test_a_read_only_champion_as_dvc_links_it_can_be_copied_and_replaced(workspace: Path) -> None:
    for path in (workspace / "models" / "champion").rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    initial.run(workspace)
    assert all(path.stat().st_mode & 0o200 for path in (workspace / "models" / "initial").rglob("*"))
    initial.run(workspace)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"encoder": {"name": "resnet10", "width": 0.25, "stem": "compact"}},
            r"cannot continue from champion v0\.0\.1: pretrain\.encoder\.width is 0\.25, the champion's 0\.125; "
            r"give the champion's values, or set pretrain\.init: scratch$",
        ),
        (
            {"projection_head": {"layers": 3, "width": 16, "dim": 4}},
            r"pretrain\.projection_head\.layers is 3, the champion's 2, pretrain\.projection_head\.dim is 4, the champ",
        ),
        ({"image_size": 24}, r"pretrain\.image_size is 24, the champion's 16;"),
    ],
)
def test_another_architecture_is_named_key_by_key(workspace: Path, changes: dict[str, Any], expected: str) -> None:
    initial.run(workspace)
    before = contents(workspace / "models" / "initial")
    config = configure(workspace, init="champion", **changes)
    with pytest.raises(InitialError, match=expected):
        initial.run(workspace)
    assert contents(workspace / "models" / "initial") == before
    with pytest.raises(InitialError, match=expected):  # the parameters were changed after the stage had run
        initial.read_start(workspace, config)


def test_parameters_outside_the_architecture_may_differ(workspace: Path) -> None:
    config = configure(
        workspace, init="champion", batch_size=32, epochs=7, optimizer="lars", augmentation={"flip": 0.0}
    )
    initial.run(workspace)
    assert initial.read_start(workspace, config).champion == "v0.0.1"


@pytest.mark.parametrize("name", ["champion.json", "pretrained/encoder.safetensors", "pretrained/model.json"])
def test_a_damaged_champion_is_found_before_anything_is_parsed(workspace: Path, name: str) -> None:
    (workspace / "models" / "champion" / name).write_bytes(b"{")
    with pytest.raises(CorruptArtifactError):
        initial.run(workspace)
    assert not (workspace / "models" / "initial").exists()


@pytest.mark.parametrize("name", ["initial.json", "pretrained/encoder.safetensors", "pretrained/model.json"])
def test_a_damaged_start_is_found_before_anything_is_parsed(workspace: Path, name: str) -> None:
    initial.run(workspace)
    (workspace / "models" / "initial" / name).write_bytes(b"{")
    with pytest.raises(CorruptArtifactError):
        initial.read_start(workspace, configure(workspace, init="champion"))


def test_a_start_that_is_missing_outdated_or_of_another_format(workspace: Path) -> None:
    warm = configure(workspace, init="champion")
    with pytest.raises(InitialError, match=r"models/initial: does not exist; run `simclr run --select initial`"):
        initial.read_start(workspace, warm)
    initial.run(workspace)
    with pytest.raises(InitialError, match=r"begins from champion v0\.0\.1, but pretrain\.init is scratch; run"):
        initial.read_start(workspace, configure(workspace, init="scratch"))
    with publish(workspace / "models" / "initial", replace=True) as work:
        (work / "initial.json").write_text('{"format_version": 2}', encoding="utf-8")
    with pytest.raises(InitialError, match="format version 2, this release reads 1"):
        initial.read_start(workspace, warm)


def test_a_champion_that_is_missing_or_has_no_network(workspace: Path) -> None:
    with publish(workspace / "models" / "champion", replace=True) as work:
        (work / "champion.json").write_text('{"version": "v0.0.1"}', encoding="utf-8")
    with pytest.raises(InitialError, match=r"v0\.0\.1 has no pretrained network; set pretrain\.init: scratch"):
        initial.run(workspace)
    shutil.rmtree(workspace / "models" / "champion")
    with pytest.raises(ChampionError, match="models/champion: does not exist; `simclr run` makes it"):
        initial.run(workspace)


@pytest.mark.seconds
def test_the_stage_does_not_import_torch() -> None:
    check = "import sys, simclr_core.pretraining.initial; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
