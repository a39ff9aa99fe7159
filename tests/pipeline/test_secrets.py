"""Secrets planted wherever a person may put them are in nothing that is kept, and in nothing that is shown."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.scheduler.instigation import TickData, TickStatus
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_webserver.app import create_app_from_workspace_process_context

from benchmarks.pipeline.soak import wait_for
from pipeline.defs.alerts import describe
from pipeline.dvc.client import execute
from pipeline.dvc.project import load
from pipeline.environment import RUN
from pipeline.errors import DvcError, IngestError, StageFailedError
from pipeline.run import run
from pipeline.runs.descendants import descendants
from pipeline.runs.instance import opened
from pipeline.ui.web import ReloadingContext
from pipeline.ui.web_answers import clean
from pipeline.workspace import Workspace
from tests.pipeline.test_run import graph

__all__ = ["graph"]
CANARIES = {
    "variable": "canary-Variable-1",
    "local": "canary-Local-2",
    "committed": "canary-Committed-3",
    "signature": "canary-Signature-4",
    "bare": "canary-Bare-5",
}
GRAPH = """
stages:
  prepare:
    cmd: >-
      ls data/raw > prepared; echo "a story of $MY_TOKEN and $(cat .dvc/config.local) $(cat .dvc/config)";
      echo "progress with $MY_TOKEN" >> "$SIMCLR_EVENTS";
      if test -e fault; then echo "error: no luck with $MY_TOKEN" >&2; exit 2; fi
    deps: [data/raw]
    outs: [prepared]
  later:
    cmd: cp prepared later
    deps: [prepared]
    outs: [later]
"""
DEFINITIONS = """
import os, sys
import dagster as dg
from pipeline.defs.stage_assets import foreseen
from pipeline.errors import DvcError

SECRET = os.environ["MY_TOKEN"]

@dg.asset
def leaky(context) -> dg.MaterializeResult:
    print("printed", SECRET)
    os.system("echo from a child $MY_TOKEN >&2")
    context.log.info(f"logged {SECRET}")
    return dg.MaterializeResult(metadata={"note": SECRET, "table": dg.MetadataValue.json({"deep": [SECRET]})})

@dg.asset(deps=[leaky])
def foreseen_failure() -> None:
    with foreseen():
        raise DvcError(f"cannot use {SECRET}")

@dg.asset(deps=[leaky])
def traceback() -> None:
    try:
        raise OSError(f"http://user:{SECRET}@host/")
    except OSError as error:
        raise RuntimeError(f"because of {SECRET}") from error

@dg.sensor(job_name="leak")
def watcher(context):
    raise RuntimeError(f"sensor {SECRET}")

leak = dg.define_asset_job("leak", "*")
print("loading", SECRET, file=sys.stderr)
defs = dg.Definitions([leaky, foreseen_failure, traceback], jobs=[leak], executor=dg.in_process_executor)
"""


@pytest.fixture
def planted(graph: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("MY_TOKEN", CANARIES["variable"])
    monkeypatch.setenv("SIMCLR_WORKSPACE", str(graph.root))
    (graph.root / "dvc.yaml").write_text(GRAPH)
    url = f"webdavs://me:{CANARIES['committed']}@127.0.0.1:9/dvc"
    execute(graph.root, "remote", "add", "--default", "shared", url)
    (graph.root / ".dvc" / "config.local").write_text(f"['remote \"shared\"']\n    password = {CANARIES['local']}\n")
    return graph


def leaks(root: Path) -> list[str]:
    """Files that hold a canary in any form, but for those where a person has put it."""
    found = []
    for path in root.rglob("*"):
        if path.is_file() and path.parent.name != ".dvc":
            content = path.read_bytes()
            found += [f"{path.relative_to(root)}: {name}" for name, one in CANARIES.items() if one.encode() in content]
    return found


def rows(root: Path) -> str:
    """Everything in Dagster's databases, also what SQLite has not yet moved out of its journal."""
    found = []
    for path in [*root.glob("history/**/*.db"), *root.glob("schedules/*.db")]:
        with closing(sqlite3.connect(path)) as connection:
            found += list(connection.iterdump())
    return "\n".join(found)


def assert_clean(root: Path) -> None:
    assert leaks(root) == []
    assert [name for name, canary in CANARIES.items() if canary in rows(root)] == []


@pytest.mark.slow
def test_a_run_that_succeeds_and_one_that_fails_keep_no_secret(
    planted: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    run(planted)
    assert "a story of *** and" in (planted.root / ".simclr" / "logs" / "prepare.log").read_text()
    (planted.root / "fault").touch()
    (planted.inbox / "unlabeled" / "more.png").write_text("changes the raw images")
    with pytest.raises(StageFailedError, match=r"no luck with \*\*\*"):
        run(planted)
    with opened(planted.root) as instance:
        failed = instance.get_runs()[0]
        reported = describe(instance, failed)
    assert "no luck with ***" in " ".join(reported)
    assert_clean(planted.root)
    shown = capfd.readouterr()
    assert not [one for one in CANARIES.values() if one in shown.out + shown.err]


@pytest.mark.slow
def test_a_worker_its_events_its_pages_and_its_alert_hold_no_secret(planted: Workspace) -> None:
    root = planted.root
    (root / "leaks.py").write_text(DEFINITIONS)
    repository = ReconstructableRepository.for_file(str(root / "leaks.py"), "defs", str(root))
    job = ReconstructableJob(repository, "leak")
    with opened(root) as instance:
        run = instance.create_run_for_job(
            job.get_definition(),
            run_config={"loggers": {"console": {"config": {"name": CANARIES["variable"]}}}},
            tags={"note": CANARIES["variable"]},
            status=dg.DagsterRunStatus.STARTING,
            job_code_origin=job.get_python_origin(),
        )
        instance.run_launcher.launch_run(LaunchRunContext(run, None))
        wait_for(lambda: finished(instance, run.run_id), 60, "the end of the run")
        wait_for(lambda: not descendants(RUN, run.run_id), 30, "the end of its process")
        log = root / ".simclr" / "logs" / "runs" / f"{run.run_id}.log"
        wait_for(lambda: "loading ***" in log.read_text() and "printed ***" in log.read_text(), 120, "the log")
        record = instance.get_run_by_id(run.run_id)
        assert record is not None
        assert record.tags["note"] == "***"
        said = " ".join(entry.to_json() for entry in instance.all_logs(run.run_id))
        for words in ("logged ***", "cannot use ***", "because of ***", "http://***@host/"):
            assert words in said
        materialization = instance.get_latest_materialization_event(dg.AssetKey("leaky"))
        assert materialization is not None
        assert materialization.asset_materialization is not None
        assert materialization.asset_materialization.metadata["table"].value == {"deep": ["***"]}
        captured = "".join(path.read_text() for path in (root / "storage").rglob("compute_logs/*") if path.is_file())
        assert "printed ***" in captured
        assert "from a child ***" in captured
        assert all(canary not in " ".join(describe(instance, record)) for canary in CANARIES.values())
        page = ask(root, instance, "{ runsOrError { ... on Runs { results { runConfigYaml tags { value } } } } }")
        assert page.count("***") == 2
    (root / "leaks.py").unlink()
    assert_clean(root)


def finished(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is not None and run.is_finished


def ask(root: Path, instance: dg.DagsterInstance, query: str) -> str:
    """What the web server of the product answers."""
    with ReloadingContext(instance, EmptyWorkspaceTarget(), version="", read_only=False) as context:
        app = clean(create_app_from_workspace_process_context(context), root)
        return asyncio.run(post(app, json.dumps({"query": query}).encode()))


async def post(app: Any, body: bytes) -> str:
    parts: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        parts.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/graphql", "raw_path": b"/graphql", "query_string": b""}
    await app(scope | {"headers": headers, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
    return b"".join(parts).decode()


@pytest.mark.seconds
def test_ticks_heartbeats_and_what_sensors_log_are_cleaned_before_they_are_stored(planted: Workspace) -> None:
    secret = CANARIES["variable"]
    try:
        raise OSError(secret)
    except OSError as error:
        info = serializable_error_info_from_exc_info((OSError, error, error.__traceback__))
    with opened(planted.root) as instance:
        tick = instance.create_tick(
            TickData("origin", "watcher", InstigatorType.SENSOR, TickStatus.STARTED, 1.0, selector_id="s")
        )
        instance.update_tick(tick.with_status(TickStatus.FAILURE, error=info))
        instance.update_tick(tick.with_status(TickStatus.SKIPPED, skip_reason=f"no {secret}"))
        key = ["watcher", "1"]
        with instance.compute_log_manager.open_log_stream(key, ComputeIOType.STDERR) as stream:
            assert stream is not None
            stream.write(f"sensor {secret}\n")  # type: ignore[arg-type]
        (stored,) = instance.get_ticks("origin", "s")
        assert stored.skip_reason == "no ***"
    assert_clean(planted.root)


@pytest.mark.seconds
def test_a_signed_address_given_for_one_run_is_used_and_not_kept(planted: Workspace) -> None:
    source = f"http://127.0.0.1:9/images?sig={CANARIES['signature']}&page=1"
    with pytest.raises(IngestError, match=r"sig=\*\*\*&page=1: cannot be opened"):
        run(planted, ["raw_images"], sources=[source])
    assert "page=1" in rows(planted.root)
    assert_clean(planted.root)


@pytest.mark.seconds
def test_a_fault_in_dvc_files_is_reported_without_configured_secrets(planted: Workspace) -> None:
    stages = {"stages": {"one": {"cmd": "true", "outs": ["a"]}, CANARIES["local"]: {"cmd": "true", "outs": ["a"]}}}
    (planted.root / "dvc.yaml").write_text(yaml.safe_dump(stages))
    with pytest.raises(DvcError) as raised:
        load(planted.root)
    assert "***" in str(raised.value)
    assert CANARIES["local"] not in str(raised.value)


@pytest.mark.seconds
def test_an_error_that_was_never_stored_is_cleaned_and_stays_json(planted: Workspace) -> None:
    """As when the definitions do not load."""
    error = {"stack": [f'raise ValueError("{CANARIES["variable"]}")\\n', f"http://me:{CANARIES['bare']}@host/\\n"]}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        text = json.dumps(error).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": text[:30], "more_body": True})
        await send({"type": "http.response.body", "body": text[30:]})

    shown = json.loads(asyncio.run(post(clean(app, planted.root), b"{}")))
    assert shown == {"stack": ['raise ValueError("***")\\n', "http://***@host/\\n"]}


@pytest.mark.seconds
def test_live_messages_are_cleaned_and_pictures_are_not_touched(planted: Workspace) -> None:
    picture = bytes(range(256)) + CANARIES["variable"].encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.send", "text": json.dumps({"a": f'"{CANARIES["variable"]}"'})})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"image/png")]})
            await send({"type": "http.response.body", "body": picture})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    served = clean(app, planted.root)
    asyncio.run(served({"type": "websocket", "path": "/graphql"}, send, send))  # type: ignore[arg-type]
    asyncio.run(served({"type": "http", "path": "/a", "headers": []}, send, send))  # type: ignore[arg-type]
    assert json.loads(sent[0]["text"]) == {"a": '"***"'}
    assert sent[2]["body"] == picture
