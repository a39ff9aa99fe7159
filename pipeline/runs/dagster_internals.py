"""Every name of Dagster's that is not part of its public API, so that an upgrade that moves one breaks this file alone.

The web server takes seconds to import, so that only ``web_application`` does it.
"""

from datetime import datetime
from typing import Any

import dagster as dg
from dagster._cli.api import execute_run_command
from dagster._core.events import DagsterEvent
from dagster._core.instance.ref import InstanceRef
from dagster._core.instance.types import MayHaveInstanceWeakref
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._core.scheduler.instigation import InstigatorState, ScheduleInstigatorData, SensorInstigatorData
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, MAX_RETRIES_TAG, ROOT_RUN_ID_TAG, WILL_RETRY_TAG
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, deserialize_value, serialize_value
from dagster._serdes.config_class import ConfigurableClassData
from dagster._utils.schedules import get_latest_completed_cron_tick

__all__ = [
    "AUTO_RETRY_RUN_ID_TAG",
    "DAEMON",
    "IO_TYPE_EXTENSION",
    "MAX_RETRIES_TAG",
    "ROOT_RUN_ID_TAG",
    "WILL_RETRY_TAG",
    "CapturedLogContext",
    "CheckRunHealthResult",
    "ComputeIOType",
    "ConfigurableClass",
    "ConfigurableClassData",
    "DagsterEvent",
    "ExecuteRunArgs",
    "InstanceRef",
    "InstigatorState",
    "LaunchRunContext",
    "LocalComputeLogManager",
    "RunLauncher",
    "ScheduleInstigatorData",
    "SensorInstigatorData",
    "WorkerStatus",
    "WorkspaceFileTarget",
    "WorkspaceProcessContext",
    "deserialize_value",
    "execute_run_command",
    "forget_check_results",
    "instance_of",
    "last_cron_tick",
    "serialize_value",
    "switched_on",
    "web_application",
    "web_version",
]

DAEMON = "dagster._daemon"  # to be run with ``python -m``


def instance_of(part: MayHaveInstanceWeakref[dg.DagsterInstance]) -> dg.DagsterInstance:
    """The records that a part of Dagster belongs to, such as a launcher."""
    return part._instance  # noqa: SLF001


def forget_check_results(instance: dg.DagsterInstance) -> int:
    """Remove what checks have found in runs that are forgotten, which Dagster keeps, but for the latest of each check.

    Returns:
        How many results.
    """
    # With SQLAlchemy and Alembic, a third of a second that each load of the definitions would pay.
    from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
    from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
    from sqlalchemy import func, select

    results, storage = AssetCheckExecutionsTable.c, instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as database:
        latest = database.execute(select(func.max(results.id)).group_by(results.asset_key, results.check_name))
        shown = [identity for (identity,) in latest]
        runs = [run for (run,) in database.execute(select(results.run_id).distinct())]
        gone = [run for run in runs if not instance.has_run(run)]
        rows = [
            AssetCheckExecutionsTable.delete().where(results.run_id == run, results.id.not_in(shown)) for run in gone
        ]
        return sum(database.execute(one).rowcount for one in rows)


def last_cron_tick(cron: str, timezone: str | None, before: datetime) -> datetime:
    """When a schedule had to tick last."""
    return get_latest_completed_cron_tick(cron, before, timezone)


def switched_on(state: InstigatorState) -> float | None:
    """Since when a sensor or schedule is on, in seconds since the epoch, as far as Dagster has recorded it."""
    data = state.instigator_data
    if isinstance(data, ScheduleInstigatorData):
        return data.start_timestamp
    return data.last_sensor_start_timestamp if isinstance(data, SensorInstigatorData) else None


def web_application(context: WorkspaceProcessContext, read_only: bool) -> Any:
    """Dagster's UI as an ASGI application.

    Args:
        read_only: refuse every mutation. Dagster's own permissions leave out those that it takes for harmless.
    """
    from dagster_webserver.webserver import DagsterWebserver
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, ValidationRule

    class QueriesAlone(ValidationRule):
        def enter_operation_definition(self, node: OperationDefinitionNode, *_: object) -> None:
            if node.operation is OperationType.MUTATION:
                self.report_error(GraphQLError("a viewer changes nothing; log in as the operator", node))

    class Webserver(DagsterWebserver[Any, Any]):
        def build_graphql_validation_rules(self) -> Any:
            rules = super().build_graphql_validation_rules()
            return [*rules, QueriesAlone] if read_only else rules

    return Webserver(context, live_data_poll_rate=2000).create_asgi_app()


def web_version() -> str:
    from dagster_webserver.version import __version__

    return str(__version__)
