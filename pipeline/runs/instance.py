"""Dagster's records of a workspace: opened with one line of advice where that fails, and without secrets in them.

``dagster.yaml`` says where they are. What Dagster stores (events, runs, ticks, heartbeats, what a step printed) passes
through here on its way, in every process of the product: each hands ``reference`` to those that it starts.
"""

import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import UnsupportedOperation
from pathlib import Path
from subprocess import TimeoutExpired
from typing import IO, Any, Self, TextIO, TypeVar, cast

import dagster as dg
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import Engine

from deploy.lock import in_turn
from pipeline.redact import current_redactor, hide_all
from pipeline.runs import output
from pipeline.runs.dagster_internals import (
    IO_TYPE_EXTENSION,
    CapturedLogContext,
    ComputeIOType,
    ConfigurableClassData,
    InstanceRef,
    LocalComputeLogManager,
    deserialize_value,
    instance_of,
    serialize_value,
)
from pipeline.runs.database import foreseen, settings_foreseen
from pipeline.runs.sqlite import announce, keep_open

# Names and identities: without them Dagster would not find its own records again, and they hold no secret.
STRUCTURE = {
    "__class__", "__enum__", "__mapped_items__", "run_id", "root_run_id", "parent_run_id", "job_name", "step_key",
    "pipeline_name", "event_type_value", "status", "asset_key", "asset_check_key", "partition", "check_name",
    "node_handle", "solid_handle", "step_handle", "logging_tags", "daemon_type", "daemon_id", "instigator_origin_id",
    "selector_id", "instigator_name", "run_ids", "run_keys", "origin_run_ids", "timestamp", "log_key",
}  # fmt: skip
T = TypeVar("T")


event.listen(Engine, "connect", keep_open)  # of every engine: Dagster makes one for each statement
event.listen(Engine, "close", announce)

_migrations: dict[str | None, ScriptDirectory] = {}
_find_migrations = ScriptDirectory.from_config


def _remember_migrations(config: Config) -> ScriptDirectory:
    """Alembic imports Dagster's migrations, ninety files, each time that Dagster asks whether a database is current."""
    return _migrations.setdefault(config.get_main_option("script_location"), _find_migrations(config))


ScriptDirectory.from_config = _remember_migrations  # type: ignore[method-assign]


class RedactingInstance(dg.DagsterInstance):
    """Stores nothing that ``pipeline.redact`` takes for a secret."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._hide = current_redactor(Path(self.root_directory))
        add_run = self.run_storage.add_run  # Dagster goes to it by several ways
        self.run_storage.add_run = lambda dagster_run: add_run(_clean(dagster_run, self._hide))  # type: ignore[method-assign]

    def handle_new_event(self, event: Any, **options: Any) -> None:
        super().handle_new_event(_clean(event, self._hide), **options)

    def store_event(self, event: Any) -> None:
        super().store_event(_clean(event, self._hide))

    def add_run_tags(self, run_id: str, new_tags: Mapping[str, str]) -> None:
        super().add_run_tags(run_id, hide_all(new_tags, self._hide))

    def create_tick(self, tick_data: Any) -> Any:
        return super().create_tick(_clean(tick_data, self._hide))

    def update_tick(self, tick: Any) -> Any:
        return super().update_tick(_clean(tick, self._hide))

    def add_daemon_heartbeat(self, daemon_heartbeat: Any) -> None:
        super().add_daemon_heartbeat(_clean(daemon_heartbeat, self._hide))

    def add_backfill(self, partition_backfill: Any) -> None:
        super().add_backfill(_clean(partition_backfill, self._hide))

    def update_backfill(self, partition_backfill: Any) -> None:
        super().update_backfill(_clean(partition_backfill, self._hide))


class RedactingLogs(LocalComputeLogManager):
    """Keeps what steps, sensors and schedules print, in the same files as Dagster's own."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(inst_data=inst_data, **config_value)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        with ExitStack() as stack:
            for stream, kind in ((sys.stdout, ComputeIOType.STDOUT), (sys.stderr, ComputeIOType.STDERR)):
                path = Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                stack.enter_context(_captured(stream, Path(instance_of(self).root_directory), path))
            yield CapturedLogContext(log_key)
        complete: str = self.complete_artifact_path(log_key)  # type: ignore[no-untyped-call]
        Path(complete).touch()

    @contextmanager
    def open_log_stream(self, log_key: Sequence[str], io_type: ComputeIOType) -> Iterator[IO[bytes] | None]:
        hide = current_redactor(Path(instance_of(self).root_directory))
        with super().open_log_stream(log_key, io_type) as stream:
            yield None if stream is None else cast("IO[bytes]", _Clean(stream, hide))  # text, whatever they declare


class _Clean:
    """A text file that is written to in whole messages."""

    def __init__(self, stream: Any, hide: Callable[[str], str]) -> None:
        self._stream, self._hide = stream, hide

    def write(self, text: str) -> None:
        self._stream.write(self._hide(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def reference(root: Path) -> InstanceRef:
    """The settings in dagster.yaml, for ``DagsterInstance.from_ref``, in this process or another."""
    return redact_records(InstanceRef.from_dir(str(root)))


def redact_records(settings: InstanceRef) -> InstanceRef:
    ours = ConfigurableClassData(__name__, RedactingInstance.__name__, "{}\n")
    logs = settings.compute_logs_data
    if (logs.module_name, logs.class_name) == (LocalComputeLogManager.__module__, LocalComputeLogManager.__name__):
        logs = logs._replace(module_name=__name__, class_name=RedactingLogs.__name__)
    return settings._replace(custom_instance_class_data=ours, compute_logs_data=logs)


@contextmanager
def opened(root: Path) -> Iterator[dg.DagsterInstance]:
    """The records of the workspace at ``root``.

    Raises:
        ServiceError: they cannot be reached or read, now or later in the block; it says where they are, and what to do.
    """
    with foreseen(root):
        # Each process makes the tables that are missing: of two at once, one would find them made while it makes them.
        with settings_foreseen(root), in_turn(root):
            instance = dg.DagsterInstance.from_ref(reference(root))
        with instance:
            yield instance


def _clean(value: T, hide: Callable[[str], str]) -> T:
    """A record of Dagster's without secrets; the same one if it has none."""
    text = serialize_value(cast("Any", value))
    if hide(text) == text:
        return value
    return cast("T", deserialize_value(json.dumps(_walk(json.loads(text), hide))))


def _walk(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {hide(key): inner if key in STRUCTURE else _walk(inner, hide) for key, inner in value.items()}
    if isinstance(value, list):
        return [_walk(inner, hide) for inner in value]
    return hide(value) if isinstance(value, str) else value


@contextmanager
def _captured(stream: TextIO, root: Path, path: Path) -> Iterator[None]:
    """What is written to the stream, also by other processes, goes into the file and where it went before."""
    try:
        descriptor = stream.fileno()
    except (UnsupportedOperation, AttributeError):  # nothing that a process could write to
        yield
        return
    stream.flush()
    before = os.dup(descriptor)
    try:
        with output.started(root, path, echo=before) as process:
            assert process.stdin is not None
            os.dup2(process.stdin.fileno(), descriptor)
        try:
            yield
        finally:
            stream.flush()
            os.dup2(before, descriptor)
            with suppress(TimeoutExpired):  # a process that was left behind may still have it open
                process.wait(output.PATIENCE)
    finally:
        os.close(before)
