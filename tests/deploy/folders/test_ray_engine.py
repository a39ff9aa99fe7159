"""Two nodes of a Ray cluster give the bytes of this machine, also from a bucket, and after an interruption."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import deploy
from deploy.cli.main import main
from deploy.encoder import Embeddings, Encoder
from deploy.errors import ClusterError
from deploy.folders import ray_engine, unfinished
from deploy.folders.folder import Options, embed_files, image_files
from deploy.folders.ray_engine import Loaded, Worker, contents_of, embed_on_ray, versions
from tests.deploy.folders.conftest import BATCH
from tests.deploy.folders.test_addresses import tree


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_bytes_are_those_of_the_local_engine(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of paths relative to a folder that is not that of the nodes, with an interruption after some parts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_engine, "FILES_AT_ONCE", 4)
    monkeypatch.setattr(unfinished, "PART_FILES", 4)
    command = ["embed", str(bundle), "photos", "--batch-size", str(BATCH), "-o"]
    assert main([*command, "local"]) == 1

    def interrupted(*arguments: Any) -> Iterator[Embeddings]:
        for number, part in enumerate(embed_on_ray(*arguments, loaded)):
            if number == 3:
                raise KeyboardInterrupt
            yield part

    loaded = Loaded(bundle, ["CPUExecutionProvider"], "fp32")
    encoder = deploy.load(bundle, threads=1)
    with pytest.raises(KeyboardInterrupt):
        embed_files(encoder, image_files(["photos"]), "ray", Options(batch_size=BATCH), compute=interrupted)
    capsys.readouterr()
    assert main([*command, "ray", "--engine", "ray"]) == 1
    assert "an interrupted run embedded 12 of 23 files" in capsys.readouterr().err
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    with pytest.raises(ClusterError, match="loads another encoder"):
        list(embed_on_ray(_Other(encoder), ["photos/00.png"], 0, Options(), loaded))  # type: ignore[arg-type]


class _Other:
    """An encoder that the bundle does not hold."""

    def __init__(self, encoder: Encoder) -> None:
        self.info, self.id = encoder.info, "another"


def worker(monkeypatch: pytest.MonkeyPatch, bundle: Path, **changes: object) -> Worker:
    fake = type(os)("ray")
    fake.get = lambda value: value  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    asked = {"batch_size": 2, "normalize": True, "id": deploy.load(bundle).id, "versions": versions()}
    asked |= {"providers": ["CPUExecutionProvider"], "variant": "fp32"}
    return Worker(contents_of(bundle), asked | changes)


def test_a_worker_answers_with_rows_or_with_a_fault(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image_files([photos])
    row = worker(monkeypatch, bundle)({"files": json.dumps(files)})
    encoder = deploy.load(bundle, threads=1)
    expected = encoder.embed(files, 2, on_error="skip", workers=1)
    answer = ray_engine._embeddings(row, files, encoder.info["dim"])
    assert answer.vectors.tobytes() == expected.vectors.tobytes()
    assert answer.ok.tolist() == expected.ok.tolist()
    assert {place: (error.reason, str(error)) for place, error in answer.errors.items()} == {
        place: (error.reason, str(error)) for place, error in expected.errors.items()
    }
    elsewhere = json.dumps(["/no/such/folder/1.png"])
    for given, changes, why in (
        (elsewhere, {}, "does not see /no/such/folder; put the images on a disk that all nodes share"),
        (json.dumps(files), {"id": "another"}, "loads another encoder"),
        (json.dumps(files), {"versions": {"numpy": "0"}}, "install the same versions"),
        (json.dumps(files), {"variant": "int4"}, "int4"),
    ):
        row = worker(monkeypatch, bundle, **changes)({"files": given})
        with pytest.raises(ClusterError, match=why):
            ray_engine._embeddings(row, files, 1)


def test_without_ray_the_extra_is_named(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["embed", str(bundle), str(photos), "-o", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "--engine is ray, and Ray is not installed; run `pip install '.[ray]'`" in capsys.readouterr().err
