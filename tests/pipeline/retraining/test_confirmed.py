"""A person confirms what a source holds: counted as an ingest counts, and kept for the watchdog."""

from pathlib import Path

import pytest

from pipeline.cli.main import simclr
from pipeline.config import RetrainingConfig
from pipeline.errors import IngestError
from pipeline.retraining.confirmed import FILE, confirm, read
from pipeline.workspace import Workspace
from simclr_core.errors import ConfigError
from simclr_core.params import read_block


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "params.yaml").write_text("ingest: {exclude: ['*.tmp']}\nretraining: {sources: [inbox, mounted]}\n")
    return Workspace(tmp_path)


def test_the_files_of_a_source_are_counted_and_kept(place: Workspace) -> None:
    for name in ("a.png", "b.png", "c.tmp", ".hidden.png"):
        (place.inbox / name).write_bytes(b"")
    assert confirm(place, "inbox") == 2  # those that an ingest would take, also while they are being written
    first = read(place)["inbox"]
    (place.inbox / "a.png").unlink()
    assert confirm(place, "inbox") == 1
    assert (read(place)["inbox"].files, read(place)["inbox"].at > first.at) == (1, True)


def test_the_command_says_what_is_right_from_now_on(place: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (place.root / "dvc.yaml").touch()
    (place.inbox / "a.png").write_bytes(b"")
    simclr.main(["--workspace", str(place.root), "confirm-source", "inbox"], standalone_mode=False)
    assert capsys.readouterr().out == "inbox: 1 file from now on; the watchdog looks again within minutes\n"


def test_only_a_source_that_is_there_can_be_confirmed(place: Workspace) -> None:
    with pytest.raises(IngestError, match=r"other: is not one of retraining.sources in params.yaml, which are inbox"):
        confirm(place, "other")
    with pytest.raises(IngestError, match="mounted: does not exist"):
        confirm(place, "mounted")
    assert read(place) == {}


@pytest.mark.parametrize("text", ["", "[]", "null", '{"inbox": 3}', '{"inbox": {"files": "many", "at": 1}}'])
def test_a_damaged_file_confirms_nothing(text: str, place: Workspace) -> None:
    place.scratch.mkdir()
    (place.scratch / FILE).write_text(text)
    assert read(place) == {}
    confirm(place, "inbox")
    assert list(read(place)) == ["inbox"]


def test_a_source_that_is_emptied_has_to_be_a_source(place: Workspace) -> None:
    place.params.write_text("retraining: {sources: [inbox], emptied_sources: [inbx]}")
    with pytest.raises(ConfigError, match="retraining: must have emptied_sources among sources, and 'inbx' is not"):
        read_block(place.params, "retraining", RetrainingConfig)
