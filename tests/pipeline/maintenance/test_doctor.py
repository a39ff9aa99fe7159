"""What `simclr doctor` sees in a workspace, and what it fixes: checked with the `dvc` that had refused to work."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from pipeline.dvc.client import exclusive, execute
from pipeline.errors import DvcError
from pipeline.maintenance import doctor
from pipeline.maintenance.doctor import Finding, examine
from pipeline.workspace import Workspace
from simclr_core.machine import devices
from tests.sentences import assert_plain

ACCELERATOR = doctor._accelerator
WAITING = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is examined elsewhere."""
    monkeypatch.setattr(doctor, "_accelerator", lambda: Finding("accelerator", True, "none"))


def seen(workspace: Workspace, name: str, repair: bool = False) -> Finding:
    (found,) = (finding for finding in examine(workspace.root, repair) if finding.name == name)
    assert_plain(found.detail)
    assert found.fix or (found.healthy and not found.warning)
    return found


def test_a_module_of_the_user_with_the_name_of_a_package_is_named(workspace: Workspace) -> None:
    assert "module names" not in {finding.name for finding in examine(workspace.root, repair=False)}
    (workspace.root / "pipeline.py").touch()
    found = seen(workspace, "module names")
    assert found.warning
    assert str(workspace.root / "pipeline.py") in found.detail


def write_rwlock(workspace: Workspace, text: str) -> Path:
    path = workspace.root / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def entry(pid: int) -> dict[str, object]:
    return {"pid": pid, "cmd": "dvc repro"}


@pytest.fixture
def bystander() -> Iterator[int]:
    """A living process that is not dvc."""
    with subprocess.Popen([sys.executable, "-c", WAITING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


@pytest.fixture
def working_dvc(workspace: Workspace, tmp_path: Path) -> Iterator[int]:
    """A living process that is a dvc as far as anyone can see, at work in the workspace."""
    program = tmp_path / "dvc"
    program.write_text(WAITING)
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, cwd=workspace.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def test_a_gpu_that_does_not_start_is_found_with_the_versions_of_driver_and_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(devices, "driver_version", lambda: "470.82.01")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = ACCELERATOR()
    assert not found.healthy
    assert f"but CUDA does not start: driver 470.82.01, torch {torch.__version__}" in found.detail
    assert "SIMCLR_DEVICE=cpu" in found.fix
    monkeypatch.setenv("SIMCLR_DEVICE", "cpu")
    assert ACCELERATOR() == Finding("accelerator", True, f"none, training runs on the CPU; torch {torch.__version__}")


def test_the_gpus_are_named_with_driver_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"NVIDIA H100 {number}")
    monkeypatch.setattr(devices, "driver_version", lambda: "580.65.06")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = ACCELERATOR()
    assert found.healthy
    assert found.detail.startswith(f"NVIDIA H100 0, NVIDIA H100 1; driver 580.65.06, torch {torch.__version__}")


@pytest.mark.seconds
@pytest.mark.parametrize("text", ["", '{"read": {"/a": [{"pid": 1', '{"write": {"/a": {"cmd": "x"}}}', "[1]", "null"])
def test_a_corrupt_rwlock_is_found_and_rebuilt(workspace: Workspace, text: str) -> None:
    path = write_rwlock(workspace, text)
    (workspace.root / "file").write_text("something")
    with pytest.raises(DvcError):
        execute(workspace.root, "add", "file")
    found = seen(workspace, "dvc locks")
    assert not found.healthy
    assert "it is corrupt" in found.detail
    assert found.fix == "simclr doctor --repair"
    assert path.read_text() == text
    assert seen(workspace, "dvc locks", repair=True).detail.endswith("it is rebuilt")
    execute(workspace.root, "add", "file")
    assert seen(workspace, "dvc locks").detail == "sound"


def test_only_lock_entries_of_running_processes_stay(workspace: Workspace, bystander: int, working_dvc: int) -> None:
    gone = next(number for number in range(300_000, 400_000) if not psutil.pid_exists(number))
    lock = {
        "read": {"/a": [entry(bystander), entry(working_dvc)], "/b": [entry(gone)]},
        "write": {"/c": entry(gone), "/d": entry(working_dvc)},
    }
    path = write_rwlock(workspace, json.dumps(lock))
    found = seen(workspace, "dvc locks")
    assert not found.healthy
    assert str(gone) in found.detail
    assert str(bystander) in found.detail
    assert str(working_dvc) not in found.detail
    seen(workspace, "dvc locks", repair=True)
    kept = {"read": {"/a": [entry(working_dvc)]}, "write": {"/d": entry(working_dvc)}}
    assert json.loads(path.read_text()) == kept


def test_a_process_number_reused_by_a_later_dvc_does_not_hold_the_lock(workspace: Workspace, working_dvc: int) -> None:
    path = write_rwlock(workspace, json.dumps({"read": {}, "write": {"/a": entry(working_dvc)}}))
    assert seen(workspace, "dvc locks").healthy
    os.utime(path, (1e9, 1e9))  # written long before that process began
    assert not seen(workspace, "dvc locks").healthy


def test_a_corrupt_rwlock_is_kept_while_a_dvc_may_need_it(workspace: Workspace, working_dvc: int) -> None:
    path = write_rwlock(workspace, "{half")
    found = seen(workspace, "dvc locks", repair=True)
    assert found.warning
    assert f"needed by dvc process {working_dvc}" in found.detail
    assert path.read_text() == "{half"
    with exclusive(workspace.root, "a run"):
        assert "busy with a run" in seen(workspace, "dvc locks", repair=True).detail
    assert path.read_text() == "{half"


@pytest.mark.slow
def test_the_lock_of_dvc_on_the_whole_workspace(workspace: Workspace) -> None:
    path = workspace.root / ".dvc" / "tmp" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("99999\n")  # left behind, but the kernel has freed it
    assert seen(workspace, "dvc at work").detail == "no process"
    code = "import sys; from zc.lockfile import LockFile; lock = LockFile(sys.argv[1]);" + WAITING
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert seen(workspace, "dvc at work").detail == f"process {holder.pid}"
    execute(workspace.root, "config", "core.hardlink_lock", "true")
    found = seen(workspace, "dvc at work")
    assert found.warning
    assert found.fix.startswith(f"rm '{path}'")


@pytest.mark.seconds
def test_remotes_without_verification_are_reported(workspace: Workspace, tmp_path: Path) -> None:
    none = seen(workspace, "remote")
    assert none.healthy
    assert none.warning
    assert str(none).startswith("warn  remote")
    execute(workspace.root, "remote", "add", "--default", "store", str(tmp_path / "store"))
    found = seen(workspace, "remote")
    assert not found.healthy
    assert "dvc remote modify store verify true" in found.fix
    execute(workspace.root, "remote", "add", "--local", "mine", str(tmp_path / "mine"))
    examine(workspace.root, repair=True)
    assert "verify = true" in (workspace.root / ".dvc" / "config").read_text()
    assert "verify = true" in (workspace.root / ".dvc" / "config.local").read_text()
    remotes = [finding for finding in examine(workspace.root) if finding.name == "remote"]
    assert [finding.detail for finding in remotes] == ["store, verified", "mine, verified"]


def test_a_missing_history_is_a_fault_and_an_untidy_one_a_warning(workspace: Workspace) -> None:
    assert seen(workspace, "history").detail == "not committed: 1 new or changed file"  # the tests' params.yaml
    subprocess.run(["git", "checkout", "--quiet", "--detach"], cwd=workspace.root, check=True)
    found = seen(workspace, "history")
    assert found.healthy
    assert found.warning
    assert found.detail.endswith("no branch is checked out")
    subprocess.run(["git", "switch", "--quiet", "-C", "main"], cwd=workspace.root, check=True)
    subprocess.run(["git", "checkout", "--quiet", "params.yaml"], cwd=workspace.root, check=True)
    assert seen(workspace, "history").detail == "branch main, all committed"
    (workspace.root / "data").mkdir()
    (workspace.root / "data" / "raw.dvc").write_text("outs: []")
    found = seen(workspace, "history")
    assert found.detail == "not committed: 1 new or changed file"
    assert found.fix == "git add --all && git commit", "its advice leaves nothing untracked"
    (workspace.root / "data" / "raw.dvc").unlink()
    shutil.rmtree(workspace.root / ".git")
    assert not seen(workspace, "history").healthy


def test_leftovers_of_killed_processes_are_removed(workspace: Workspace) -> None:
    folder = workspace.raw / ".0001.partial-abc"
    (folder / ".inner.partial-x").mkdir(parents=True)
    (workspace.raw / "0001").mkdir()
    assert seen(workspace, "leftovers").warning
    with exclusive(workspace.root, "an ingest"):
        assert "busy with an ingest" in seen(workspace, "leftovers", repair=True).detail
    assert folder.exists()
    assert seen(workspace, "leftovers", repair=True).detail == "removed 1 leftover of killed processes"
    assert [path.name for path in workspace.raw.iterdir()] == ["0001"]
    assert seen(workspace, "leftovers").detail == "none"


@pytest.mark.seconds
def test_the_budgets_of_params_yaml_are_compared_with_the_disk(workspace: Workspace) -> None:
    assert not seen(workspace, "usage").warning
    params = yaml.safe_load(workspace.params.read_text())
    params["storage"] = {"min_free_gigabytes": 1e6, "max_cache_gigabytes": 1e-12}
    workspace.params.write_text(yaml.safe_dump(params))
    (workspace.root / "file").write_text("something")
    execute(workspace.root, "add", "file")
    assert not seen(workspace, "disk").healthy
    assert seen(workspace, "usage").warning


def place(workspace: Workspace, text: str) -> None:
    (workspace.scratch / "compute.yaml").parent.mkdir(exist_ok=True)
    (workspace.scratch / "compute.yaml").write_text(text, encoding="utf-8")


def test_a_cluster_that_does_not_answer_is_a_fault(workspace: Workspace) -> None:
    assert list(doctor._clusters(workspace.root)) == []
    place(workspace, "pretrain: {engine: ray, workers: 2, address: '127.0.0.1:2'}\n")
    [found] = doctor._clusters(workspace.root)
    assert not found.healthy
    assert "no Ray cluster answers (127.0.0.1:2: ConnectionRefusedError)" in found.detail
    place(workspace, "pretrain: {engine: spark}\n")
    [found] = doctor._clusters(workspace.root)
    assert "pretrain.engine: given 'spark'" in found.detail


def test_what_is_wrong_on_a_node_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    place(workspace, "validate: {engine: ray}\nfinetune: {engine: ray, workers: 2}\n")
    monkeypatch.setattr(doctor.cluster_check, "check", lambda root, stages, address: (", ".join(stages), []))
    assert [str(one) for one in doctor._clusters(workspace.root)] == ["ok    cluster              validate, finetune"]
    monkeypatch.setattr(doctor.cluster_check, "check", lambda *_: ("", ["a has torch 1", "b does not answer"]))
    [found] = doctor._clusters(workspace.root)
    assert found.detail == "a has torch 1; b does not answer"
