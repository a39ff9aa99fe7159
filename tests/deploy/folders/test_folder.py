"""Embedding a folder survives every kind of interruption, and gives the same bytes as an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import deploy
from deploy.artifact import verify
from deploy.bundle import Bundle
from deploy.encoder import Encoder
from deploy.errors import ArgumentError, CorruptArtifactError, DeployError
from deploy.folders import unfinished
from deploy.folders.embedding_writers import ROW_GROUP, WRITERS
from deploy.folders.folder import Options, embed_files, image_files
from tests.deploy.conftest import DIM, encoded, make_bundle, make_card, noise
from tests.deploy.folders.conftest import BAD, BATCH, FILES

PROGRAM = """
import sys
from deploy.cli import main as cli
from deploy.folders import unfinished
unfinished.PART_FILES = 4
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def encoder(bundle: Path) -> Encoder:
    return deploy.load(bundle, threads=1)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "PART_FILES", 4)


def command(bundle: Path, photos: Path, out: Path, format: str, failpoint: str = "") -> tuple[int, str]:
    arguments = ["embed", bundle, photos, "-o", out, "--format", format, "--batch-size", BATCH]
    environment = os.environ | {"SIMCLR_FAILPOINT": failpoint, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stderr


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def start_and_interrupt(encoder: Encoder, photos: Path, out: Path, after: int = 8, batch_size: int = BATCH) -> None:
    """Start embedding, and interrupt it when ``after`` files are done."""

    def interrupt(done: int) -> None:
        if done > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_files(encoder, image_files([photos]), out, Options(batch_size=batch_size), progress=interrupt)


def finish(encoder: Encoder, photos: Path, out: Path, **options: object) -> tuple[list[int], list[str]]:
    """Embed to the end; return the numbers that progress received, and the notices."""
    reported, notices = list[int](), list[str]()
    files = image_files([photos])
    options = {"batch_size": BATCH} | options
    assert embed_files(encoder, files, out, Options(**options), reported.append, notices.append) == len(BAD)
    return reported, notices


def test_a_path_alone_is_one_path(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    assert image_files(photos) == image_files(str(photos)) == image_files([str(photos)]) == image_files([photos])
    with pytest.raises(ArgumentError, match=r"give a list of paths, such as `image_files` returns"):
        embed_files(encoder, str(photos / "0.png"), tmp_path / "out")


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("failpoint", "format", "done"),
    [
        ("folder.part:kill@1", "npy", 0),
        ("folder.part:kill@2", "npy", 4),
        ("folder.part:kill@6", "csv", 20),
        ("folder.part:kill@4", "parquet", 12),
        ("artifact.rename:kill", "npy", FILES),
        ("artifact.rename:kill", "parquet", FILES),
    ],
)
def test_after_sigkill_the_same_command_gives_the_same_bytes(
    failpoint: str, format: str, done: int, bundle: Path, photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    finish(encoder, photos, tmp_path / "whole", format=format)
    out = tmp_path / "out"
    code, _ = command(bundle, photos, out, format, failpoint)
    assert code == -signal.SIGKILL
    assert not out.exists()
    code, err = command(bundle, photos, out, format)
    assert code == 1  # some images are bad
    assert (f"an interrupted run embedded {done} of {FILES} files" in err) == (done > 0)
    verify(out)
    assert content(out) == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out", "photos", "whole"]


@pytest.mark.seconds
@pytest.mark.parametrize("failpoint", ["artifact.renamed:kill", "folder.published:kill"])
def test_a_kill_after_the_result_is_complete_loses_nothing(
    failpoint: str, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command(bundle, photos, out, "npy", failpoint)[0] == -signal.SIGKILL
    verify(out)
    code, err = command(bundle, photos, out, "npy")
    assert (code, "already exists" in err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out", "photos"]


@pytest.mark.usefixtures("small_parts")
def test_a_resumed_run_embeds_only_the_remaining_files(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    start_and_interrupt(encoder, photos, tmp_path / "out")
    reported, _ = finish(encoder, photos, tmp_path / "out")
    assert reported == [8, *range(10, FILES, BATCH), FILES]


@pytest.mark.usefixtures("small_parts")
def test_the_format_may_change_before_resuming(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    start_and_interrupt(encoder, photos, tmp_path / "out")
    reported, notices = finish(encoder, photos, tmp_path / "out", format="csv")
    assert reported[0] == 8
    assert len(notices) == 1
    finish(encoder, photos, tmp_path / "whole", format="csv")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def another_file(photos: Path) -> None:
    (photos / "99.png").write_bytes(b"bad")


def a_file_less(photos: Path) -> None:
    (photos / "03.png").unlink()


def touched_file(photos: Path) -> None:
    os.utime(photos / "00.png", ns=(1, 1))


@pytest.mark.parametrize("change", [another_file, a_file_less, touched_file, "bundle", "raw", "batch_size"])
@pytest.mark.usefixtures("small_parts")
def test_another_request_starts_over_with_a_notice(
    change: Callable[[Path], None] | str,
    encoder: Encoder,
    photos: Path,
    publish_bundle: Callable[[Bundle], Path],
    tmp_path: Path,
) -> None:
    start_and_interrupt(encoder, photos, tmp_path / "out")
    options = {"raw": {"normalize": False}, "batch_size": {"batch_size": 3}}.get(str(change), {})
    if change == "bundle":
        encoder = deploy.load(publish_bundle(make_bundle(make_card(name="another"))), threads=1)
    elif callable(change):
        change(photos)
    notices, options = list[str](), {"batch_size": BATCH} | options
    reported = list[int]()
    files = image_files([photos])
    embed_files(encoder, files, tmp_path / "out", Options(**options), reported.append, notices.append)
    assert reported[0] == 0
    assert len(notices) == 1
    assert "starting over" in notices[0]
    embed_files(encoder, files, tmp_path / "whole", Options(**options))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_parts")
def test_two_processes_do_not_write_the_same_directory(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    files, refused = image_files([photos]), list[str]()

    def compete(_: int) -> None:
        for batch_size in (BATCH, 5):  # the same request, and another one
            with pytest.raises(ArgumentError, match="another process is writing it") as raised:
                embed_files(encoder, files, tmp_path / "out", Options(batch_size=batch_size))
            refused.append(str(raised.value))

    embed_files(encoder, files, tmp_path / "out", Options(batch_size=BATCH), progress=compete)
    assert refused
    verify(tmp_path / "out")


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_keeps_the_finished_parts(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.failpoint._reached", type(deploy.failpoint._reached)())
    monkeypatch.setenv("SIMCLR_FAILPOINT", "folder.part:enospc@3")
    with pytest.raises(OSError, match="No space left"):
        embed_files(encoder, image_files([photos]), tmp_path / "out", Options(batch_size=BATCH))
    monkeypatch.delenv("SIMCLR_FAILPOINT")
    assert finish(encoder, photos, tmp_path / "out")[0][0] == 8


@pytest.mark.usefixtures("small_parts")
def test_a_damaged_part_is_named_and_only_it_is_lost(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    start_and_interrupt(encoder, photos, tmp_path / "out", after=FILES - 1)
    part = next(tmp_path.glob(".out.unfinished-*/*04-*08.npz"))
    data = bytearray(part.read_bytes())
    data[data.index(np.load(part)["vectors"].tobytes())] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=r"04-0+8\.npz: damaged .*remove it and run the same command again"):
        finish(encoder, photos, tmp_path / "out")
    part.unlink()
    finish(encoder, photos, tmp_path / "out")
    finish(encoder, photos, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_slow_encoder_saves_a_part_after_some_seconds(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "PART_SECONDS", 0.0)
    start_and_interrupt(encoder, photos, tmp_path / "out", after=6)
    assert finish(encoder, photos, tmp_path / "out")[0][0] == 6


def test_the_number_of_threads_changes_no_byte(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    for threads in (1, 2, 5):
        finish(encoder, photos, tmp_path / str(threads), threads=threads)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")


def test_vectors_are_those_of_embed(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    finish(encoder, photos, tmp_path / "out")
    expected = encoder.embed(image_files([photos]), on_error="skip").vectors
    assert np.abs(np.load(tmp_path / "out" / "vectors.npy") - expected).max() < 1e-6
    summary = json.loads((tmp_path / "out" / "embedding.json").read_text())
    assert summary["bundle"] == summary["encoder"] == encoder.id
    assert (summary["rows"], summary["failures"]) == (FILES - len(BAD), len(BAD))


def test_parquet_holds_paths_and_vectors(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    finish(encoder, photos, tmp_path / "npy")
    finish(encoder, photos, tmp_path / "out", format="parquet")
    rows = pq.read_table(tmp_path / "out" / "vectors.parquet")
    assert str(rows.schema.field("path").type) == "string"
    assert str(rows.schema.field("vector").type) == f"fixed_size_list<element: float>[{DIM}]"
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    assert np.array_equal(vectors, np.load(tmp_path / "npy" / "vectors.npy"))
    good = [path for number, path in enumerate(image_files([photos])) if number not in BAD]
    assert rows["path"].to_pylist() == good


@pytest.mark.parametrize("sizes", [[9000], [1] * 10 + [4095, 4096, 500], [0, 0]])
def test_row_groups_do_not_depend_on_how_rows_arrive(sizes: list[int], tmp_path: Path) -> None:
    with WRITERS["parquet"](tmp_path, 3) as write:
        for size in sizes:
            write([f"{row}" for row in range(size)], np.ones((size, 3), np.float32))
    file = pq.ParquetFile(tmp_path / "vectors.parquet")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    assert sum(groups) == sum(sizes)
    assert all(rows == ROW_GROUP for rows in groups[:-1])


def test_problems_with_parquet_are_reported_before_the_work(
    encoder: Encoder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / os.fsdecode(b"f\xe9v.png")).write_bytes(encoded(noise(1)))
    files = image_files([photos])
    with pytest.raises(ArgumentError, match=r"not UTF-8.*choose npy or csv"):
        embed_files(encoder, files, tmp_path / "out", Options("parquet"))
    embed_files(encoder, files, tmp_path / "npy")
    assert b"f\xe9v.png" in (tmp_path / "npy" / "ids.csv").read_bytes()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(encoder, "embed", lambda *_: pytest.fail("began to work"))
    with pytest.raises(DeployError, match="pip install pyarrow"):
        embed_files(encoder, files, tmp_path / "out", Options("parquet"))
    with pytest.raises(ArgumentError, match="format='xlsx'; choose npy, csv or parquet"):
        embed_files(encoder, files, tmp_path / "out", Options("xlsx"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_every_file_of_a_folder_is_listed_or_named(tmp_path: Path) -> None:
    listed = ("IMG_0001", "a.heic", "b.AVIF", "c.png", "inner/d.unknown")
    passed = (".hidden.png", ".cache", "Thumbs.db", "@eaDir", "labels.csv", "notes.txt", "waves.ogg", "out", "pipe.png")
    passed += ("twin.png", "nowhere.png")
    for name in (*listed, ".hidden.png", ".cache/e.png", "@eaDir/f.jpg", *passed[2:3], *passed[4:7]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"OggS" if name.endswith("ogg") else b"\x89PNG\r\n\x1a\n")
    (tmp_path / "twin.png").symlink_to("c.png")
    (tmp_path / "nowhere.png").symlink_to("missing.png")
    (tmp_path / "out").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    notices: list[str] = []
    assert {os.path.relpath(file, tmp_path) for file in image_files(tmp_path, notices.append)} == set(listed)
    for name in passed:
        assert [line for line in notices if repr(os.fspath(tmp_path / name)) in line], name
    (tmp_path / "inner" / "d.unknown").rename(tmp_path / "inner" / ".d")
    with pytest.raises(ArgumentError, match=r"no image found; .*skipped 1 \(is hidden\)"):
        image_files(tmp_path / "inner")
    assert image_files(tmp_path / "inner" / ".d"), "a file that is named itself"


def test_a_folder_of_links_says_what_to_do_and_a_link_that_is_named_is_followed(tmp_path: Path) -> None:
    """``simclr ingest`` takes none either: the same folder is the same images to both."""
    (tmp_path / "links").mkdir()
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    link = tmp_path / "links" / "cat.png"
    link.symlink_to(tmp_path / "cat.png")
    with pytest.raises(ArgumentError, match=r"no image found; .*skipped 1 \(is a link\): .*cat.png'; copy what a link"):
        image_files(tmp_path / "links")
    assert image_files(link) == [str(link)]
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    assert image_files(tmp_path / "folder") == [str(tmp_path / "folder" / "cat.png")]


def test_files_come_folder_by_folder(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPEG", "b-side/3.png", "a.png", "b/deep/0.tif", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(file, tmp_path) for file in image_files([tmp_path, tmp_path / "b" / "notes.txt"])]
    assert found == ["a.png", "b/1.JPEG", "b/2.png", "b/deep/0.tif", "b-side/3.png", "b/notes.txt"]
