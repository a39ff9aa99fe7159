import json
import subprocess
import sys
from typing import Any

import polars as pl
import pytest

from pipeline.validation.probe.facts import Facts, read_facts
from pipeline.validation.probe.probe import probe
from pipeline.validation.tables import FACTS
from tests.pipeline.validation.corpus.corpus import Kind, bad_kinds, good_kinds, picture
from tests.pipeline.validation.corpus.encodings import encoded


@pytest.fixture(scope="module")
def honest() -> dict[str, Any]:
    return probe(encoded(picture(1), "PNG"))


def test_facts_and_their_table_have_the_same_columns() -> None:
    assert list(vars(Facts("", 0, "", False))) == FACTS.names()


@pytest.mark.parametrize("kind", good_kinds() + bad_kinds(), ids=lambda kind: kind.name)
def test_valid_answers_of_the_probe_are_accepted(kind: Kind) -> None:
    answer = json.loads(json.dumps(probe(kind.data)))
    assert read_facts(answer) == Facts(**answer)


LARGEST = {pl.Int16: 2**15 - 1, pl.Int32: 2**31 - 1, pl.Int64: 2**63 - 1, pl.UInt64: 2**64 - 1}
INTEGERS = [(name, LARGEST[type(kind)]) for name, kind in FACTS.items() if type(kind) in LARGEST]


@pytest.mark.parametrize(("name", "largest"), INTEGERS)
def test_a_number_is_accepted_if_its_column_can_hold_it(honest: dict[str, Any], name: str, largest: int) -> None:
    for number in (0, largest):
        facts = read_facts(honest | {name: number})
        row = pl.DataFrame([tuple(vars(facts).values())], schema=FACTS, orient="row")
        assert row[name].item() == number
    for number in (-1, largest + 1):
        with pytest.raises(ValueError, match=name):
            read_facts(honest | {name: number})


WRONG = {pl.String: (None, 1, "\ud800", "a\udfffb"), pl.Boolean: (None, 0, 1, "true"), pl.Float64: (None, 1, "1.0")}
WRONG |= dict.fromkeys(LARGEST, (None, True, 1.0, "1")) | {pl.List: (None, "ab", [1], ["\udc80"], [None], {})}
ABSENT = {"reason", "trailing_bytes", "stream_fault"}  # may be None though it decodes
WRONG_VALUES = [
    pytest.param(name, value, id=f"{name}={value!a}")
    for name, kind in FACTS.items()
    for value in (*WRONG[type(kind)], b"", ...)
    if value is not None or name not in ABSENT
]


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_a_value_of_another_kind_is_refused(honest: dict[str, Any], name: str, value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever its text, the caller blames the file
        read_facts(honest | {name: value})


@pytest.mark.parametrize("name", FACTS.names())
def test_every_field_is_there(honest: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match="all fields"):
        read_facts({field: value for field, value in honest.items() if field != name})


@pytest.mark.parametrize(
    "lie",
    [
        {"unknown": 1},
        {1: 2},
        *({"luma_mean": value} for value in (float("nan"), float("inf"), -float("inf"))),
        {"decodes": False},
        {"reason": "corrupt"},
        *({"decodes": False, "reason": reason} for reason in ("because", "", [], {})),
    ],
    ids=str,
)
def test_nonsensical_values_are_refused(honest: dict[str, Any], lie: dict[Any, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_facts(honest | lie)


@pytest.mark.parametrize("answer", [None, 3, "text", [], {}, [1], {1: 2}], ids=str)
def test_anything_but_a_record_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="record"):
        read_facts(answer)


def test_names_in_any_script_are_text(honest: dict[str, Any]) -> None:
    assert read_facts(honest | {"message": "日本語 🙂 \x00"}).message == "日本語 🙂 \x00"


@pytest.mark.seconds
def test_the_worker_imports_no_table_library() -> None:
    program = "import pipeline.validation.probe.pool, pipeline.validation.probe.probe, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"polars", "pandas", "pyarrow"} & set(loaded)
