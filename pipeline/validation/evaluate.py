"""Hold the manifest against the data contract.

The tables are polars; Great Expectations gets each as a pandas frame of the few columns that its rules look into, and
gives back numbers of rows. It takes seconds to import, so that only the function ``evaluate`` does it.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import polars as pl
from polars import selectors

from deploy.plural import counted
from pipeline.reports import Outcome
from pipeline.validation.drift.drift import Drift
from pipeline.validation.expectations import COLUMNS, NEAR_LABELS, NO_REASON, Expectation
from pipeline.validation.tables import age
from simclr_core.data import label_sets

if TYPE_CHECKING:
    import pandas as pd

ID = "id"
"""The column of every table that names its rows to a person: a file id, or what was compared."""

SAMPLES = 10
RESULT_FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": SAMPLES,
    "return_unexpected_index_query": False,
}
"""Without names of index columns, Great Expectations returns the numbers of rows as they are, fifty times faster."""

EARLIER_BATCHES = 3
"""This many earlier batches make a usual size."""


@dataclass(frozen=True)
class Evaluation:
    """One outcome per rule, in their order, and by suite and table the results of Great Expectations' own."""

    outcomes: list[Outcome]
    results: dict[str, list[Any]]


def tables(manifest: pl.DataFrame, drift: Drift) -> dict[str, pl.LazyFrame]:
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
        "columns": manifest.clear().lazy().with_columns(pl.lit("").alias(ID)),
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
    used = _known(files.filter(pl.col("verdict").ne_missing("quarantine")), "sha256")
    first = files.filter(pl.col("sha256").is_first_distinct())
    return first.with_columns(
        quarantined=~pl.col("sha256").is_in(used), stream_intact=pl.col("stream_fault").is_null()
    ).with_columns(fault=pl.when("quarantined").then("reason").otherwise(pl.lit(NO_REASON)))


def _in_both(train: pl.LazyFrame, test: pl.LazyFrame, column: str) -> pl.Expr:
    """Whether training and test set both have a row's value; null where the row has none."""
    return pl.col(column).is_in(_known(train, column)) & pl.col(column).is_in(_known(test, column))


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports modules that Python has deprecated
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    found: dict[str, Outcome] = {}
    kept: dict[str, list[Any]] = {}
    groups: dict[tuple[str, str], list[Expectation]] = defaultdict(list)
    for rule in rules:
        groups[rule.suite, rule.table].append(rule)
    for (suite, table), group in groups.items():
        frame, ids = _frame(frames[table], group)
        title = f"{suite}: {table}"
        validation = _validate(context, title, group, frame)
        results = {result.expectation_config.meta["name"]: result for result in validation.results}
        found |= {rule.name: _outcome(rule, results.get(rule.name), ids) for rule in group}
        kept[title] = [results[rule.name] for rule in group if rule.name in results]
    return Evaluation([found[rule.name] for rule in rules], kept)


def _frame(table: pl.LazyFrame, rules: Sequence[Expectation]) -> tuple["pd.DataFrame", pl.Series]:
    """The columns that the rules look into, as pandas, and the ids of the rows.

    Numbers become float64, which Great Expectations compares as a whole column; of any other kind it takes the values
    one by one.
    """
    import pandas as pd

    names = table.collect_schema().names()
    asked = {column for rule in rules for column in (names if rule.type == COLUMNS else rule.columns)}
    rows = table.select(name for name in names if name == ID or name in asked).collect()
    columns = rows.drop(ID).cast({selectors.numeric(): pl.Float64()})
    frame = pd.DataFrame({column.name: column.to_pandas() for column in columns}, index=range(rows.height))
    return frame, rows[ID]


def _validate(context: Any, name: str, rules: Sequence[Expectation], frame: "pd.DataFrame") -> Any:
    import great_expectations as gx
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    expected = [
        ExpectationConfiguration(
            rule.type, dict(rule.arguments), {"name": rule.name}, severity=FailureSeverity(rule.severity)
        ).to_domain_obj()
        for rule in rules
    ]
    asset = context.data_sources.add_or_update_pandas("validation").add_dataframe_asset(name)
    definition = gx.ValidationDefinition(
        name=name,
        data=asset.add_batch_definition_whole_dataframe("all"),
        suite=context.suites.add(gx.ExpectationSuite(name=name, expectations=expected)),
    )
    return context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": frame}, result_format=RESULT_FORMAT
    )


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether the pipeline may continue."""
    return all(outcome.holds for outcome in outcomes)


def _outcome(rule: Expectation, result: Any | None, ids: pl.Series) -> Outcome:
    details: dict[str, Any] = {} if result is None else result.result
    count = details.get("unexpected_count")
    rows = list(details.get("partial_unexpected_index_list", []))[:SAMPLES]
    return Outcome(
        name=rule.name,
        suite=rule.suite,
        severity=rule.severity,
        success=result is not None and bool(result.success),
        observed=_observed(details),
        threshold=rule.threshold,
        unexpected_count=None if count is None else int(count),
        sample_ids=[str(one) for one in ids.gather(rows)],
        error="Great Expectations returned no result for it" if result is None else _error(result.exception_info),
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
