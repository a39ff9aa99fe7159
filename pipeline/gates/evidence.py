"""What all gates share: they judge the numbers that the stages have committed, block what follows, and keep a record.

Each is a check of its own rather than part of a stage, so that it can be repeated without computing anything, and also
holds when DVC skips the stage.
"""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import dagster as dg

from pipeline.defs.translator import POOL, asset_key
from pipeline.errors import PipelineError
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.config import GatesConfig

Report = dict[str, Any]


class Evidence:
    """What a gate may look at; ``path`` is the file it has asked for last, relative to the workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.path = ""

    def report(self, path: str) -> Report:
        """One report. Take what you need from it before you ask for the next one: ``path`` names who lacks it."""
        self.path = path
        text = (self.workspace.root / path).read_text(encoding="utf-8")
        content: Report = json.loads(text, parse_constant=_refuse)
        return content

    def reports(self, pattern: str) -> Iterator[Report]:
        """The reports of a stage that writes several, such as ``reports/finetune-*.json``, by name, at least one."""
        self.path = pattern
        found = sorted(self.workspace.root.glob(pattern))
        if not found:
            raise FileNotFoundError
        for path in found:
            yield self.report(path.relative_to(self.workspace.root).as_posix())

    def limits(self) -> "GatesConfig":
        """The thresholds, as ``params.yaml`` has them now."""
        from pipeline import params

        return params.read(self.workspace).gates


Judge = Callable[[Evidence], dg.AssetCheckResult]


def gate(asset: str, rejects: bool = True) -> Callable[[Judge], dg.AssetChecksDefinition]:
    """Make a blocking check of the asset at this path out of a judge, whose docstring is what the UI says of it.

    A report that is missing, unreadable or without the numbers in question does not pass. With ``rejects``, a verdict
    against the candidate is recorded in the registry; that a report is missing says nothing about the candidate.
    """

    def decorate(judge: Judge) -> dg.AssetChecksDefinition:
        name, words = judge.__name__, inspect.getdoc(judge)

        @dg.asset_check(name=name, asset=asset_key(asset), description=words, blocking=True, pool=POOL)
        def check(
            context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
        ) -> dg.AssetCheckResult:
            evidence = Evidence(workspace)
            try:
                result = judge(evidence)
            except PipelineError as error:
                result = _failed(str(error))
            except FileNotFoundError:
                result = _failed(f"{evidence.path} does not exist; run the stage that writes it")
            except (OSError, ValueError) as error:
                result = _failed(f"{evidence.path} cannot be read: {error}; run the stage that writes it again")
            except (LookupError, TypeError, AttributeError) as error:
                result = _failed(f"{evidence.path} lacks what this check needs: {error!r}; was an older version here?")
            else:
                if rejects and not result.passed:
                    _reject(context, workspace, name, result)
            context.log.info(f"{name}: {'passed' if result.passed else 'FAILED'}, {result.description}")
            return result

        return check

    return decorate


def _reject(
    context: dg.AssetCheckExecutionContext, workspace: Workspace, gate: str, result: dg.AssetCheckResult
) -> None:
    """Record the verdict. If that fails, the gate still blocks, and the log says that the record is missing."""
    from deploy.artifact import identity
    from deploy.errors import DeployError
    from pipeline.release.registry import open_registry

    values = {name: entry.value for name, entry in (result.metadata or {}).items()}
    metrics = {name: value for name, value in values.items() if isinstance(value, int | float)}
    try:
        candidate = identity(workspace.root / "models" / "pretrained")[:12]
        open_registry(workspace).reject(candidate, gate, result.description or "", context.run.run_id, metrics)
    except (DeployError, PipelineError, OSError) as error:
        context.log.error(f"{gate}: the rejection could not be recorded: {error}")


def _failed(description: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description=description)


def _refuse(constant: str) -> NoReturn:
    """Python's JSON has NaN and infinity, which no comparison with a threshold would notice."""
    raise ValueError(f"{constant} is not a number")
