"""Nothing is lost and nothing is done twice, whichever process is killed: SIGKILLs over many data versions.

    python -m benchmarks.pipeline.soak --kills 100 --versions 20 --seed 0

The real services, launcher and sensor mechanism in a workspace whose training counts its steps: it appends one line for
each, and continues after the last one. Version after version arrives; meanwhile the daemon, the code server, the web
server, the worker of the run, or all of them with their supervisor are killed at random moments. In the end there must
be, for every version, one lineage of runs of which one succeeded, and every step exactly once. Prints a JSON summary.
"""

import argparse
import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import yaml

from pipeline.dvc.client import exclusive
from pipeline.dvc.processes import supervised
from pipeline.runs.dagster_internals import DAEMON, ROOT_RUN_ID_TAG
from pipeline.runs.launcher import PROCESS
from pipeline.workspace import template

VERSION, STEPS_TAG = "soak/version", "soak/steps"  # tags of a run
STEPS, STEP_SECONDS = 120, 0.05
DEADLINE = 240.0  # seconds for a version whose killing is over
WORKER_SECONDS = 8.0  # how long to wait for one to kill
TARGETS = ("daemon", "code", "web", "worker", "all")
COMMANDS = {
    "code": "dagster api grpc",
    "daemon": DAEMON,
    "web": "pipeline.ui.web",
    "worker": "pipeline.runs.launcher",
}
# Appends each missing step; a step is one write, so a killed training leaves no half of one.
TRAINING = """
import os, sys, time
name, steps, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with open(name, "a+") as file:
    file.seek(0)
    done = len(file.readlines())
    for step in range(done, steps):
        file.write(f"{step}\\n"); file.flush(); os.fsync(file.fileno()); time.sleep(seconds)
"""


@dg.asset(pool="dvc", description="Takes some seconds, and remembers its steps.")
def trained(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
    root = Path(os.environ["DAGSTER_HOME"])
    file = root / "steps" / context.run.tags[VERSION]
    steps = context.run.tags.get(STEPS_TAG, str(STEPS))
    command = [sys.executable, "-S", "-c", TRAINING, str(file), steps, str(STEP_SECONDS)]
    with (
        exclusive(root, "training") as lock,
        supervised(command, root, os.environ, root / "training.log", 60.0, [lock.fileno()]) as process,
    ):
        if process.wait() != 0:
            raise dg.Failure("the training failed", allow_retries=False)
    return dg.MaterializeResult()


train = dg.define_asset_job("train", [trained])


@dg.sensor(job=train, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def new_version() -> dg.RunRequest | dg.SkipReason:
    file = Path(os.environ["DAGSTER_HOME"]) / "version"
    if not file.exists():
        return dg.SkipReason("no data yet")
    version = file.read_text()
    return dg.RunRequest(run_key=version, tags={VERSION: version})


defs = dg.Definitions(assets=[trained], jobs=[train], sensors=[new_version], executor=dg.in_process_executor)


class Stack:
    """The services of a workspace in their own process, as `simclr ui` runs them."""

    def __init__(
        self, root: Path, definitions: str, environment: Mapping[str, str] | None = None, password: str = ""
    ) -> None:
        self.root = root
        self._credentials = base64.b64encode(f":{password}".encode()).decode()
        self._definitions = definitions
        code = Path(__file__).resolve().parents[2]
        self._environment = {**os.environ, **(environment or {}), "PYTHONPATH": str(code)}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return at once; see ``wait_until_ready``."""
        code = (
            "import pathlib, sys; from pipeline.ui.services import serve; from pipeline.workspace import Workspace;"
            "serve(Workspace(pathlib.Path(sys.argv[1])), port=int(sys.argv[2]), definitions=sys.argv[3])"
        )
        command = [sys.executable, "-P", "-c", code, str(self.root), str(self.port), self._definitions]
        with (self.root / "supervisor.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=self._environment, stdout=log, stderr=log)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def wait_until_ready(self) -> None:
        """Until the UI knows the definitions."""

        def ready() -> bool:
            assert self.process is not None
            log = self.root / "supervisor.log"
            assert self.process.poll() is None, f"the services ended: {log.read_text(errors='replace')[-2000:]}"
            return self._locations() == "RepositoryLocation"

        wait_for(ready, DEADLINE, "the UI")

    def pids(self, *names: str) -> list[int]:
        """The processes of these services, or the ``worker``."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if any(f" -m {COMMANDS[name]}" in line for name in names) and process.cwd() == str(self.root):
                    found.append(process.pid)
        return found

    def kill(self, *names: str) -> int:
        """SIGKILL; returns how many there were."""
        pids = self.pids(*names)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def kill_all(self) -> None:
        """As when the machine goes down: stages too."""
        assert self.process is not None
        self.process.kill()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.cwd() == str(self.root):
                    process.kill()
        self.process.wait()

    def graphql(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/graphql", body)
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Basic {self._credentials}")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)["data"]

    def _locations(self) -> str:
        try:
            data = self.graphql("{workspaceOrError{...on Workspace{locationEntries{locationOrLoadError{__typename}}}}}")
        except OSError:
            return ""
        return str(data["workspaceOrError"]["locationEntries"][0]["locationOrLoadError"]["__typename"])


def free_port() -> int:
    """One that nothing listens on, below those that the system gives to connections: it stays free until it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"{what}: not after {seconds:g} s"
        time.sleep(0.1)
    return time.monotonic() - started


def make_workspace(root: Path, max_retries: int | None = None) -> None:
    """A folder with the product's dagster.yaml, and nothing of DVC."""
    settings = yaml.safe_load(template("dagster.yaml").read_text(encoding="utf-8"))
    if max_retries is not None:
        settings["run_retries"]["max_retries"] = max_retries
    (root / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    (root / "steps").mkdir()


@contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()
        stack.kill(*COMMANDS)


def soak(root: Path, kills: int, versions: int, seed: int, targets: Sequence[str] = TARGETS) -> dict[str, Any]:
    """See above; the summary's ``passed`` is the verdict."""
    chance = random.Random(seed)
    # A machine that kills a training 3 times in a row is broken; here it may happen.
    make_workspace(root, max_retries=10 * kills)
    started = time.monotonic()
    killed: Counter[str] = Counter()
    recoveries = []
    with (
        running(Stack(root, "benchmarks.pipeline.soak")) as stack,
        dg.DagsterInstance.from_config(str(root)) as instance,
    ):
        stack.wait_until_ready()
        for number in range(versions):
            name = f"version-{number + 1:03d}"
            (root / "version.new").write_text(name)
            (root / "version.new").replace(root / "version")
            for _ in range(kills * (number + 1) // versions - kills * number // versions):
                time.sleep(chance.uniform(0.2, 10.0))
                target = chance.choice(targets)
                if target == "worker":
                    with suppress(AssertionError):
                        wait_for(lambda: bool(stack.pids("worker")), WORKER_SECONDS, "a worker")
                        time.sleep(chance.uniform(0.0, 8.0))
                while target != "all" and not stack.kill(target):  # it is away just now
                    target = chance.choice([other for other in TARGETS if other != "worker"])
                if target == "all":
                    stack.kill_all()
                    stack.start()
                killed[target] += 1
            recoveries.append(wait_for(lambda name=name: _succeeded(instance, name), DEADLINE, name))  # type: ignore[misc]
        records = instance.get_runs()
    return {"seed": seed, "seconds": round(time.monotonic() - started, 1), "killed": dict(killed)} | _verdict(
        root, records, versions, recoveries
    )


def _succeeded(instance: dg.DagsterInstance, version: str) -> bool:
    wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], tags={VERSION: version})
    return bool(instance.get_runs(wanted, limit=1))


def _verdict(root: Path, runs: Sequence[dg.DagsterRun], versions: int, waits: Sequence[float]) -> dict[str, Any]:
    lineages = {run.tags.get(ROOT_RUN_ID_TAG, run.run_id) for run in runs}
    succeeded = Counter(run.tags[VERSION] for run in runs if run.status is dg.DagsterRunStatus.SUCCESS)
    steps = {file.name: file.read_text().split() for file in (root / "steps").iterdir()}
    expected = [str(step) for step in range(STEPS)]
    summary = {
        "versions": versions,
        "runs": len(runs),
        "lineages": len(lineages),
        "trainings": sum(succeeded.values()),
        "lost": versions - len(succeeded),
        "doubled": sum(count > 1 for count in succeeded.values()) + sum(lines != expected for lines in steps.values()),
        "unfinished": sum(not run.is_finished for run in runs),
        "without_process": sum(PROCESS not in run.tags for run in runs),
        "longest_wait_seconds": round(max(waits), 1),
    }
    wrong = ("lost", "doubled", "unfinished")
    passed = not any(summary[key] for key in wrong) and len(lineages) == versions == len(steps)
    return summary | {"passed": passed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the workspace, to look at it")
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="simclr-soak-")).resolve()
    try:
        summary = soak(root, given.kills, given.versions, given.seed)
    finally:
        if given.keep:
            print(root, file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(summary, indent=2))
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
