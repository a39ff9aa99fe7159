"""`simclr run` behind its command line: what it says, what it leaves in Dagster's history, and how it fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from uuid import uuid4

import dagster as dg
import psutil
import pytest
from dagster._core.storage.tags import MAX_RETRIES_TAG

from deploy.artifact import publish
from pipeline.cli.main import run_cli
from pipeline.cli.status import look
from pipeline.costs import measured, record
from pipeline.costs.model import REST
from pipeline.dvc.client import Outcome, exclusive
from pipeline.errors import BusyError, DvcError, IngestError, StageFailedError
from pipeline.params import override, read
from pipeline.release.registry import open_registry
from pipeline.run import run
from pipeline.runs.instance import opened
from pipeline.runs.launcher import PROCESS, identify
from pipeline.workspace import Workspace
from simclr_core.reporter import read_timing
from tests.pipeline.costs.examples import MEASURED
from tests.pipeline.gates.reports import ALONE, CHAMPION, FINETUNE, LINEAR_EVAL, PRETRAIN
from tests.processes.alive import is_alive

# The first stages of the real graph, in seconds.
GRAPH = """
stages:
  prepare:
    cmd: ls data/raw > prepared; if test -e fault; then cat fault >&2; exit 2; fi
    deps: [data/raw]
    outs: [prepared]
  pretrain:
    cmd: mkdir -p models/pretrained reports && cp prepared models/pretrained/model && cp report reports/pretrain.json
    deps: [prepared, report]
    outs: [models/pretrained]
    metrics: [{reports/pretrain.json: {cache: false}}]
  finetune:
    matrix: {fraction: ["0.01", "0.1"]}
    cmd: cp models/pretrained/model finetuned-${item.fraction}
    deps: [models/pretrained]
    outs: ["finetuned-${item.fraction}"]
"""
ON_POSTGRES = "storage: {postgres: {postgres_url: {env: SIMCLR_POSTGRES_URL}}}\n"
STAGES = ["prepare", "pretrain", "finetune@0.01", "finetune@0.1"]


@pytest.fixture
def graph(filled: Workspace) -> Workspace:
    (filled.root / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (filled.root / "report").write_text(json.dumps(PRETRAIN), encoding="utf-8")
    return filled


def history(workspace: Workspace) -> list[dg.DagsterRunStatus]:
    """The runs that the UI shows, the latest first."""
    with dg.DagsterInstance.from_config(str(workspace.root)) as instance:
        return [record.status for record in instance.get_runs()]


@pytest.mark.slow
def test_a_run_goes_from_raw_images_to_the_last_stage_and_repeats_nothing(
    graph: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    measured.keep(graph.root, read(graph), MEASURED)
    first = run(graph)
    assert {name: result.outcome for name, result in first.stages.items()} == dict.fromkeys(STAGES, Outcome.EXECUTED)
    assert all(result.seconds > 0 for result in first.stages.values())
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["raw_images:", "class", "train", "test"]
    assert any(line.startswith("raw_images: 40 new images in batch 0001") for line in lines)
    assert [line.partition(" in ")[0] for line in lines if " executed in " in line] == [
        f"{name}: executed" for name in STAGES
    ]
    assert any(line.startswith("not_collapsed: passed: loss 5.1") for line in lines)

    assert any(line.startswith("raw_images: the run is expected to take ") for line in lines)
    assert_compared(graph)

    shutil.rmtree(graph.root / "models")
    second = run(graph)
    outcomes = {name: result.outcome for name, result in second.stages.items()}
    assert outcomes == dict.fromkeys(STAGES, Outcome.SKIPPED) | {"pretrain": Outcome.RESTORED}
    assert "raw_images: nothing new" in capfd.readouterr().out
    assert history(graph) == [dg.DagsterRunStatus.SUCCESS] * 2
    assert "not_collapsed" in (graph.reports / "run.html").read_text(encoding="utf-8")


def assert_compared(graph: Workspace) -> None:
    """What was expected of the first run is kept next to what each stage took, and both are shown."""
    seen = record.latest(graph.root)
    assert seen is not None
    assert list(seen.compared) == ["raw_images", *STAGES, REST]
    assert all(actual.seconds > 0 for _, actual in seen.compared.values())
    assert all(seen.actual[name].memory_bytes > 10_000_000 for name in STAGES)
    assert seen.actual["prepare"].disk_bytes > 0
    assert read_timing("prepare", graph.root).keys() >= {"whole_seconds", "memory_megabytes", "disk_megabytes"}
    page = (graph.reports / "run.html").read_text(encoding="utf-8")
    assert "Expected and real" in page
    assert "Nothing was expected" not in page
    (line,) = [line for line in str(look(graph)).splitlines() if line.startswith("latest run")]
    assert ", expected " in line


@pytest.mark.slow
def test_only_the_given_stages_and_their_gates_run(graph: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(run(graph, ["raw_images", "prepare", "pretrain"]).stages) == ["prepare", "pretrain"]
    assert "not_collapsed: passed" in capfd.readouterr().out
    assert set(run(graph, ["finetune"]).stages) == {"finetune@0.01", "finetune@0.1"}


@pytest.mark.seconds
def test_a_failed_stage_is_one_line_and_nothing_runs_after_it(
    graph: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    (graph.root / "fault").write_text("error: no luck\n")
    with pytest.raises(StageFailedError, match=r"^stage prepare: no luck \(full output: \.simclr/logs/prepare\.log"):
        run(graph)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert "pretrain" not in shown.out
    assert history(graph) == [dg.DagsterRunStatus.FAILURE]


@pytest.mark.seconds
def test_a_gate_that_does_not_pass_stops_the_run_and_says_why(graph: Workspace) -> None:
    (graph.root / "report").write_text(json.dumps(PRETRAIN | {"collapsed": True}), encoding="utf-8")
    with pytest.raises(
        StageFailedError, match="models/pretrained did not pass not_collapsed: all images have nearly the"
    ):
        run(graph)
    assert (graph.root / "models" / "pretrained").exists()
    assert not (graph.root / "finetuned-0.1").exists()
    assert history(graph) == [dg.DagsterRunStatus.FAILURE]
    seen = record.latest(graph.root)
    assert seen is not None
    assert seen.actual.keys() == {"raw_images", "prepare", "pretrain", REST}, "a run that was stopped has its costs too"


@pytest.mark.seconds
def test_every_gate_of_the_last_stage_that_fails_is_named_and_recorded(graph: Workspace) -> None:
    """Also for the first release: the second reason is not found only after a night of training for the first."""
    stage = {"cmd": "cp given reports/compare.json", "deps": ["given"], "metrics": ["reports/compare.json"]}
    (graph.root / "dvc.yaml").write_text(json.dumps({"stages": {"compare": stage}}))
    worse = {"trained_only": [100], "baseline_only": [300]}
    graph.reports.mkdir(exist_ok=True)
    (graph.root / "given").write_text(json.dumps(ALONE | {"megabytes": {"candidate": 4.2, "champion": None}}))
    paired = LINEAR_EVAL["paired"]
    counts = {"paired": paired | {"knn": paired["knn"] | {"pixels": worse}}}
    (graph.reports / "linear_eval.json").write_text(json.dumps(LINEAR_EVAL | counts))
    (graph.reports / "finetune-0.01.json").write_text(json.dumps(FINETUNE | {"paired": worse}))
    (graph.root / "models" / "champion").mkdir(parents=True)
    (graph.root / CHAMPION).write_text('{"version": null}')
    override(graph, {"gates.max_megabytes": "1.0"})
    with publish(graph.root / "models" / "pretrained") as work:
        (work / "model.json").write_text("{}")
    with pytest.raises(StageFailedError) as caught:
        run(graph, ["compare"])
    said = str(caught.value)
    assert "did not pass beats_baselines: worse: kNN 82.80 % against 92.80 % of raw pixels" in said
    assert "did not pass size_budget: 4.2 MB" in said
    assert said.endswith("; reports/run.html has the numbers, and advice")
    assert "did not pass low_label: 70.00 % with 80 labels, from scratch 80.00 %" in said
    (kept,) = open_registry(graph).rejections()
    assert set(kept.gate.split(", ")) >= {"beats_baselines", "low_label", "size_budget"}
    page = (graph.reports / "run.html").read_text(encoding="utf-8")
    assert f"Refused</strong> by <bdi>{kept.gate}" in page
    assert "worse: kNN 82.80 % against 92.80 % of raw pixels" in page


@pytest.mark.seconds
def test_errors_before_any_stage_keep_their_kind(graph: Workspace) -> None:
    with pytest.raises(DvcError, match="no stage 'train'"):
        run(graph, ["prepare", "train"])
    assert history(graph) == []
    with pytest.raises(IngestError, match="no-such-folder"):
        run(graph, sources=["no-such-folder"])
    with exclusive(graph.root, "another run"), pytest.raises(BusyError, match=f"process {os.getpid()}"):
        run(graph)


@pytest.mark.seconds
def test_a_second_run_is_refused_between_two_stages_too(graph: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    """The workspace is free there for a moment, in which the second one would ingest, or change parameters."""
    with subprocess.Popen(["sleep", "600"]) as other, opened(graph.root) as instance:
        tags = {PROCESS: identify(other.pid)}
        instance.add_run(dg.DagsterRun("retrain", run_id=str(uuid4()), status=dg.DagsterRunStatus.STARTED, tags=tags))
        with pytest.raises(BusyError, match=rf"run \w{{8}} is in progress in process {other.pid}; wait until it ends"):
            run(graph)
        other.kill()
    assert not graph.raw.exists()
    assert history(graph) == [dg.DagsterRunStatus.STARTED]
    before = graph.params.read_bytes()
    with exclusive(graph.root, "stage pretrain"):
        assert "busy with stage pretrain" in reported(graph, capfd, "run", "--set", "pretrain.epochs=100")
    assert graph.params.read_bytes() == before


@pytest.mark.seconds
@pytest.mark.parametrize("request_to_stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_leaves_no_stage_behind(graph: Workspace, request_to_stop: signal.Signals) -> None:
    stage = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
        "open('pid', 'w').write(str(os.getpid()))\n"
        "print('{\"message\": \"waiting\"}', file=open(os.environ['SIMCLR_EVENTS'], 'a'), flush=True)\n"
        "time.sleep(600)\n"
    )
    (graph.root / "wait.py").write_text(stage)
    (graph.root / "dvc.yaml").write_text("stages: {wait: {cmd: python wait.py, outs: [out]}}")
    with start(graph, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wait: waiting\n"
        process.send_signal(request_to_stop)
        _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    with pytest.raises(ProcessLookupError):
        os.kill(int((graph.root / "pid").read_text()), 0)
    assert history(graph) == [dg.DagsterRunStatus.FAILURE]


@pytest.mark.slow
def test_a_run_whose_process_was_killed_is_ended_by_the_next(graph: Workspace) -> None:
    wait = {"cmd": 'echo waiting >> "$SIMCLR_EVENTS"; exec sleep 600', "outs": ["out"]}
    following = {"cmd": "echo > next", "outs": ["next"]}
    (graph.root / "dvc.yaml").write_text(json.dumps({"stages": {"wait": wait, "next": following}}))
    with start(graph, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "wait: waiting\n"
        assert history(graph) == [dg.DagsterRunStatus.STARTED]
        process.kill()
        process.wait()
    left = [stage for stage in psutil.process_iter() if is_sleeping_in(stage, graph)]
    assert len(left) == 1  # no one was there to end it
    assert list(run(graph, ["next"]).stages) == ["next"]
    assert not is_alive(left[0].pid)
    assert history(graph) == [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def is_sleeping_in(process: psutil.Process, workspace: Workspace) -> bool:
    with suppress(psutil.Error):
        return process.name() == "sleep" and process.cwd() == str(workspace.root)
    return False


@pytest.mark.seconds
def test_an_error_that_an_asset_shows_as_a_failure_keeps_its_kind(
    graph: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StageFailedError("stage prepare: no luck")

    monkeypatch.setattr("pipeline.defs.stage_assets.repro", fail)
    with pytest.raises(StageFailedError, match=r"^stage prepare: no luck$"):
        run(graph, ["prepare"])


@pytest.mark.slow
def test_dagster_does_not_restart_a_run_started_at_the_terminal(graph: Workspace) -> None:
    (graph.root / "fault").write_text("error: no luck\n")
    with pytest.raises(StageFailedError):
        run(graph)
    with dg.DagsterInstance.from_config(str(graph.root)) as instance:
        (record,) = instance.get_runs()
    assert record.tags[MAX_RETRIES_TAG] == "0"
    assert record.tags[PROCESS] == identify(os.getpid())


@pytest.mark.slow
def test_a_run_continues_when_its_output_is_closed(graph: Workspace) -> None:
    """As with `simclr run | head -1`."""
    wait = {"cmd": 'echo first >> "$SIMCLR_EVENTS"; until test -e go; do sleep 0.1; done; echo > out', "outs": ["out"]}
    (graph.root / "dvc.yaml").write_text(json.dumps({"stages": {"wait": wait}}))
    with start(graph, "wait") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "wait: first\n"
        process.stdout.close()
        (graph.root / "go").touch()
        errors = process.stderr.read()
        assert (process.wait(60), errors) == (0, "")
    assert history(graph) == [dg.DagsterRunStatus.SUCCESS]


@pytest.mark.slow
def test_stage_output_is_in_the_logs_of_the_ui_and_not_on_the_terminal(graph: Workspace) -> None:
    (graph.root / "dvc.yaml").write_text("stages: {talk: {cmd: 'echo a long story; echo > out', outs: [out]}}")
    with start(graph, "talk") as process:
        output, errors = process.communicate(timeout=60)
    assert re.fullmatch(r"talk: executed in \d+\.\d s\n", output)
    assert not errors
    captured = [path.read_text() for path in (graph.root / "storage").rglob("*.out")]
    assert any("a long story" in text for text in captured)


def start(workspace: Workspace, stage: str) -> subprocess.Popen[str]:
    """`run` in its own process, with a terminal's file descriptors and signals."""
    code = "import pathlib, sys, pipeline.run as r; r.run(r.Workspace(pathlib.Path(sys.argv[1])), [sys.argv[2]])"
    command = [sys.executable, "-c", code, str(workspace.root), stage]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def reported(workspace: Workspace, capfd: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line that the command line says, with exit code 2."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["simclr", "--workspace", str(workspace.root), *command])
        assert run_cli() == 2
    shown = capfd.readouterr()
    assert "canary" not in shown.out + shown.err
    (line,) = shown.err.splitlines()
    return line


@pytest.mark.parametrize("command", [["run"], ["ui", "--port", "0"]])
def test_unreadable_run_records_are_one_line_naming_the_database(
    graph: Workspace, command: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(graph.root):
        pass
    (graph.root / "history" / "runs.db").write_bytes(b"no database" * 1000)
    damaged = reported(graph, capfd, *command)
    assert re.match(r"error: Dagster's records in SQLite, .*: history/runs.db cannot be read \(file is not a", damaged)
    settings = graph.root / "dagster.yaml"
    settings.write_text(settings.read_text() + ON_POSTGRES)
    monkeypatch.delenv("SIMCLR_POSTGRES_URL", raising=False)
    unset = "error: Dagster's records are in PostgreSQL, and SIMCLR_POSTGRES_URL is not set; set it to the address"
    assert reported(graph, capfd, *command).startswith(unset)
    settings.write_text("storage: [")
    assert "dagster.yaml: is not valid YAML" in reported(graph, capfd, *command)


@pytest.mark.slow
def test_an_unreachable_database_is_one_line_without_the_password(
    graph: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = graph.root / "dagster.yaml"
    settings.write_text(settings.read_text() + ON_POSTGRES)
    monkeypatch.setenv("SIMCLR_POSTGRES_URL", "postgresql+psycopg2://me:canary-password@127.0.0.1:9/dagster")
    refused = r"PostgreSQL \(SIMCLR_POSTGRES_URL\) cannot be reached: .* refused; start it, or correct"
    assert re.search(refused, reported(graph, capfd, "run"))
