"""Facts that stay in the cache until they are asked for: all of them, each once, or an error that says what to do."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ValidationError
from pipeline.validation.probe.facts_cache import CACHED, append
from pipeline.validation.probe.known_facts import KnownFacts
from pipeline.validation.tables import FACTS
from tests.pipeline.validation.probe.test_facts_cache import rows

TAR = "0001/a.tar:1"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two parts, in which one content is twice, and one whose tar is gone."""
    append(tmp_path, rows("a", "b", sketch="first"))
    append(tmp_path, rows("b", "c", sketch="second"))
    append(tmp_path, rows("d").with_columns(tar=pl.lit("0002/gone.tar:1")))
    return tmp_path


def known(store: Path, *contents: str, others: pl.DataFrame | None = None) -> KnownFacts:
    given = pl.DataFrame({"sha256": list(contents)})
    return KnownFacts(store, given, [TAR], CACHED.to_frame() if others is None else others)


def test_each_content_is_there_once_from_whichever_part(store: Path) -> None:
    facts = known(store, "a", "b", "c", "x", others=rows("x", decodes=False, reason="timeout"))
    found = facts.select(list(FACTS)).sort("sha256")
    assert found.schema == FACTS
    assert found["sha256"].to_list() == ["a", "b", "c", "x"]
    assert found["reason"].to_list() == [None, None, None, "timeout"]
    assert pl.concat(facts.portions()).sort("sha256").equals(found)
    assert dict(facts.sketches(pl.DataFrame({"sha256": ["a", "c", "c"]})).iter_rows()) == {"a": "first", "c": "second"}
    assert facts.tars(["a", "unknown"]) == {TAR}
    assert known(store, "c").select(["sha256"])["sha256"].to_list() == ["c"]


@pytest.mark.parametrize("content", ["d", "never seen"])
def test_a_content_without_facts_is_an_error(store: Path, content: str) -> None:
    with pytest.raises(ValidationError, match="run again"):
        known(store, "a", content)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_part_that_goes_meanwhile_is_an_error(store: Path, damaged: bool, capsys: pytest.CaptureFixture[str]) -> None:
    facts = known(store, "a", "b", "c")
    for part in store.iterdir():
        part.write_bytes(b"damaged") if damaged else part.unlink()
    with pytest.raises(ValidationError, match="run again"):
        facts.select(["sha256"])
    assert ("probed again" in capsys.readouterr().err) == damaged
