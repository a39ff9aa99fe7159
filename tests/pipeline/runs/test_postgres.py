"""Dagster's history in a real PostgreSQL: runs, the queue and the sensor, also across a restart of the database."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import pytest
import yaml
from dagster_postgres.utils import DagsterPostgresException

from benchmarks.pipeline.soak import wait_for
from pipeline.runs.retention import forget_runs
from pipeline.workspace import Workspace
from tests.postgres import PASSWORD, Database, running_database

VARIABLE = "SIMCLR_POSTGRES_URL"
STORAGE = {"storage": {"postgres": {"postgres_url": {"env": VARIABLE}}}}
DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.op
def work(context):
    context.log.info("worked")

@dg.job
def tiny():
    work()

@dg.sensor(job=tiny, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def batches(context):
    for batch in Path(__file__).with_name("batches").read_text().split():
        yield dg.RunRequest(run_key=batch, tags={"batch": batch})

defs = dg.Definitions(jobs=[tiny], sensors=[batches])
"""


@dg.asset
def made() -> None:
    pass


@dg.asset_check(asset=made)
def sound() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@pytest.fixture
def database() -> Iterator[Database]:
    with running_database() as server:
        yield server


@pytest.fixture
def workspace_on_postgres(workspace: Workspace) -> Workspace:
    settings = yaml.safe_load((workspace.root / "dagster.yaml").read_text())
    (workspace.root / "dagster.yaml").write_text(yaml.safe_dump(settings | STORAGE))
    (workspace.root / "tiny.py").write_text(DEFINITIONS)
    (workspace.root / "batches").write_text("one")
    return workspace


@pytest.mark.slow
def test_queue_sensor_and_records_survive_a_restart_of_the_database(
    workspace_on_postgres: Workspace, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace_on_postgres.root
    # SQLAlchemy 2.1 takes `postgresql://` for psycopg 3, and dagster-postgres brings psycopg2.
    monkeypatch.setenv(VARIABLE, database.address.replace("://", "+psycopg2://"))
    monkeypatch.setenv("DAGSTER_HOME", str(root))
    log = root / "daemon.log"
    command = [sys.executable, "-m", "dagster._daemon", "run", "--python-file", str(root / "tiny.py")]
    with dg.DagsterInstance.from_config(str(root)) as instance, log.open("wb") as output:

        def succeeded(batch: str) -> bool:
            found = instance.get_runs(dg.RunsFilter(tags={"batch": batch}))
            return [run.status for run in found] == [dg.DagsterRunStatus.SUCCESS]

        daemon = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
        try:
            wait_for(lambda: succeeded("one"), 60, "the first run ends")
            database.stop()
            with pytest.raises(DagsterPostgresException, match="DB connection") as raised:
                instance.get_runs()
            assert PASSWORD not in f"{raised.value} {raised.value.__cause__}"
            (root / "batches").write_text("one two")
            database.start()
            wait_for(lambda: succeeded("two"), 60, "the second run ends")
            assert daemon.poll() is None
        finally:
            daemon.send_signal(signal.SIGINT)
            daemon.wait(60)
        assert len(instance.get_runs()) == 2
        (selector,) = instance.all_instigator_state()
        ticks = instance.get_ticks(selector.instigator_origin_id, selector.selector_id)
        assert {key for tick in ticks for key in tick.run_keys} == {"one", "two"}
        messages = [entry.user_message for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
        assert messages.count("worked") == 2
        runs = [dg.materialize([made, sound], instance=instance).run_id for _ in range(2)]
        forget_runs(instance, root, runs[:1])
        results = instance.event_log_storage.get_asset_check_execution_history(sound.check_key, limit=10)
        assert [one.run_id for one in results] == runs[1:]
    assert not (root / "history").exists()
    files = [path for path in root.rglob("*") if path.is_file()]
    assert [str(path) for path in files if PASSWORD.encode() in path.read_bytes()] == []


def test_without_the_variable_nothing_starts_and_nothing_is_stored_elsewhere(
    workspace_on_postgres: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = workspace_on_postgres.root
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(dg.DagsterInvalidConfigError, match=VARIABLE):
        dg.DagsterInstance.from_config(str(root))
    assert not (root / "history").exists()
