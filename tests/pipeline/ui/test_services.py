"""The services behind `simclr ui`, as they really run: guarded, watched over, and killed in every way."""

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.storage.tags import MAX_RETRIES_TAG, WILL_RETRY_TAG
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from benchmarks.pipeline import soak
from benchmarks.pipeline.soak import STEPS_TAG, VERSION, Stack, wait_for
from pipeline.dvc.client import exclusive
from pipeline.environment import RUN
from pipeline.errors import ServiceError
from pipeline.runs.descendants import descendants
from pipeline.ui.services import serve
from pipeline.workspace import Workspace
from tests.browser import browser
from tests.conftest import TINY_PARAMS, write_prepared
from tests.processes.busy import stretched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Status = dg.DagsterRunStatus
OPERATOR, VIEWER = "correct horse", "battery staple"
CREDENTIALS = base64.b64encode(f":{OPERATOR}".encode()).decode()
STEPS = 160  # 8 s, in which also a busy machine finds the time to stop a run
LAUNCH = """
mutation($job: String!, $tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "pipeline.definitions", repositoryName: "__repository__", jobName: $job},
    runConfigData: "{}", executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
LIVE_LOG = """
subscription($run: ID!) {
  pipelineRunLogs(runId: $run) { ... on PipelineRunLogsSubscriptionSuccess { messages { __typename } } }
}"""
CANCEL = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The services of one workspace, with files in it that are named as modules they import."""
    root = tmp_path_factory.mktemp("ui") / "my pictures – ähm"
    root.mkdir()
    soak.make_workspace(root)
    write_prepared(root)
    settings = TINY_PARAMS | {"pretrain": TINY_PARAMS["pretrain"] | {"epochs": 400}}  # type: ignore[operator]
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    for name in ("graphql", "gql", "yaml", "uvicorn", "grpc", "psutil", "random"):
        (root / f"{name}.py").write_text("raise SystemExit('this file must not be imported')")
    environment = {
        "SIMCLR_UI_PASSWORD": OPERATOR,
        "SIMCLR_UI_VIEWER_PASSWORD": VIEWER,
        "SIMCLR_PROCESSES": "2",
        "OMP_NUM_THREADS": "1",
    }
    made = Stack(root, "tests.pipeline.ui.services_definitions", environment, password=OPERATOR)
    with soak.running(made):
        made.wait_until_ready()
        yield made


@pytest.fixture(scope="module")
def instance(stack: Stack) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(stack.root)) as made:
        yield made


def launch(stack: Stack, job: str, name: str = "") -> str:
    stack.wait_until_ready()
    tags = [{"key": VERSION, "value": name}, {"key": STEPS_TAG, "value": str(STEPS)}] if name else []
    launched = stack.graphql(LAUNCH, job=job, tags=tags)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def status(instance: dg.DagsterInstance, run_id: str) -> Status:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def steps(stack: Stack, name: str) -> list[str]:
    file = stack.root / "steps" / name
    return file.read_text().split() if file.exists() else []


def lineage(instance: dg.DagsterInstance, name: str) -> list[Status]:
    """Its runs, the latest first."""
    return [run.status for run in instance.get_runs(dg.RunsFilter(tags={VERSION: name}))]


def post(stack: Stack, url: str, body: bytes | None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{stack.port}{url}", body)
    lines = {"Authorization": f"Basic {CREDENTIALS}"} | {key.replace("_", "-"): text for key, text in headers.items()}
    for key, text in lines.items():
        request.add_header(key, text)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_no_other_page_can_launch_a_run_with_the_operators_browser(stack: Stack, instance: dg.DagsterInstance) -> None:
    inline = LAUNCH.partition("{")[2].replace("$job", '"train"').replace("$tags", "[]")
    query = "mutation {" + inline
    body = json.dumps({"query": query}).encode()
    get = f"/graphql?query={urllib.request.quote(query)}"
    attacks = [
        post(stack, get, None),
        post(stack, get, None, Origin="http://evil.example"),
        post(stack, get, b"", Content_Type="text/plain"),
        post(stack, "/graphql", body, Content_Type="text/plain"),
        post(stack, "/graphql", query.encode(), Content_Type="application/graphql"),
        post(stack, "/graphql", body, Content_Type="application/x-www-form-urlencoded"),
        post(stack, "/graphql", body, Content_Type="application/json", Origin="http://evil.example"),
        post(stack, "/graphql", body, Content_Type="application/json", Host="evil.example"),
    ]
    assert [code for code, _ in attacks] == [403] * len(attacks), attacks
    assert all(text.strip() and len(text.splitlines()) == 1 for _, text in attacks)
    assert post(stack, "/", None, Authorization="")[0] == 401
    assert instance.get_runs_count() == 0
    assert post(stack, "/graphql", body, Content_Type="application/json")[0] == 200  # the same from no page at all
    assert instance.get_runs_count() == 1
    for run in instance.get_runs():
        instance.delete_run(run.run_id) if run.is_finished else instance.run_coordinator.cancel_run(run.run_id)


def test_a_viewer_can_read_everything_and_change_nothing(stack: Stack, instance: dg.DagsterInstance) -> None:
    viewer = Stack(stack.root, "", password=VIEWER)
    viewer.port = stack.port
    before = instance.get_runs_count()
    credentials = {"Authorization": "Basic " + base64.b64encode(f":{VIEWER}".encode()).decode()}
    for mutation in (LAUNCH, "mutation { setNuxSeen }", "query a { version } mutation b { c: setNuxSeen }"):
        body = json.dumps({"query": mutation, "variables": {"job": "train", "tags": []}, "operationName": "b"}).encode()
        code, text = post(stack, "/graphql", body, Content_Type="application/json", **credentials)
        assert (code, "a viewer changes nothing" in text) == (400, True)
    assert instance.get_runs_count() == before
    shown = viewer.graphql("{ assetsOrError { ... on AssetConnection { nodes { key { path } } } } }")
    assert {"key": {"path": ["trained"]}} in shown["assetsOrError"]["nodes"]


def test_addresses_of_nothing_are_not_found(stack: Stack) -> None:
    for path in ("/logs/x", "/logs/x/y", "/logs/x/compute_logs/y.err", "/download_debug/x", "/download_debug/"):
        assert post(stack, path, None)[0] == 404, path


def test_a_person_logs_in_and_sees_the_ui_in_a_browser(stack: Stack, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(f"http://127.0.0.1:{stack.port}/assets")
        page.wait_for("Password", "Log in")
        for password, shown in (("a guess", "wrong password"), (OPERATOR, "Overview")):
            page.evaluate(
                f"document.forms[0].password.value = {password!r}; void setTimeout(() => document.forms[0].submit())"
            )
            page.wait_for(shown)
        page.open(f"http://127.0.0.1:{stack.port}/assets")
        page.wait_for("trained", "broken")
        assert page.evaluate("document.cookie") == ""  # no script can read the session
        page.open(f"http://127.0.0.1:{stack.port}/sessions")
        page.wait_for("Sessions · my pictures – ähm", "operator", "127.0.0.1")
        page.evaluate("void setTimeout(() => document.forms[0].submit())")
        page.wait_for("Password", "Log in")


def test_services_restart_one_by_one_without_affecting_a_run_or_its_live_log(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    run_id = launch(stack, "train", "undisturbed")
    wait_for(lambda: len(steps(stack, "undisturbed")) > 3, 240, "the training")
    for name in ("daemon", "code"):
        assert stack.kill(name) == 1
    with live_log(stack, run_id, f"http://127.0.0.1:{stack.port}") as connection:
        wait_for(lambda: "ExecutionStepStartEvent" in str(connection.recv(timeout=30)), 120, "a live event")
    assert stack.kill("web") == 1
    wait_for(lambda: len(stack.pids("daemon", "code", "web")) == 3, 120, "all three services")
    stack.wait_until_ready()
    wait_for(lambda: status(instance, run_id) is Status.SUCCESS, 120, "the end of the run")
    assert lineage(instance, "undisturbed") == [Status.SUCCESS]
    assert steps(stack, "undisturbed") == [str(step) for step in range(STEPS)]
    with pytest.raises(InvalidStatus, match="403"), live_log(stack, run_id, "http://evil.example"):
        pass


@contextmanager
def live_log(stack: Stack, run_id: str, origin: str) -> Iterator[ClientConnection]:
    """What the UI opens to show the log of a run as it grows."""
    with connect(
        f"ws://127.0.0.1:{stack.port}/graphql",
        origin=Origin(origin),
        subprotocols=[Subprotocol("graphql-ws")],
        additional_headers={"Authorization": f"Basic {CREDENTIALS}"},
        proxy=None,
    ) as connection:
        connection.send(json.dumps({"type": "connection_init"}))
        payload = {"query": LIVE_LOG, "variables": {"run": run_id}}
        connection.send(json.dumps({"type": "start", "id": "1", "payload": payload}))
        yield connection


def test_a_killed_worker_is_replaced_within_half_a_minute_and_continues(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    run_id = launch(stack, "train", "killed")
    wait_for(lambda: len(steps(stack, "killed")) > 3, 240, "the training")
    assert stack.kill("worker") == 1
    began = time.monotonic()
    wait_for(lambda: not descendants(RUN, run_id), 240, "the end of its stage")
    made = len(steps(stack, "killed"))
    assert 3 < made < STEPS
    wait_for(lambda: lineage(instance, "killed") == [Status.SUCCESS, Status.FAILURE], 240, "the second run")
    assert time.monotonic() - began < stretched(30)
    assert steps(stack, "killed") == [str(step) for step in range(STEPS)]


def test_a_failed_stage_is_not_tried_again(stack: Stack, instance: dg.DagsterInstance) -> None:
    run_id = launch(stack, "fail")

    def decided() -> bool:
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        return any("Not retrying run since it failed" in entry.get_dagster_event().message for entry in events)

    wait_for(decided, 240, "the daemon's decision")
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert (run.status, run.tags[WILL_RETRY_TAG]) == (Status.FAILURE, "false")
    assert MAX_RETRIES_TAG not in run.tags


def test_after_everything_was_killed_the_run_continues_from_its_checkpoint(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    launch(stack, "train", "reboot")
    waiting = launch(stack, "train", "queued")
    wait_for(lambda: len(steps(stack, "reboot")) > 3, 240, "the training")
    stack.kill_all()
    made = len(steps(stack, "reboot"))
    stack.start()
    wait_for(lambda: len(steps(stack, "reboot")) > made, 240, "the next step")
    wait_for(lambda: lineage(instance, "reboot") == [Status.SUCCESS, Status.FAILURE], 240, "the end of the run")
    wait_for(lambda: status(instance, waiting) is Status.SUCCESS, 240, "the run that was in the queue")
    for name in ("reboot", "queued"):
        assert steps(stack, name) == [str(step) for step in range(STEPS)]


def test_cancel_during_pretraining_in_two_processes_leaves_nothing_and_the_next_run_continues(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    stack.wait_until_ready()
    run_id = launch(stack, "pretrain")
    checkpoints = stack.root / ".simclr" / "runs"
    wait_for(lambda: len(_ranks(run_id)) == 2 and any(checkpoints.rglob("step-*")), 240, "a checkpoint of two ranks")
    processes = descendants(RUN, run_id)
    assert len(processes) >= 4  # the worker, torch's launcher and two ranks
    assert stack.graphql(CANCEL, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    began = time.monotonic()
    wait_for(lambda: status(instance, run_id) is Status.CANCELED, 120, "the run's end")
    psutil.wait_procs(processes, timeout=stretched(30))
    assert descendants(RUN, run_id) == []
    assert time.monotonic() - began < stretched(30)
    with exclusive(stack.root, "this test"):
        pass
    assert "continuing from step" not in (stack.root / "pretrain.log").read_text()
    again = launch(stack, "pretrain")
    wait_for(lambda: "continuing from step" in (stack.root / "pretrain.log").read_text(), 240, "the checkpoint's use")
    stack.graphql(CANCEL, run=again)
    wait_for(lambda: status(instance, again) is Status.CANCELED, 240, "the run's end")


def _ranks(run_id: str) -> list[psutil.Process]:
    return [process for process in descendants(RUN, run_id) if "RANK" in process.environ()]


def test_definitions_are_loaded_again_from_the_ui(stack: Stack) -> None:
    query = '{ assetNodes(assetKeys: [{path: ["broken"]}]) { description } }'
    stack.wait_until_ready()
    assert stack.graphql(query) == {"assetNodes": [{"description": "as it was"}]}
    (stack.root / "note").write_text("changed")
    reload = 'mutation { reloadRepositoryLocation(repositoryLocationName: "pipeline.definitions") { __typename } }'
    assert stack.graphql(reload)["reloadRepositoryLocation"]["__typename"] == "WorkspaceLocationEntry"
    changed = {"assetNodes": [{"description": "changed"}]}
    wait_for(lambda: stack.graphql(query) == changed, 240, "the new definitions")  # at a high load they load twice


def test_a_workspace_has_its_services_once_and_a_port_too(stack: Stack, tmp_path: Path) -> None:
    assert stack.process is not None
    with pytest.raises(ServiceError, match=rf"process {stack.process.pid} at http://127.0.0.1:{stack.port}"):
        serve(Workspace(stack.root))
    with pytest.raises(ServiceError, match=rf"127.0.0.1:{stack.port}: cannot listen there"):
        serve(Workspace(tmp_path), port=stack.port)


def test_ctrl_c_ends_the_services_in_seconds_and_no_run(stack: Stack, instance: dg.DagsterInstance) -> None:
    run_id = launch(stack, "train", "left alone")
    wait_for(lambda: len(steps(stack, "left alone")) > 3, 240, "the training")
    began = time.monotonic()
    stack.stop()
    assert time.monotonic() - began < stretched(8)
    assert stack.pids("code", "daemon", "web") == []
    assert stack.process is not None
    assert stack.process.returncode == 0
    wait_for(lambda: status(instance, run_id) is Status.SUCCESS, 120, "the end of the run")
    stack.start()


def test_runs_that_end_with_the_services_save_first_and_resume_at_the_next_start(
    stack: Stack, instance: dg.DagsterInstance
) -> None:
    stack.stop()
    stack._environment["SIMCLR_UI_STOP_RUNS"] = "1"
    stack.start()
    stack.wait_until_ready()
    run_id = launch(stack, "train", "stopped")
    wait_for(lambda: len(steps(stack, "stopped")) > 3, 240, "the training")
    assert stack.process is not None
    stack.process.terminate()
    assert stack.process.wait(30) == 0
    assert descendants(RUN, run_id) == []
    assert len(steps(stack, "stopped")) < STEPS
    stack.start()
    wait_for(lambda: lineage(instance, "stopped") == [Status.SUCCESS, Status.FAILURE], 240, "the end of the run")
    assert steps(stack, "stopped") == [str(step) for step in range(STEPS)]
