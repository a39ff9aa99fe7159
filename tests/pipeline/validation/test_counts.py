"""The counts held against what Great Expectations itself finds in the same rows, as a pandas frame."""

import random
import warnings
from typing import Any

import polars as pl
import pytest

from pipeline.config import ValidateConfig
from pipeline.validation import expectations as types
from pipeline.validation.counts import ID, SAMPLES, count
from pipeline.validation.evaluate import RESULT_FORMAT, decide
from pipeline.validation.expectations import Expectation, expectations

NAN = float("nan")
RULES = [
    Expectation(name, "suite", "table", "critical", kind, arguments)
    for name, kind, arguments in (
        ("rows", types.ROWS, {"min_value": 5}),
        ("columns", types.COLUMNS, {"column_set": ["word", "number", "real", "flag", "more"], "exact_match": True}),
        ("present", types.PRESENT, {"column": "word", "mostly": 0.8}),
        ("number_present", types.PRESENT, {"column": "real"}),
        ("in_set", types.IN_SET, {"column": "word", "value_set": ["a", "b"], "mostly": 0.6}),
        ("number_in_set", types.IN_SET, {"column": "number", "value_set": [1, 2, 3]}),
        ("flag_in_set", types.IN_SET, {"column": "flag", "value_set": [True]}),
        ("not_in_set", types.NOT_IN_SET, {"column": "word", "value_set": ["c"]}),
        ("between", types.BETWEEN, {"column": "real", "min_value": 0.25, "max_value": 0.75, "mostly": 0.5}),
        ("least", types.BETWEEN, {"column": "number", "min_value": 2}),
        ("unique", types.UNIQUE, {"column": "word"}),
        ("mean", types.MEAN, {"column": "real", "max_value": 0.5}),
        ("flag_mean", types.MEAN, {"column": "flag", "min_value": 0.5}),
        ("most", types.MAX, {"column": "number", "max_value": 3}),
        ("not_below", types.NOT_BELOW, {"column_A": "real", "column_B": "more", "or_equal": True}),
    )
]


def rows(seed: int, count: int) -> pl.DataFrame:
    """Values of every kind. A third of the tables lack nothing, since pandas knows no mean of truth and nothing."""
    chance = random.Random(seed)
    lacking = seed % 3 > 0

    def maybe(value: Any) -> Any:
        return None if lacking and chance.random() < 0.2 else value

    data = [
        {
            ID: f"row {number}",
            "word": maybe(chance.choice("aabbcdefg")),
            "number": maybe(chance.randrange(5)),
            "real": maybe(chance.choice([chance.random(), NAN])) if lacking else chance.random(),
            "flag": chance.random() < 0.7,
            "more": chance.random(),
        }
        for number in range(count)
    ]
    kinds = {ID: pl.String, "word": pl.String, "number": pl.Int16, "real": pl.Float64, "flag": pl.Boolean}
    return pl.DataFrame(data, schema=kinds | {"more": pl.Float64})


def of_pandas(table: pl.DataFrame) -> dict[str, Any]:
    """The result for each rule, with no help of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations as gx
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    columns = table.drop(ID).cast({"number": pl.Float64})
    import pandas as pd

    frame = pd.DataFrame({column.name: column.to_pandas() for column in columns}, index=range(table.height))
    context = gx.get_context(mode="ephemeral")
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    found = {}
    for rule in RULES:
        expectation = ExpectationConfiguration(rule.type, dict(rule.arguments), {"name": rule.name}).to_domain_obj()
        found[rule.name] = batch.validate(expectation, result_format=RESULT_FORMAT)
    return found


def plain(value: Any) -> Any:
    """Nothing as None, which for pandas is a number, and numbers as far as the order of a sum leaves them alone."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return None if value != value else round(value, 12)
    return value


@pytest.mark.seconds
@pytest.mark.parametrize(("seed", "size"), [(0, 40), (1, 40), (2, 7), (3, 1), (4, 0)])
def test_the_counts_are_those_of_great_expectations(seed: int, size: int) -> None:
    table = rows(seed, size)
    counts = count(table.lazy(), RULES)
    for name, theirs in of_pandas(table).items():
        rule = next(rule for rule in RULES if rule.name == name)
        ours = decide(rule, counts[name])
        assert ours.success == theirs.success, name
        result, expected = plain(ours.result), plain(theirs.result)
        if table.null_count().sum_horizontal().item():
            expected.pop("partial_unexpected_counts", None)  # pandas' NaN is not itself, so each is counted alone
        assert {key: result.get(key) for key in expected} == expected, name
        if "unexpected_count" in result:
            against = table[ID].gather(counts[name].numbers).to_list()
            assert list(counts[name].ids) == against
            assert len(against) == min(SAMPLES, result["unexpected_count"])


def test_a_mean_does_not_depend_on_the_order_of_the_rows() -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 where each sum is rounded."""
    rule = next(rule for rule in RULES if rule.name == "mean")
    values = [random.Random(number).gauss(0, 1e6) for number in range(1000)]
    tables = [pl.DataFrame({ID: ["x"] * 1000, "real": order}) for order in (values, values[::-1], sorted(values))]
    assert len({count(table.lazy(), [rule])["mean"].value for table in tables}) == 1


def test_every_type_of_the_contract_is_counted() -> None:
    assert {rule.type for rule in expectations(ValidateConfig())} == {rule.type for rule in RULES}


def test_a_column_that_is_not_there_is_not_counted() -> None:
    table = rows(0, 5).drop("word")
    assert "unique" not in count(table.lazy(), RULES)
