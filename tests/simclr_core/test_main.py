"""The command line of the stages: exit codes, one line of explanation, and no wait for torch to be reported of a
typo."""

import errno
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from deploy.errors import MissingArtifactError
from simclr_core.__main__ import STAGES, main
from simclr_core.evaluation import finetune
from simclr_core.pretraining import pretrain, replay


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMCLR_PROCESSES", "1")


def test_a_stage_runs_in_the_workspace_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(pretrain, "run", seen.append)
    assert main(["--workspace", str(tmp_path), "pretrain"]) == 0
    assert main(["pretrain"]) == 0
    assert seen == [tmp_path, Path()]


def test_a_fraction_is_passed_to_its_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[Path, str]] = []
    monkeypatch.setattr(finetune, "run", lambda workspace, fraction: seen.append((workspace, fraction)))
    assert main(["--workspace", str(tmp_path), "finetune", "--fraction", "0.1"]) == 0
    assert seen == [(tmp_path, "0.1")]


def test_a_step_is_passed_to_a_replay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[Path, int]] = []
    monkeypatch.setattr(replay, "run", lambda workspace, step: seen.append((workspace, step)))
    assert main(["--workspace", str(tmp_path), "replay", "12"]) == 0
    assert seen == [(tmp_path, 12)]


@pytest.mark.parametrize("name", STAGES)
def test_the_module_of_a_stage_takes_what_the_command_line_gives(name: str) -> None:
    stage = STAGES[name]
    given = [argument.lstrip("-") for argument in stage.arguments]
    assert list(signature(import_module(stage.module).run).parameters) == ["workspace", *given]


@pytest.mark.parametrize("stage", ["initial", "linear_eval", "export", "compare", "latency"])
def test_every_stage_can_be_started(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--workspace", str(tmp_path), stage]) == 2  # there is nothing in the workspace
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")


def raising(error: BaseException) -> object:
    def run(workspace: Path) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (
            MissingArtifactError("models/pretrained: no such directory"),
            2,
            "error: models/pretrained: no such directory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "models"), 2, "error: models: No space left on device; free"),
        (PermissionError(errno.EACCES, "Permission denied", "reports"), 2, "error: reports: Permission denied; give"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures_that_a_person_can_repair_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, expected: str
) -> None:
    monkeypatch.setattr(pretrain, "run", raising(error))
    assert main(["pretrain"]) == code
    captured = capsys.readouterr().err
    assert captured.startswith(expected)
    assert captured.count("\n") == bool(expected)


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ZeroDivisionError(), OSError(errno.EIO, "Input/output error")):
        monkeypatch.setattr(pretrain, "run", raising(error))
        with pytest.raises(type(error)):
            main(["pretrain"])


def test_a_missing_params_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--workspace", str(tmp_path), "pretrain"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'params.yaml'}: no such file; in a workspace, restore it with `git ")


@pytest.mark.parametrize(
    "arguments", [[], ["pretrian"], ["finetune"], ["pretrain", "--fraction", "0.1"], ["replay", "last"]]
)
def test_a_faulty_command_line_is_2_and_help_is_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: " in capsys.readouterr().err


def test_help_shows_every_stage_without_torch() -> None:
    program = (
        "import sys; from simclr_core.__main__ import STAGES, main\n"
        "try: main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for stage in ("finetune --fraction 0.01", "replay 1234", *(STAGES.keys() - {"finetune", "replay"})):
        assert f"python -m simclr_core {stage}" in done.stdout
