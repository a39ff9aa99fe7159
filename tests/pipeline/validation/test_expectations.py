"""The data contract as data: complete, named for good, and light to import."""

import subprocess
import sys

import pytest

from pipeline.config import ValidateConfig
from pipeline.validation.expectations import (
    COLUMNS,
    FACT_COLUMNS,
    FILE_COLUMNS,
    MEANINGS,
    PRESENT,
    expectations,
)
from pipeline.validation.tables import MANIFEST

DEFAULTS = ValidateConfig()
OTHERS = (
    ValidateConfig(max_quarantine_rate=0.0),
    ValidateConfig(max_quarantine_rate=1.0, min_side=200, max_aspect=2.0, min_images=0),
    ValidateConfig.model_validate({"near_duplicates": {"enabled": False}, "drift": {"enabled": False}}),
)


@pytest.mark.parametrize("config", [DEFAULTS, *OTHERS])
def test_each_critical_rule_on_a_column_has_a_rule_for_missing_values(config: ValidateConfig) -> None:
    """Great Expectations passes over nulls: without a twin, a column of nulls would pass."""
    rules = expectations(config)
    assert len({rule.name for rule in rules}) == len(rules) < 100  # checks of one asset, which Dagster's UI lists
    for rule in rules:
        if rule.severity == "critical" and "column" in rule.arguments:
            asked = rule.arguments.get("mostly", 1)
            twins = [
                twin
                for twin in rules
                if twin.type == PRESENT
                and (twin.table, twin.severity) == (rule.table, "critical")
                and twin.arguments["column"] == rule.arguments["column"]
                and twin.arguments.get("mostly", 1) >= min(asked, 1 - config.max_quarantine_rate)
            ]
            assert len(twins) == 1, rule.name


@pytest.mark.parametrize("config", OTHERS)
def test_parameters_change_only_thresholds(config: ValidateConfig) -> None:
    """Dagster makes its checks of the rules before it knows any parameter."""
    ours, theirs = (
        [(rule.name, rule.suite, rule.table, rule.severity, rule.type, rule.columns, rule.meaning) for rule in rules]
        for rules in (expectations(DEFAULTS), expectations(config))
    )
    assert ours == theirs


def test_every_rule_has_a_description_and_a_readable_condition() -> None:
    rules = expectations(DEFAULTS)
    assert set(MEANINGS) == {rule.name for rule in rules if not rule.name.endswith("_present")}
    for rule in rules:
        assert rule.meaning[0] == rule.meaning[0].upper() or rule.name.endswith("_present")
        assert rule.meaning.endswith(".")
        assert rule.threshold, rule.name


def test_the_manifest_is_checked_against_its_schema() -> None:
    (rule,) = [rule for rule in expectations(DEFAULTS) if rule.type == COLUMNS]
    assert [*FILE_COLUMNS, *FACT_COLUMNS] == MANIFEST.names() == rule.arguments["column_set"]
    assert rule.arguments["exact_match"]


def test_rules_that_need_human_judgment_do_not_stop_the_pipeline() -> None:
    severity = {rule.name: rule.severity for rule in expectations(DEFAULTS)}
    assert {severity[name] for name in ("near_copies_few", "near_group_small", "no_near_leak", "no_drift")} == {
        "warning"
    }
    assert {severity[name] for name in ("no_gps", "no_icc_profile", "has_colour", "batch_size_usual")} == {"info"}


@pytest.mark.seconds
def test_listing_the_rules_imports_no_heavy_library() -> None:
    script = (
        "import sys; from pipeline.config import ValidateConfig; "
        "from pipeline.validation.expectations import expectations; expectations(ValidateConfig()); "
        "print({'great_expectations', 'polars', 'pandas', 'pyarrow', 'torch', 'dagster', 'PIL'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "set()"
