"""The command line: machine-readable output, one-line errors, exit codes."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from deploy.artifact import verify
from deploy.bundle import MODEL, Bundle
from deploy.cli.main import main
from deploy.images.preprocess import Preprocessing
from tests.deploy.conftest import DIM, SIZE, embedding_of, encoded, make_bundle, noise


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in nested folders, and a file that is not an image."""
    folder = tmp_path / "photos"
    (folder / "späte Ernte").mkdir(parents=True)
    (folder / "b.png").write_bytes(encoded(noise(1)))
    (folder / "a.JPG").write_bytes(encoded(noise(2, 20, 30), "JPEG"))
    (folder / "späte Ernte" / "c,\n.webp").write_bytes(encoded(noise(3), "WEBP", lossless=True))
    (folder / "notes.txt").write_text("no image")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_info_prints_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "info", bundle, "--threads", 1)
    assert (code, err) == (0, "")
    assert json.loads(out)["runtime"]["threads"] == 1


def test_verify(bundle: Path, publish_bundle: Callable[[Bundle], Path], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", bundle)
    assert code == 0
    assert out.startswith("ok: mean-color")
    whole = make_bundle()
    publish_bundle(replace(whole, golden_vectors=-whole.golden_vectors))
    code, out, err = run(capsys, "verify", bundle)
    assert (code, out) == (1, "")
    assert err.startswith("error: golden images: cosine -1")
    (bundle / MODEL).write_bytes(b"x")
    code, _, err = run(capsys, "verify", bundle)
    assert code == 1
    assert err.count("\n") == 1
    assert MODEL in err


def test_embed_to_npy(bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "embed", bundle, photos, "-o", tmp_path / "out", "--batch-size", 2)
    assert (code, out) == (0, "")
    verify(tmp_path / "out")
    vectors = np.load(tmp_path / "out" / "vectors.npy")
    assert (vectors.shape, vectors.dtype) == ((3, DIM), np.float32)
    rows = table(tmp_path / "out" / "ids.csv")
    names = ["a.JPG", "b.png", "späte Ernte/c,\n.webp"]
    assert rows == [["row", "path"], *([str(row), str(photos / name)] for row, name in enumerate(names))]
    expected = embedding_of(Preprocessing(SIZE, SIZE + 2).apply(noise(3)))
    assert np.abs(vectors[2] - expected).max() < 1e-6
    summary = json.loads((tmp_path / "out" / "embedding.json").read_text())
    assert (summary["rows"], summary["failures"], summary["normalized"]) == (3, 0, True)
    assert summary["bundle"] == json.loads(run(capsys, "info", bundle)[1])["id"]


def test_embed_to_csv_keeps_every_bit(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "embed", bundle, photos, "-o", tmp_path / "npy", "--raw")
    run(capsys, "embed", bundle, photos, "-o", tmp_path / "csv", "--raw", "--format", "csv")
    header, *rows = table(tmp_path / "csv" / "vectors.csv")
    assert header == ["path", *map(str, range(DIM))]
    assert np.array_equal(np.array([row[1:] for row in rows], np.float32), np.load(tmp_path / "npy" / "vectors.npy"))


def test_embed_reports_what_failed_and_keeps_the_rest(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.png").write_bytes(b"<html>")
    code, _, err = run(capsys, "embed", bundle, photos, photos / "notes.txt", "-o", tmp_path / "out")
    assert code == 1
    assert "error: 2 of 4 images could not be read" in err
    header, *rows = table(tmp_path / "out" / "failures.csv")
    assert header == ["path", "reason", "message"]
    assert [row[:2] for row in rows] == [
        [str(photos / "b.png"), "not_an_image"],
        [str(photos / "notes.txt"), "not_an_image"],
    ]
    assert len(np.load(tmp_path / "out" / "vectors.npy")) == 2
    assert len((tmp_path / "out" / "ids.csv").read_text().splitlines()) == 1 + 3  # one name holds a newline


def test_the_same_command_resumes_an_interrupted_embedding(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.folders.unfinished.PART_FILES", 1)
    command = ("embed", bundle, photos, "-o", tmp_path / "out", "--batch-size", 1, "--threads", 1)
    with monkeypatch.context() as patch:
        patch.setattr("deploy.cli.main.Progress", lambda total, stream: interrupt_after_one)
        code, _, err = run(capsys, *command)
    assert code == 130
    assert err == "error: interrupted; run the same command again to continue\n"
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, *command)
    assert code == 0
    assert err.startswith("an interrupted run embedded 1 of 3 files; continuing from there\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "out", "photos"]


def interrupt_after_one(done: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_an_interruption_of_another_command_writes_no_output(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.cli.main.load", interrupt)
    assert run(capsys, "verify", bundle) == (130, "", "error: interrupted; no output was written\n")


def test_classify_prints_a_json_line_for_each_image(
    bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "classify", bundle, photos, photos / "notes.txt", "--top", 2)
    assert code == 1
    passed_over = f"skipped 1 (is text or a table by its name): {str(photos / 'notes.txt')!r}"
    assert err == f"{passed_over}\nerror: 1 of 4 images could not be read\n"
    records = [json.loads(line) for line in out.splitlines()]
    assert [Path(record["path"]).name for record in records] == ["a.JPG", "b.png", "c,\n.webp", "notes.txt"]
    assert records[0]["label"] in ("red", "green", "blue")
    assert len(records[0]["probabilities"]) == 2
    assert records[3]["error"] == "not_an_image"


def test_classify_without_a_head(
    photos: Path, publish_bundle: Callable[[Bundle], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "classify", publish_bundle(make_bundle(labels=False)), photos)
    assert code == 2
    assert "without a classifier" in err


def test_unusable_arguments_are_one_line_and_exit_2(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (bundle.parent / "damaged").mkdir()
    cases: list[tuple[tuple[object, ...], str]] = [
        (("info", tmp_path / "none"), "no such directory"),
        (("info", photos), "MANIFEST.sha256"),
        (("embed", bundle, tmp_path / "none", "-o", tmp_path / "o"), "no such file or folder"),
        (("embed", bundle, tmp_path / "empty", "-o", tmp_path / "o"), "no image found"),
        (("embed", bundle, photos, "-o", photos), "already exists"),
        (("embed", bundle, photos, "-o", tmp_path / "o", "--batch-size", 0), "batch_size=0"),
        (("embed", bundle, photos, "-o", photos / "b.png" / "o"), "b.png"),
        (("classify", bundle, photos, "--top", 0), "top_k=0"),
        (("info", bundle, "--threads", -1), "threads=-1"),
        (("embed", bundle, photos, "-o", tmp_path / "o", "--threads", -1), "threads=-1"),
        (("bench", bundle, "--seconds", 0), "seconds=0"),
    ]
    for arguments, message in cases:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [["train"], ["info"], ["embed", "bundle", "photos"]])
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: simclr-deploy" in capsys.readouterr().err


def test_alone_it_prints_its_help_and_its_version_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "export-triton" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"simclr-deploy {version('simclr-pipeline')}\n"


def test_a_shell_completes_commands_and_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["completion", "bash"]) == 0
    asked = "COMP_WORDS=(simclr-deploy emb); COMP_CWORD=1; _shtab_simclr_deploy simclr-deploy emb; echo ${COMPREPLY[@]}"
    script = f"{capsys.readouterr().out}\n{asked}"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split() == ["embed"]
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "completion needs shtab; run `pip install '.[completion]'`" in capsys.readouterr().err


def test_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "info",
        "verify",
        "embed",
        "classify",
        "examples:",
        "simclr-deploy embed models/bundle",
        "exit codes:",
    ):
        assert part in text


def test_progress_goes_to_the_terminal(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main(["embed", str(bundle), str(photos), "-o", str(tmp_path / "out"), "--batch-size", "2"]) == 0
    assert "\r3/3 images" in terminal.getvalue()
    assert "0:00:00 left" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    main(["embed", str(bundle), str(photos), "-o", str(tmp_path / "again")])
    passed_over, last = log.getvalue().splitlines()
    assert passed_over.startswith("skipped 1 (is text or a table by its name): ")
    assert last == f"{tmp_path / 'again'}: 3 embeddings"


@pytest.mark.seconds
def test_bench_prints_a_table_or_json(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "bench", bundle, "--seconds", 0.01, "--threads", 1, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["name"], report["threads"], report["variant"]) == ("mean-color", 1, "fp32")
    code, out, _ = run(capsys, "bench", bundle, "--seconds", 0.01)
    assert code == 0
    for part in ("mean-color, fp32", "p50", "p95", "p99", "images/s", "MB", "CPUExecutionProvider"):
        assert part in out


def test_variant_and_providers_reach_the_encoder(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("info", "verify", "bench"):
        code, _, err = run(capsys, command, bundle, "--variant", "int7")
        assert (code, "variant='int7'" in err) == (2, True)
        code, _, err = run(capsys, command, bundle, "--providers", "NoProvider,CPUExecutionProvider")
        assert (code, "not installed: ['NoProvider']" in err) == (2, True)
    assert run(capsys, "classify", bundle, photos, "--variant", "auto")[0] == 0
    assert run(capsys, "embed", bundle, photos, "-o", tmp_path / "out", "--variant", "int7")[0] == 2


def test_help_needs_no_extra_and_no_model_library() -> None:
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("onnxruntime", "PIL", "starlette", "uvicorn", "usearch", "pyarrow", "torch"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from deploy.cli.main import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("info", "verify", "embed", "classify", "index", "search", "bench", "serve"):
        assert f"\n    {command} " in done.stdout, command
