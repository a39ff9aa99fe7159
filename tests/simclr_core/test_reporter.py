"""Events reach whichever process asked for them; timings stay out of the results."""

import json
from pathlib import Path

import pytest

from simclr_core.errors import SimclrError
from simclr_core.reporter import ERROR_FILE, EVENTS, emit, fail, record_timing


def test_events_are_appended_one_json_object_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events"
    monkeypatch.setenv(EVENTS, str(path))
    emit("start", stage="pretrain", message="96 images")
    emit("progress", stage="pretrain", message="époque 1\nof 2", epoch=1, loss=2.5, knn_top1=None)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"event": "start", "stage": "pretrain", "message": "96 images"},
        {
            "event": "progress",
            "stage": "pretrain",
            "message": "époque 1\nof 2",
            "epoch": 1,
            "loss": 2.5,
            "knn_top1": None,
        },
    ]


def test_without_a_listener_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EVENTS, raising=False)
    monkeypatch.chdir(tmp_path)
    emit("start", stage="pretrain", message="96 images")
    assert list(tmp_path.iterdir()) == []


def test_timings_go_to_the_scratch_folder_of_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record_timing("pretrain", seconds=1.23456, images_per_second=100)
    record_timing("export", workspace=tmp_path / "other", seconds=2)
    assert json.loads((tmp_path / ".simclr/timings/pretrain.json").read_text()) == {
        "seconds": 1.235,
        "images_per_second": 100,
    }
    assert json.loads((tmp_path / "other/.simclr/timings/export.json").read_text()) == {"seconds": 2}


def test_a_failure_is_printed_on_stderr_or_left_to_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ERROR_FILE, raising=False)
    fail(SimclrError("no images"))
    assert capsys.readouterr() == ("", "error: no images\n")
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    fail(SimclrError("no images"))
    assert capsys.readouterr() == ("", "")
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "no images"
