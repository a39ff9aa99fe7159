"""Hold the manifest against the data contract.

Great Expectations takes seconds to import, so that only the function ``evaluate`` does it.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from math import isnan
from typing import TYPE_CHECKING, Any

from pipeline.validation.drift import Drift, Shape, Statistic
from pipeline.validation.expectations import NO_REASON, Expectation, Severity

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SAMPLES = 10
RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": SAMPLES,
    "return_unexpected_index_query": False,
}
"""Without names of index columns, Great Expectations returns our index as it is, fifty times faster."""


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation.

    ``observed`` is the share of rows that conform, or the aggregate itself. With an ``error`` nothing is known.
    """

    name: str
    suite: str
    severity: Severity
    success: bool
    observed: float | str | None
    threshold: str
    unexpected_count: int | None
    sample_ids: list[str]
    error: str | None


def tables(manifest: "pa.Table", drift: Drift) -> dict[str, "pd.DataFrame"]:
    """What the rules are about: all files, the accepted ones, those by split, and what was compared to see drift.

    The unnamed index is the file id, or the name of what was compared.
    """
    files = manifest.to_pandas()
    files.index = list(files["file_id"])
    files["reason"] = [reasons[0] if len(reasons) else NO_REASON for reasons in files["reasons"]]
    files["quarantined"] = (files["verdict"] == "quarantine").astype("float64")
    files["extension_matches"] = ["extension_mismatch" not in found for found in files["warnings"]]
    accepted = files[files["verdict"] != "quarantine"].copy()
    train, test = (accepted[accepted["split"] == split] for split in ("train", "test"))
    accepted["leaks"] = accepted["pixel_hash"].isin(set(train["pixel_hash"]) & set(test["pixel_hash"]))
    test = test.assign(class_known=test["label"].isna() | test["label"].isin(set(train["label"])))
    frames = {"manifest": files, "accepted": accepted, "train": train, "test": test}
    return frames | {"drift": _frame(drift.statistics, Statistic), "shapes": _frame(drift.shapes, Shape)}


def _frame(records: Sequence[Statistic] | Sequence[Shape], kind: type) -> "pd.DataFrame":
    import pandas as pd

    rows = [asdict(record) for record in records]
    return pd.DataFrame(rows, [str(record) for record in records], [field.name for field in fields(kind)])


def evaluate(rules: Sequence[Expectation], frames: Mapping[str, "pd.DataFrame"]) -> list[Outcome]:
    """Hold the frames against the rules; one outcome per rule, in their order.

    Nothing is stored and nothing leaves this machine.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # 1.24 sends nothing; earlier versions did unless told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports modules that Python has deprecated
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
        from great_expectations.expectations.metadata_types import FailureSeverity

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_or_update_pandas("validation")
    found: dict[str, Any] = {}
    for (suite, table), group in groupby(rules, key=lambda rule: (rule.suite, rule.table)):
        name = f"{suite} of {table}"
        expected = [
            ExpectationConfiguration(
                rule.type, dict(rule.arguments), {"name": rule.name}, severity=FailureSeverity(rule.severity)
            ).to_domain_obj()
            for rule in group
        ]
        definition = gx.ValidationDefinition(
            name=name,
            data=source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all"),
            suite=context.suites.add(gx.ExpectationSuite(name=name, expectations=expected)),
        )
        validated: Any = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": frames[table]}, result_format=RESULT_FORMAT
        )
        found |= {result.expectation_config.meta["name"]: result for result in validated.results}
    return [_outcome(rule, found.get(rule.name)) for rule in rules]


def passed(outcomes: Sequence[Outcome]) -> bool:
    """May the pipeline go on?"""
    return all(outcome.success or (outcome.severity != "critical" and not outcome.error) for outcome in outcomes)


def _outcome(rule: Expectation, result: Any | None) -> Outcome:
    details: dict[str, Any] = {} if result is None else result.result
    count = details.get("unexpected_count")
    return Outcome(
        name=rule.name,
        suite=rule.suite,
        severity=rule.severity,
        success=result is not None and bool(result.success),
        observed=_observed(details),
        threshold=rule.threshold,
        unexpected_count=None if count is None else int(count),
        sample_ids=[str(one) for one in details.get("partial_unexpected_index_list", [])][:SAMPLES],
        error="Great Expectations returned no result for it" if result is None else _error(result.exception_info),
    )


def _observed(details: Mapping[str, Any]) -> float | str | None:
    if "unexpected_count" in details:
        considered = details["element_count"] - details.get("missing_count", 0)
        return round(1 - details["unexpected_count"] / considered, 6) if considered else None
    observed = details.get("observed_value")
    if isinstance(observed, list):
        missing = details.get("details", {}).get("mismatched", {}).get("missing", [])
        return f"without {', '.join(missing)}" if missing else f"{len(observed)} columns"
    return None if observed is None or isnan(observed) else round(float(observed), 6)


def _error(exception_info: Mapping[str, Any]) -> str | None:
    """Great Expectations gives one record, or one per metric that could not be computed."""
    records = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    messages = [str(record["exception_message"]) for record in records if record["raised_exception"]]
    return " ".join(messages[0].split()) if messages else None
