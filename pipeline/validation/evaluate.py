"""Hold the manifest against the data contract.

The tables are polars, and so is what is counted in them (``counts``); Great Expectations decides from the counts. It
takes seconds to import, so that only the function ``evaluate`` does it.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import polars as pl

from deploy.plural import counted
from pipeline.reports import Outcome
from pipeline.validation.counts import ID, SAMPLES, Counts, count
from pipeline.validation.drift.drift import Drift
from pipeline.validation.expectations import NEAR_LABELS, NO_REASON, Expectation
from pipeline.validation.tables import Manifest, age
from simclr_core.data import label_sets

RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": SAMPLES,
    "return_unexpected_index_query": False,
}

EARLIER_BATCHES = 3
"""This many earlier batches make a usual size."""


@dataclass(frozen=True)
class Evaluation:
    """One outcome per rule, in their order, and by suite and table the results of Great Expectations' own."""

    outcomes: list[Outcome]
    results: dict[str, list[Any]]


def tables(manifest: Manifest, drift: Drift) -> dict[str, pl.LazyFrame]:
    """What the rules are about, from MANIFEST; each table has a column ``id``, the file id where rows are files.

    manifest, columns    every file; and the columns of all that, without rows
    contents             one row per SHA-256, by its first file; ``quarantined``: none of its files is used
    accepted             the files that are used; ``unreleased``: those that no person has released
    train, test          the accepted files by split
    batches              the newest batch, where there are enough earlier ones to tell their usual size
    drift, shapes        what was compared to see drift; empty where that could not be judged
    """
    files = manifest.lazy().with_columns(
        pl.col("file_id").alias(ID),
        pl.col("reasons").list.first().fill_null(NO_REASON).alias("reason"),
        (~pl.col("warnings").list.contains("extension_mismatch")).alias("extension_matches"),
        pl.when(pl.col("near_group").is_not_null(), pl.col("label").is_not_null())
        .then(~pl.col("warnings").list.contains("near_label_conflict"))
        .alias(NEAR_LABELS),
    )
    accepted = files.filter(pl.col("verdict").ne_missing("quarantine"))
    train, test = (accepted.filter(pl.col("split") == split) for split in ("train", "test"))
    copies = pl.when(pl.col("near_group").is_null()).then(1).otherwise(pl.len().over("near_group"))
    statistics = [(str(one), one.effect, one.threshold) for one in drift.statistics]
    shapes = [(str(one), one.found) for one in drift.shapes]
    return {
        "columns": manifest.lazy().head(0).with_columns(pl.lit("").alias(ID)),
        "manifest": files,
        "contents": _contents(files),
        "accepted": accepted.with_columns(
            leaks=_in_both(train, test, "pixel_hash"), nearly_leaks=_in_both(train, test, "near_group").fill_null(False)
        ),
        "unreleased": accepted.filter(~pl.col("warnings").list.contains("released")),
        "train": train.with_columns(near_copies=copies),
        "test": test.with_columns(
            class_known=pl.col("label").is_null() | _labels().list.set_difference(_known_labels(train)).list.len().eq(0)
        ),
        "batches": _batches(files),
        "drift": pl.LazyFrame(statistics, {ID: pl.String, "effect": pl.Float64, "threshold": pl.Float64}, orient="row"),
        "shapes": pl.LazyFrame(shapes, {ID: pl.String, "found": pl.Boolean}, orient="row"),
    }


def _contents(files: pl.LazyFrame) -> pl.LazyFrame:
    is_used = pl.col("verdict").ne_missing("quarantine")
    refused = _known(files.filter(~is_used), "sha256")
    used = _known(files.filter(is_used, pl.col("sha256").is_in(refused)), "sha256")
    first = files.filter(pl.col("sha256").is_first_distinct())
    return first.with_columns(
        quarantined=pl.col("sha256").is_in(refused) & ~pl.col("sha256").is_in(used),
        stream_intact=pl.col("stream_fault").is_null(),
    ).with_columns(fault=pl.when("quarantined").then("reason").otherwise(pl.lit(NO_REASON)))


def _in_both(train: pl.LazyFrame, test: pl.LazyFrame, column: str) -> pl.Expr:
    """Whether training and test set both have a row's value; null where the row has none."""
    return pl.col(column).is_in(_known(train.filter(pl.col(column).is_in(_known(test, column))), column))


def _known(table: pl.LazyFrame, column: str) -> pl.Series:
    """The values that a column has, as the one list that ``is_in`` asks for."""
    return table.select(pl.col(column).drop_nulls().unique()).collect().to_series().implode()


def _labels() -> pl.Expr:
    """The labels of each row as a list, of one label or of a set; null where it has none."""
    names = pl.col("label").str.split(label_sets.SEPARATOR)
    return names.list.filter(pl.element() != "")


def _known_labels(table: pl.LazyFrame) -> pl.Series:
    """All labels of the rows, as the one list that ``set_difference`` asks for."""
    return table.select(_labels().explode().drop_nulls().unique()).collect().to_series().implode()


def _batches(files: pl.LazyFrame) -> pl.LazyFrame:
    sizes = files.group_by(pl.col("ingest_batch").alias(ID)).len().sort(age(ID)).collect()
    earlier, newest = sizes[:-1], sizes[-1:]
    times = newest.with_columns(times_usual=pl.col("len") / earlier["len"].median())
    return (times if earlier.height >= EARLIER_BATCHES else times.clear()).lazy()


def evaluate(rules: Sequence[Expectation], frames: Mapping[str, pl.LazyFrame]) -> Evaluation:
    """Hold the tables against the rules.

    Nothing is stored and nothing leaves this machine.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # 1.24 sends nothing; earlier versions did by default
    found: dict[str, Outcome] = {}
    kept: dict[str, list[Any]] = {}
    groups: dict[tuple[str, str], list[Expectation]] = defaultdict(list)
    for rule in rules:
        groups[rule.suite, rule.table].append(rule)
    for (suite, table), group in groups.items():
        counts = count(frames[table], group)
        results = {rule.name: decide(rule, counts.get(rule.name)) for rule in group}
        found |= {rule.name: _outcome(rule, results[rule.name], counts.get(rule.name)) for rule in group}
        kept[f"{suite}: {table}"] = list(results.values())
    return Evaluation([found[rule.name] for rule in rules], kept)


def decide(rule: Expectation, counts: Counts | None) -> Any:
    """What Great Expectations' own expectation makes of the counts; an error without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports modules that Python has deprecated
        from great_expectations.core import ExpectationValidationResult
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
        from great_expectations.expectations.metadata_types import FailureSeverity

    severity = FailureSeverity(rule.severity)
    configuration = ExpectationConfiguration(rule.type, dict(rule.arguments), {"name": rule.name}, severity=severity)
    expectation = configuration.to_domain_obj()
    settings = {"result_format": RESULT_FORMAT}
    asked = expectation.get_validation_dependencies(runtime_configuration=settings).get_metric_configurations()
    try:
        if counts is None:
            raise LookupError(f"the table lacks the column {' or '.join(rule.columns)}")
        metrics = {one.id: counts.metric(one.metric_name) for one in asked}
    except LookupError as error:
        why = f"{error} is not counted" if isinstance(error, KeyError) else str(error)
        fault = {"raised_exception": True, "exception_message": why, "exception_traceback": ""}
        return ExpectationValidationResult(False, configuration, exception_info=fault)
    return expectation.metrics_validate(metrics, runtime_configuration=dict(settings))


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether the pipeline may continue."""
    return all(outcome.holds for outcome in outcomes)


def _outcome(rule: Expectation, result: Any, counts: Counts | None) -> Outcome:
    details: dict[str, Any] = result.result
    unexpected = details.get("unexpected_count")
    return Outcome(
        name=rule.name,
        suite=rule.suite,
        severity=rule.severity,
        success=bool(result.success),
        observed=_observed(details),
        threshold=rule.threshold,
        unexpected_count=None if unexpected is None else int(unexpected),
        sample_ids=list(counts.ids) if counts else [],
        error=_error(result.exception_info),
    )


def _observed(details: Mapping[str, Any]) -> float | str | None:
    if "unexpected_count" in details:
        considered = details["element_count"] - details.get("missing_count", 0)
        return round(1 - details["unexpected_count"] / considered, 6) if considered else None
    observed = details.get("observed_value")
    if isinstance(observed, list):
        mismatched = details.get("details", {}).get("mismatched", {})
        odd = [f"{kind} {', '.join(mismatched[kind])}" for kind in ("missing", "unexpected") if mismatched.get(kind)]
        return counted(len(observed), "column") + (f" ({'; '.join(odd)})" if odd else "")
    return None if observed is None or isnan(observed) else round(float(observed), 6)


def _error(exception_info: Mapping[str, Any]) -> str | None:
    """Great Expectations gives one record, or one per metric that could not be computed."""
    records = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    messages = [str(record["exception_message"]) for record in records if record["raised_exception"]]
    return " ".join(messages[0].split()) if messages else None
