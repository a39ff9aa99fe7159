"""Where a run failed and why: what a failed gate leaves in the UI, and what Dagster has recorded of any failure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from deploy.plural import listed
from pipeline.defs.pages import show

SHOWN_GATES = 8  # that did not pass; a report that cannot be read fails every check that reads it
ADVICE = "reports/run.html has the numbers, and advice"


class GateFailure(dg.Failure):
    """The last error of a step whose gates did not pass: one sentence, the next step, and a link to the report, in
    place of Dagster's count of them with a traceback.

    Args:
        sentences: of each gate that did not pass, why; at least one.
        next_step: what a person does.
        report: the page that has the numbers, if there is one.
    """

    def __init__(
        self, instance: dg.DagsterInstance, sentences: Sequence[str], next_step: str, report: Path | None
    ) -> None:
        shown = {"report": show(instance, report)} if report and report.is_file() else {}
        said = f"{listed(sentences, SHOWN_GATES, '; ')}; nothing that follows has run"
        super().__init__(said, {"next step": next_step, **shown}, allow_retries=False)


@dataclass(frozen=True)
class Explanation:
    """``place`` is "stage pretrain" or "gate data_contract", and empty where no step failed; ``reason`` is one line;
    ``busy``: another process held the workspace."""

    place: str
    reason: str
    busy: bool = False


BUSY = "simclr/busy"  # in the metadata of a failure


def explain(instance: dg.DagsterInstance, run_id: str) -> Explanation:
    """The first gate that stopped the run, else the first step that failed, else what became of its process."""
    kinds = {
        dg.DagsterEventType.ASSET_CHECK_EVALUATION,
        dg.DagsterEventType.STEP_FAILURE,
        dg.DagsterEventType.RUN_FAILURE,
    }
    events = [entry.get_dagster_event() for entry in instance.all_logs(run_id, of_type=kinds)]
    for event in events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if check.blocking and not check.passed:
                return Explanation(f"gate {check.check_name}", _line(check.description or "did not pass"))
    for event in events:
        if event.event_type == dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            foreseen = data.user_failure_data
            given = foreseen.description if foreseen else None
            error = data.error.cause or data.error if data.error else None
            busy = bool(foreseen and BUSY in foreseen.metadata)
            return Explanation(f"stage {event.step_key}", _line(given or (error.message if error else "")), busy)
    ended = [event.message or "" for event in events if event.event_type == dg.DagsterEventType.RUN_FAILURE]
    return Explanation("", _line(next(iter(ended), "")))


def _line(text: str) -> str:
    return " ".join(text.split())
