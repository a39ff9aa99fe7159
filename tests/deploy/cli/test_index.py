"""`simclr-deploy index search duplicates few-shot export-index`: outputs, one-line errors, exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.artifact import verify
from deploy.bundle import Bundle
from deploy.cli.main import main
from deploy.search.index import Index
from tests.deploy.conftest import encoded, make_bundle, make_card, noise


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images, one of them twice."""
    folder = tmp_path / "photos"
    (folder / "más").mkdir(parents=True)
    for name, seed in (("a.png", 1), ("b.png", 2), ("más/c\n.png", 3), ("copy of b.png", 2)):
        (folder / name).write_bytes(encoded(noise(seed)))
    return folder


@pytest.fixture
def index(bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert run(capsys, "index", bundle, tmp_path / "index", photos)[0] == 0
    return tmp_path / "index"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_index_of_images(index: Path, photos: Path) -> None:
    verify(index)
    names = ["a.png", "b.png", "copy of b.png", "más/c\n.png"]
    assert list(Index.open(index).ids) == [str(photos / name) for name in names]


def test_search_prints_paths_and_scores(
    bundle: Path, index: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "search", bundle, index, photos / "b.png", photos / "más", "-k", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [f"{photos}/b.png", f"  1.0000  {photos}/b.png", f"  1.0000  {photos}/copy of b.png"]
    assert lines[3:5] == [f"{photos}/más/c\\n.png", f"  1.0000  {photos}/más/c\\n.png"]
    assert len(lines) == 6


def test_search_prints_json(bundle: Path, index: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "search", bundle, index, photos / "más", "--json")
    record = json.loads(out)
    assert (code, record["path"]) == (0, str(photos / "más/c\n.png"))
    assert record["neighbours"][0] == {"id": record["path"], "score": 1.0}
    scores = [neighbor["score"] for neighbor in record["neighbours"]]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)


def test_index_of_embeddings_and_of_another_index(
    bundle: Path, index: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "d.png").write_bytes(encoded(noise(4)))
    run(capsys, "embed", bundle, tmp_path / "new", "-o", tmp_path / "embeddings")
    both = (index, tmp_path / "embeddings")
    code, out, err = run(capsys, "index", bundle, tmp_path / "both", "--from", *both, "--approximate")
    assert (code, out, err) == (0, "", f"{tmp_path}/both: 5 vectors\n")
    _, out, _ = run(capsys, "search", bundle, tmp_path / "both", tmp_path / "new", "-k", 1, "--approximate")
    assert out.splitlines() == [f"{tmp_path}/new/d.png", f"  1.0000  {tmp_path}/new/d.png"]
    code, _, err = run(capsys, "index", bundle, index, "--from", tmp_path / "embeddings", "--replace")
    assert (code, err) == (0, f"{index}: 1 vector\n")


def test_unreadable_images_are_named_and_the_others_are_indexed(
    bundle: Path, index: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.png").write_bytes(b"<html>")
    code, _, err = run(capsys, "index", bundle, tmp_path / "out", photos)
    assert code == 1
    assert f"skipped {photos}/bad.png: " in err
    assert err.endswith("error: 1 of 5 images could not be read\n")
    assert len(Index.open(tmp_path / "out")) == 4
    code, out, err = run(capsys, "search", bundle, index, photos / "bad.png", photos / "a.png", "-k", 1)
    assert (code, len(out.splitlines())) == (1, 2)
    assert err.endswith("error: 1 of 2 images could not be read\n")


@pytest.mark.seconds
def test_an_index_is_changed_and_searched_by_metadata(
    bundle: Path, index: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    new = [tmp_path / "new" / f"{number}.png" for number in range(3)]
    for number, path in enumerate(new):
        path.write_bytes(encoded(noise(10 + number)))
    table = tmp_path / "table.csv"
    rows = [f"{path},{2024 + number},{'cat' if number else ''}\n" for number, path in enumerate(new)]
    table.write_text("path,year,label\n" + "".join(rows) + "elsewhere.png,1,dog\n")
    code, _, err = run(capsys, "index", "add", bundle, index, tmp_path / "new", "--metadata", table)
    assert (code, err.splitlines()[-1]) == (0, f"{index}: 7 vectors")
    assert f"{table}: 1 row for none of the images, such as 'elsewhere.png'" in err
    assert Index.open(index).metadata(5) == {"year": 2025, "label": "cat"}
    for conditions, expected in (
        (["year>=2024", "year<=2025"], new[:2]),
        (["label=cat"], new[1:]),
        (["year=2024", "year=2026"], [new[0], new[2]]),
        (["label=cat", "year=2024"], []),
    ):
        options = [word for condition in conditions for word in ("--where", condition)]
        code, out, _ = run(capsys, "search", bundle, index, photos / "a.png", "--json", *options)
        assert code == 0
        assert sorted(one["id"] for one in json.loads(out)["neighbours"]) == sorted(map(str, expected))
    new[0].write_bytes(encoded(noise(1)))
    table.write_text(f"path,year\n{new[0]},1999\n")
    assert run(capsys, "index", "update", bundle, index, new[0], "--metadata", table)[0] == 0
    _, out, _ = run(capsys, "search", bundle, index, photos / "a.png", "--where", "year<=2000", "-k", 1)
    assert out.splitlines()[1] == f"  1.0000  {new[0]}"
    table.write_text(f"path,height\n{new[0]},\n")
    assert run(capsys, "index", "update", bundle, index, new[0], "--metadata", table)[0] == 0
    table.write_text(f"path,height\n{new[0]},7\n")
    assert run(capsys, "index", "update", bundle, index, new[0], "--metadata", table)[0] == 0
    assert Index.open(index).metadata(6) == {"height": 7}, "a column without any value has no kind yet"
    code, _, err = run(capsys, "index", "delete", index, *new)
    assert (code, err) == (0, f"{index}: 4 vectors\n")
    for arguments, message in (
        (("index", "add", bundle, index, photos), "is in the index already; use `index update`"),
        (("index", "update", bundle, index, new[0]), "is not in the index; use `index add`"),
        (("index", "delete", index, new[0]), "not in the index"),
        (("search", bundle, index, photos, "--where", "size=1"), "no column 'size' in this index"),
        (("index", bundle, tmp_path / "out", photos, photos / "más"), "is given twice; give each image once"),
        (("index", bundle, photos, photos, "--replace"), "is not an index and would be lost"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, message in err) == (2, True), err


def test_an_image_without_direction_is_reported_and_the_others_are_used(
    publish_bundle: Callable[[Bundle], Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = publish_bundle(make_bundle())
    black = photos / "black.png"
    black.write_bytes(encoded(np.zeros((9, 9, 3), np.uint8)))
    code, _, err = run(capsys, "index", bundle, tmp_path / "index", photos)
    assert (code, len(Index.open(tmp_path / "index"))) == (1, 4)
    assert f"skipped {black}: all its features are zero" in err
    code, out, err = run(capsys, "search", bundle, tmp_path / "index", photos / "a.png", black, "-k", 1)
    assert (code, len(out.splitlines())) == (1, 2)
    assert f"skipped {black}: all its features are zero" in err


@pytest.mark.seconds
@pytest.mark.parametrize("place", ["folder.part", "artifact.flush", "folder.published", "artifact.flush@2"])
def test_a_killed_index_is_completed_by_the_same_command(
    place: str, bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "index", bundle, tmp_path / "expected", photos)
    name, _, turn = place.partition("@")
    environment = os.environ | {
        "SIMCLR_FAILPOINT": f"{name}:kill@{turn or 1}",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    command = [sys.executable, "-P", "-m", "deploy.cli", "index", bundle, tmp_path / "index", photos]
    done = subprocess.run(command, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "index").exists()
    assert run(capsys, "index", bundle, tmp_path / "index", photos)[0] == 0
    assert verify(tmp_path / "index") == verify(tmp_path / "expected")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_duplicates(index: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "duplicates", index, "--threshold", 0.999999)
    assert (code, out) == (0, f"1.0000  {photos}/b.png  {photos}/copy of b.png\n")
    assert err == "1 pair with a cosine of at least 0.999999\n"
    _, out, _ = run(capsys, "duplicates", index, "--threshold", 0.999999, "--json")
    assert json.loads(out) == {"ids": [f"{photos}/b.png", f"{photos}/copy of b.png"], "cosine": 1.0}


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Reddish and bluish noise, four of each."""
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "examples" / name).mkdir(parents=True)
        for seed in range(4):
            pixels = noise(seed) // 4
            pixels[..., channel] += 150
            (tmp_path / "examples" / name / f"{seed}.png").write_bytes(encoded(pixels))
    return tmp_path / "examples"


def test_what_is_in_no_folder_of_a_class_is_named(
    bundle: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (examples / ".cache").mkdir()
    (examples / ".cache" / "old.png").write_bytes(encoded(noise(1)))
    (examples / "lost.png").write_bytes(encoded(noise(2)))
    (tmp_path / "query.png").write_bytes(encoded(noise(3)))
    (examples / "twin").symlink_to(next(folder for folder in sorted(examples.iterdir()) if folder.is_dir()).name)
    code, _, err = run(capsys, "few-shot", bundle, examples, tmp_path / "query.png")
    assert code == 0
    assert "8 examples of 2 classes" in err
    for name, reason in ((".cache", "is hidden"), ("lost.png", "is in the folder of no class"), ("twin", "is a link")):
        assert f"skipped 1 ({reason}): {str(examples / name)!r}" in err


def test_few_shot(bundle: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = np.zeros((9, 9, 3), np.uint8) + np.array([20, 30, 200], np.uint8)
    (tmp_path / "query.png").write_bytes(encoded(query))
    code, out, err = run(capsys, "few-shot", bundle, examples, tmp_path / "query.png")
    assert code == 0
    assert err.startswith("8 examples of 2 classes; leave-one-out accuracy: class_mean 100%, knn 100%")
    share, label, path = out.split()
    assert (label, path, float(share) > 0.5) == ("blue", str(tmp_path / "query.png"), True)
    _, out, _ = run(capsys, "few-shot", bundle, examples, tmp_path / "query.png", "--json")
    record = json.loads(out)
    assert (record["label"], sorted(record["shares"])) == ("blue", ["blue", "red"])


def test_export_index(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for store in ("pgvector", "qdrant", "lancedb"):
        code, out, err = run(capsys, "export-index", index, store, tmp_path / store)
        assert (code, out, err) == (0, "", f"{tmp_path}/{store}: 4 vectors\n")
        assert (tmp_path / store).stat().st_size > 0


def test_errors_are_one_line_and_exit_2(
    bundle: Path,
    index: Path,
    photos: Path,
    examples: Path,
    tmp_path: Path,
    publish_bundle: Callable[[Bundle], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "one" / "only" / "a.png").write_bytes(encoded(noise(1)))
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    out = tmp_path / "out"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("index", bundle, out), "give either images, or --from"),
        (("index", bundle, out, photos, "--from", index), "give either images, or --from"),
        (("index", bundle, out, tmp_path / "none"), "no such file or folder"),
        (("index", bundle, index, photos), "already exists"),
        (("index", bundle, out, "--from", photos), "MANIFEST.sha256"),
        (("index", bundle, out, "--from", index, index), "is given twice"),
        (("index", bundle, out, photos, "--approximate"), "pip install '.[search]'"),
        (("search", bundle, photos, photos), "MANIFEST.sha256"),
        (("search", bundle, index, photos, "-k", 0), "k=0"),
        (("search", bundle, index, photos, "--approximate"), "the index has no graph"),
        (("duplicates", index, "--threshold", 2), "threshold=2.0"),
        (("few-shot", bundle, tmp_path / "none", photos), "no such folder"),
        (("few-shot", bundle, tmp_path / "one", photos), "given 1 class"),
        (("export-index", index, "qdrant", photos), "already exists"),
    ]
    for arguments, message in cases:
        code, printed, err = run(capsys, *arguments)
        assert (code, printed) == (2, ""), arguments
        assert err.splitlines()[-1].startswith("error: ")
        assert message in err
    assert not out.exists()
    publish_bundle(make_bundle(make_card(name="another")))
    for arguments in (("search", bundle, index, photos), ("index", bundle, out, "--from", index)):
        code, printed, err = run(capsys, *arguments)
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert "made by encoder" in err
