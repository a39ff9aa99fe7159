"""The data contract, as data: what must hold for a set of images before anything is trained on it.

Five suites of Great Expectations. A critical expectation that fails stops the pipeline, a warning or an info does not.
One that cannot be evaluated is an error, and an error stops the pipeline whatever its severity. Great Expectations
passes over nulls, so each critical expectation on a column has a twin, ``<column>_present``.

The suites decide about the set; which file is quarantined is for ``verdict`` to say, since Great Expectations lists
only some of the rows that fail. Importing this module imports nothing heavy: see ``evaluate`` for that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

from deploy.image_faults import FORMATS
from pipeline.validation.config import ValidateConfig
from pipeline.validation.verdict import DARK_P99, LIGHT_P05, REASONS

Severity = Literal["critical", "warning", "info"]

NO_REASON = "none"
READ_BY_PREPARE = ("sha256", "batch", "path", "split", "label", "operations", "width", "height")

IN_SET = "expect_column_values_to_be_in_set"
NOT_IN_SET = "expect_column_values_to_not_be_in_set"
BETWEEN = "expect_column_values_to_be_between"
PRESENT = "expect_column_values_to_not_be_null"
UNIQUE = "expect_column_values_to_be_unique"
MEAN = "expect_column_mean_to_be_between"
COLUMNS = "expect_table_columns_to_match_set"
ROWS = "expect_table_row_count_to_be_between"
NOT_BELOW = "expect_column_pair_values_a_to_be_greater_than_b"


@dataclass(frozen=True)
class Expectation:
    """One rule on one of the tables of ``evaluate.tables``. ``type`` and ``arguments`` are Great Expectations' own."""

    name: str
    suite: str
    table: str
    severity: Severity
    type: str
    arguments: Mapping[str, Any]

    @property
    def threshold(self) -> str:
        """What is asked for, in a few words."""
        arguments = self.arguments
        words = {UNIQUE: ["unique"], PRESENT: ["present"], NOT_IN_SET: ["not"], COLUMNS: ["with"]}.get(self.type, [])
        words += [f"{arguments['column_B']} <= its {arguments['column_A']}"] if self.type == NOT_BELOW else []
        words += [f">= {arguments['min_value']:g}"] if "min_value" in arguments else []
        words += [f"<= {arguments['max_value']:g}"] if "max_value" in arguments else []
        values = [str(value) for value in arguments.get("value_set", arguments.get("column_set", ()))]
        words += [" or ".join(values) if len(values) <= 3 else f"{len(values)} known values"] if values else []
        words += [f"for {100 * arguments['mostly']:g} %"] if "mostly" in arguments else []
        return " ".join(words)


def expectations(config: ValidateConfig) -> tuple[Expectation, ...]:
    """All rules, with unique names; a critical rule on a column is followed by its twin, unless the column has one."""
    suites = _manifest_suite(), _files_suite(config), _accepted_suite(config), _splits_suite(config), _drift_suite()
    return _with_twins(chain.from_iterable(suites))


def _manifest_suite() -> list[Expectation]:
    """Is the manifest whole?"""
    rule = partial(_rule, "manifest", "manifest")
    return [
        rule("file_id_unique", "critical", UNIQUE, "file_id"),
        rule("split_known", "critical", IN_SET, "split", value_set=["train", "test"]),
        rule("verdict_known", "critical", IN_SET, "verdict", value_set=["accept", "convert", "quarantine"]),
        rule("reason_known", "critical", IN_SET, "reason", value_set=[NO_REASON, *REASONS]),
    ]


def _files_suite(config: ValidateConfig) -> list[Expectation]:
    """Are the files, by and large, what they should be?"""
    rule = partial(_rule, "files", "manifest")
    most = round(1 - config.max_quarantine_rate, 6)
    dark, light = DARK_P99 * 255, LIGHT_P05 * 255
    return [
        rule("decodes", "critical", IN_SET, "decodes", value_set=[True], mostly=most),
        rule("decodes_almost_always", "warning", IN_SET, "decodes", value_set=[True], mostly=0.999),
        rule("decoders_survive", "critical", NOT_IN_SET, "reason", value_set=["worker_crash", "timeout"], mostly=0.99),
        rule("few_bombs", "warning", NOT_IN_SET, "reason", value_set=["bomb", "metadata_bomb"], mostly=0.999),
        rule("format_known", "critical", IN_SET, "format", value_set=list(FORMATS), mostly=most),
        rule("short_side", "critical", BETWEEN, "short_side", min_value=config.min_side, mostly=most),
        rule("aspect", "critical", BETWEEN, "aspect", max_value=config.max_aspect, mostly=most),
        rule("quarantine_rate", "critical", MEAN, "quarantined", max_value=config.max_quarantine_rate),
        rule("quarantine_rate_low", "warning", MEAN, "quarantined", max_value=0.01),
        rule("has_content", "warning", NOT_IN_SET, "reason", value_set=["low_information"], mostly=0.98),
        rule("extension_matches", "warning", IN_SET, "extension_matches", value_set=[True], mostly=0.995),
        rule("not_dark", "warning", BETWEEN, "luma_p99", min_value=dark, mostly=0.95),
        rule("not_light", "warning", BETWEEN, "luma_p05", max_value=light, mostly=0.95),
        rule("has_colour", "info", MEAN, "saturation", min_value=1),
        rule("no_trailing_bytes", "info", IN_SET, "trailing_bytes", value_set=[0], mostly=0.99),
        rule("no_gps", "info", IN_SET, "has_gps", value_set=[False]),
    ]


def _accepted_suite(config: ValidateConfig) -> list[Expectation]:
    """Is what was accepted fit for training, whatever the verdicts were based on?"""
    rule = partial(_rule, "accepted", "accepted")
    return [
        rule("accepted_columns", "critical", COLUMNS, column_set=READ_BY_PREPARE, exact_match=False),
        rule("accepted_decodes", "critical", IN_SET, "decodes", value_set=[True]),
        rule("accepted_short_side", "critical", BETWEEN, "short_side", min_value=config.min_side),
        rule("accepted_aspect", "critical", BETWEEN, "aspect", max_value=config.max_aspect),
        rule("accepted_bytes_unique", "critical", UNIQUE, "sha256"),
        rule("accepted_pixels_unique", "critical", UNIQUE, "pixel_hash"),
    ]


def _splits_suite(config: ValidateConfig) -> list[Expectation]:
    """Are training and test set apart, and usable?"""
    return [
        _rule("splits", "accepted", "no_split_leak", "critical", IN_SET, "leaks", value_set=[False]),
        _rule("splits", "train", "enough_training_images", "critical", ROWS, min_value=config.min_images),
        _rule("splits", "test", "test_labelled", "warning", PRESENT, "label"),
        _rule("splits", "test", "test_classes_known", "warning", IN_SET, "class_known", value_set=[True]),
    ]


def _drift_suite() -> list[Expectation]:
    """Does the newest batch look like the earlier ones? Both tables are without rows where that cannot be judged."""
    ordered: dict[str, Any] = {"column_A": "threshold", "column_B": "effect", "or_equal": True}
    return [
        _rule("drift", "drift", "no_drift", "warning", NOT_BELOW, **ordered),
        _rule("drift", "shapes", "not_broken", "critical", IN_SET, "found", value_set=[False]),
    ]


def _rule(
    suite: str, table: str, name: str, severity: Severity, type: str, column: str | None = None, **arguments: Any
) -> Expectation:
    return Expectation(name, suite, table, severity, type, {"column": column, **arguments} if column else arguments)


def _with_twins(rules: Iterable[Expectation]) -> tuple[Expectation, ...]:
    """Add, after the first critical rule on a column, one that asks for it in as many rows as that rule does."""
    complete: dict[str, Expectation] = {}
    for rule in rules:
        complete[rule.name] = rule
        column = rule.arguments.get("column")
        if rule.severity == "critical" and column:
            name = f"{'accepted_' if rule.table == 'accepted' else ''}{column}_present"
            share = {"mostly": rule.arguments["mostly"]} if "mostly" in rule.arguments else {}
            complete.setdefault(name, _rule(rule.suite, rule.table, name, "critical", PRESENT, column, **share))
    return tuple(complete.values())
