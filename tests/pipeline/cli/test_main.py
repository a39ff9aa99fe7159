"""The command line: what a person types, reads, and what a script gets as exit code."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from pipeline.__main__ import main
from pipeline.cli.main import run_cli
from pipeline.cli.options import show
from pipeline.cli.run import parse_assignments
from pipeline.maintenance import doctor
from pipeline.params import override
from pipeline.workspace import Workspace
from tests.conftest import draw

Capture = pytest.CaptureFixture[str]


def simclr(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simclr", *arguments])
    return run_cli()


def test_an_interrupt_while_the_command_line_is_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Interrupt:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pipeline.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "pipeline.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; run the same command again to continue\n"


def test_help_shows_examples_and_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert simclr(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for command in ("init", "ingest", "run", "status", "demo", "ui", "doctor"):
        assert f"  {command} " in shown
    assert "simclr init my-images" in shown
    assert "Exit codes: 0 done; 1 a stage failed" in shown
    for command in ("init", "ingest", "run", "demo"):
        assert simclr(monkeypatch, command, "--help") == 0
        assert "Example" in capsys.readouterr().out


def test_without_arguments_the_help_is_shown_as_it_is_laid_out(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert simclr(monkeypatch) == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert "\n  doctor  " in shown.out
    assert simclr(monkeypatch, "release") == 0
    assert "\n  rollback  " in capsys.readouterr().out


def test_the_workspace_is_named_before_or_after_the_command(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    root = str(workspace.root)
    for arguments in (("--workspace", root, "summary"), ("summary", "--workspace", root)):
        assert simclr(monkeypatch, *arguments) == 0
        assert capsys.readouterr().out.startswith("images ")
    assert simclr(monkeypatch, "--workspace", root, "summary", "--workspace", str(tmp_path)) == 2
    assert f"--workspace is given twice, as {root} and {tmp_path}; give it once" in capsys.readouterr().err
    assert simclr(monkeypatch, "release", "list", "--workspace", str(tmp_path / "absent")) == 2


def test_a_shell_completes_commands(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert simclr(monkeypatch, "completion", "bash") == 0
    assert "_SIMCLR_COMPLETE=bash_complete" in capsys.readouterr().out
    monkeypatch.setenv("_SIMCLR_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "simclr release roll")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        simclr(monkeypatch)
    assert capsys.readouterr().out == "plain,rollback\n"


def test_on_a_terminal_the_first_words_have_a_color(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    lines = "ok    disk\nFAIL  git\n      fix: install it\nnext  run\nokay"
    show(lines)
    assert capsys.readouterr().out == f"{lines}\n"
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
    show(lines)
    green, red, cyan = (
        click.style(word, fg=color, bold=True)
        for word, color in zip(("ok", "FAIL", "next"), ("green", "red", "cyan"), strict=True)
    )
    assert capsys.readouterr().out == f"{green}    disk\n{red}  git\n      fix: install it\n{cyan}  run\nokay\n"
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda _, color: color is False)
    monkeypatch.setenv("NO_COLOR", "1")
    show(lines)
    assert capsys.readouterr().out == f"{lines}\n"


def test_a_program_gets_json(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    root = str(workspace.root)
    found = {}
    for command in ("summary", "release list", "doctor"):
        simclr(monkeypatch, *command.split(), "--json", "--workspace", root)
        found[command] = json.loads(capsys.readouterr().out)
    assert found["summary"]["pretrain"] == dict.fromkeys(["epochs", "images_per_second", "loss_first", "loss_last"])
    unasked = {"candidates": [], "missed": 0}
    assert found["release list"] == {
        "versions": [],
        "current": None,
        "serving": None,
        "rejected": [],
        "waiting": unasked,
    }
    assert {"name", "healthy", "detail", "fix", "warning"} == set(found["doctor"][0])


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'; see `simclr --help`"),
        (["run", "--sett", "a=b"], "see `simclr run --help`"),
        (["run", "--set", "epochs"], "--set 'epochs': must be KEY=VALUE"),
        (["run", "--set", "pretrain.epochz=3"], "pretrain.epochz: unknown key; did you mean epochs?"),
        (["run", "--set", "pretrain.epochs=none"], "pretrain.epochs: given 'none', allowed: "),
        (["run", "--select", "pretrian"], "pretrian"),
        (["run", "--set", "pretrain.epochs=7", "--select", "pretrian"], "dvc.yaml has no stage 'pretrian'"),
        (["ingest", "--undo", ""], "'' is not a batch of"),
        (["ingest", ""], "'' names no source; give a folder"),
        (["ingest", "--redo", ""], "'' is not a batch of"),
        (["ingest", "nowhere"], "nowhere: does not exist"),
        (["confirm-source", "inbx"], "inbx: is not one of retraining.sources in params.yaml, which are inbox"),
        (["fsck", "--seconds", "nan"], "nan is not a finite number; give one of 0 or more"),
        (["fsck", "--older-than-days", "nan"], "nan is not a finite number"),
        (["fsck", "--older-than-days", "-1"], "is not in the range"),
        (["run"], "inbox: nothing to ingest, no files; put images into"),
        (["init", "."], "exists and is not an empty folder"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(workspace.root)
    before = {path: path.read_bytes() for path in workspace.root.iterdir() if path.is_file()}
    assert simclr(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {path: path.read_bytes() for path in workspace.root.iterdir() if path.is_file()} == before


def test_outside_a_workspace_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("SIMCLR_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert simclr(monkeypatch, "status") == 2
    assert "make one with `simclr init DIR`" in capsys.readouterr().err


@pytest.mark.seconds
def test_init_then_ingest_then_status(
    tmp_path: Path, filled: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert simclr(monkeypatch, "init", str(tmp_path / "new")) == 0
    assert "is ready: put images into inbox/unlabeled" in capsys.readouterr().out
    monkeypatch.chdir(filled.root)
    assert simclr(monkeypatch, "status") == 0
    assert "put images into inbox/unlabeled" in capsys.readouterr().out
    assert simclr(monkeypatch, "ingest") == 0
    assert "40 new images in batch 0001" in capsys.readouterr().out
    assert simclr(monkeypatch, "status") == 0
    assert "40 images in 1 batch\n" in capsys.readouterr().out


@pytest.mark.seconds
def test_ingest_looks_where_a_run_looks_and_says_when_nothing_of_an_undone_batch_is_there(
    tmp_path: Path, filled: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    photos = tmp_path / "photos"
    filled.inbox.rename(photos)
    override(filled, {"retraining.sources": f"[inbox, {photos}]"})
    at = ("--workspace", str(filled.root), "ingest")
    assert simclr(monkeypatch, *at) == 0
    assert "40 new images in batch 0001" in capsys.readouterr().out
    assert simclr(monkeypatch, *at, "--undo", "0001") == 0
    assert simclr(monkeypatch, *at, "--redo", "0001") == 0
    assert "40 new images in batch 0002" in capsys.readouterr().out
    assert simclr(monkeypatch, *at, "--undo", "0002") == 0
    capsys.readouterr()
    assert simclr(monkeypatch, *at, "--redo", "0002", str(filled.inbox)) == 0
    assert (
        f"warning: no file of batch 0002 is in {filled.inbox}; name where they are: `simclr" in capsys.readouterr().out
    )


@pytest.mark.parametrize("folder", ["", ".dvc"])
def test_a_read_only_workspace_is_an_error_not_a_traceback(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture, folder: str
) -> None:
    access = os.access
    closed = workspace.root / folder  # reported by os.access alone: root, as which tests may run, can write everywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and not (mode & os.W_OK and Path(path) == closed)
    )
    before = workspace.params.read_text()
    assert simclr(monkeypatch, "--workspace", str(workspace.root), "run", "--set", "pretrain.epochs=3") == 2
    assert capsys.readouterr().err == (
        f"error: {closed}: cannot be written; `chmod u+rwx '{closed}'`, or run as its owner\n"
    )
    assert workspace.params.read_text() == before


@pytest.mark.seconds
def test_a_file_system_that_has_become_read_only_stops_no_command_that_only_looks(
    filled: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    at = ("--workspace", str(filled.root))
    assert simclr(monkeypatch, *at, "ingest") == 0
    access, statvfs = os.access, os.statvfs
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not mode & os.W_OK)

    def mounted_read_only(path: Path) -> SimpleNamespace:
        found = statvfs(path)
        fields = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
        return SimpleNamespace(**fields | {"f_flag": found.f_flag | os.ST_RDONLY})

    monkeypatch.setattr(os, "statvfs", mounted_read_only)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".dvc/tmp/rwlock.lock")

    monkeypatch.setattr("pipeline.dvc.locks.rwlock_fault", refuse)
    capsys.readouterr()
    remedy = "this file system is read-only: choose another folder, or mount it writable"
    for command in ("run", "fsck", "ui"):
        assert simclr(monkeypatch, *at, command) == 2
        assert capsys.readouterr().err == f"error: {filled.root}: cannot be written; {remedy}\n"
    assert simclr(monkeypatch, *at, "status") == 0
    said = capsys.readouterr().out
    assert "40 images in 1 batch\n" in said
    assert f"stages     not known: {filled.root} cannot be written; {remedy}\n" in said
    assert simclr(monkeypatch, *at, "doctor", "--repair") == 1
    said = capsys.readouterr().out
    assert f"FAIL  writable             {filled.root} cannot be written to\n      fix: {remedy}\n" in said
    assert f".dvc/tmp/rwlock.lock: Read-only file system\n      fix: {remedy}\n" in said


def test_a_database_on_a_full_disk_is_one_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("pipeline.preflight.requirements.apply", refuse)
    assert simclr(monkeypatch, "--workspace", str(workspace.root), "run") == 2
    assert capsys.readouterr().err == (
        "error: a database of the workspace: database or disk is full; `simclr doctor` looks for the cause\n"
    )


def test_an_error_of_the_system_is_one_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(workspace.params))

    monkeypatch.setattr("pipeline.preflight.requirements.apply", refuse)
    assert simclr(monkeypatch, "--workspace", str(workspace.root), "run") == 2
    assert "params.yaml: Permission denied; give this user access to it" in capsys.readouterr().err


def test_assignments_keep_equal_signs_in_the_value() -> None:
    assert parse_assignments(["a.b=c=d", "e.f="]) == {"a.b": "c=d", "e.f": ""}


def test_without_the_extras_the_message_names_them(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError(\"No module named 'click'\", name='click')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("`pip install --no-deps -r requirements.lock` in a clone of the repository")


def test_doctor_finds_this_machine_healthy(workspace: Workspace) -> None:
    findings = doctor.examine(workspace.root)
    assert [str(finding) for finding in findings if not finding.healthy] == []
    assert {"antlr4", "disk", "cores", "accelerator", "git", "params.yaml"} <= {finding.name for finding in findings}


def test_doctor_names_the_fix(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "4.9.3")
    workspace.params.write_text("pretrain: {epochs: 0}")
    assert simclr(monkeypatch, "--workspace", str(workspace.root), "doctor") == 1
    shown = capsys.readouterr().out
    assert "fix: pip install --no-deps antlr4-python3-runtime==4.13.2" in shown
    assert "FAIL  params.yaml" in shown
    assert "pretrain.epochs: given 0" in shown


@pytest.mark.slow
def test_dvc_alone_can_begin_after_the_first_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert simclr(monkeypatch, "init", "images") == 0
    monkeypatch.chdir(tmp_path / "images")
    assert simclr(monkeypatch, "quarantine", "list") == 2
    assert "nothing was ingested yet; put images into inbox/unlabeled" in capsys.readouterr().err
    draw(0, 1).save(tmp_path / "images" / "inbox" / "unlabeled" / "one.png")
    os.utime(tmp_path / "images" / "inbox" / "unlabeled" / "one.png", (1, 1))
    assert simclr(monkeypatch, "ingest") == 0
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", "--single-item", "initial"], check=False)
    assert done.returncode == 0
