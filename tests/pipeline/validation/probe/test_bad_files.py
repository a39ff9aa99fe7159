"""Some 780 bad files and 140 good ones through the real scan: the run survives, and each gets what it deserves."""

from collections.abc import Callable
from functools import cache
from typing import Any

import polars as pl
import pytest

from pipeline.validation.probe.scan import Limits
from pipeline.validation.reasons import REASONS
from pipeline.validation.verdict.verdict import Policy, judge
from tests.pipeline.validation.corpus.bad_files import bad_files
from tests.pipeline.validation.corpus.contents import POLICY
from tests.pipeline.validation.corpus.corpus import Example, scan, write_batch
from tests.pipeline.validation.corpus.damaged_files import damaged_files
from tests.pipeline.validation.corpus.good_files import good_files
from tests.pipeline.validation.corpus.manifests import build
from tests.pipeline.validation.corpus.regions import UNSEEN

LIMITS = Limits(max_megabytes=50.0, max_megapixels=80.0, memory_megabytes=2048, timeout_seconds=20.0)


@cache
def bad() -> tuple[Example, ...]:
    return (*damaged_files(), *bad_files())


@cache
def good() -> tuple[Example, ...]:
    return tuple(good_files())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The manifest of all of them, each in a real worker."""
    folder = tmp_path_factory.mktemp("scanned")
    write_batch(folder / "raw", "0001", [(example.name, example.data) for example in bad() + good()])
    files, facts = scan(folder / "raw", folder / "cache", limits=LIMITS, workers=2)
    policy: dict[str, Any] = POLICY
    return build(judge(files, facts, Policy(**policy), allowed=(), denied={}), facts)


@pytest.mark.seconds
def test_every_file_is_in_the_manifest_once(table: pl.DataFrame) -> None:
    assert sorted(table["path"]) == sorted(example.name for example in bad() + good())
    assert len(bad()) >= 150
    assert len(good()) >= 40


@pytest.mark.parametrize("examples", [bad, good])
def test_every_file_gets_its_expected_reason(table: pl.DataFrame, examples: Callable[[], tuple[Example, ...]]) -> None:
    rows = {row["path"]: row for row in table.select("path", "reasons", "message").to_dicts()}
    wrong = []
    for name, _, expected in examples():
        reason = next(iter(rows[name]["reasons"]), UNSEEN)
        if reason not in expected.split():
            wrong.append(f"{name}: {reason}, must be {expected} ({rows[name]['message']})")
    assert not wrong, "\n".join(wrong)


def test_the_expected_reasons_are_specific() -> None:
    """A dead worker breaks each of them, and few leave it open whether a bad file passes."""
    for name, _, expected in bad():
        assert set(expected.split()) <= REASONS.keys() - {"worker_crash", "timeout"} | {UNSEEN}, name
    assert {example.expected for example in good()} == {UNSEEN}
    assert sum(" " not in example.expected for example in bad()) > 0.7 * len(bad())
    assert sum(UNSEEN in example.expected.split() for example in bad()) < 0.25 * len(bad())


def test_the_good_files_cover_every_kind(table: pl.DataFrame) -> None:
    """Whatever Pillow has made of the options that it was given."""
    accepted = table.filter(pl.col("path").is_in([example.name for example in good()]))
    assert set(accepted["format"]) == {"JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"}
    assert set(accepted["mode"]) >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "LAB"}
    assert set(accepted["exif_orientation"]) == set(range(1, 9))
    assert set(accepted["bit_depth"]) >= {1, 2, 4, 8, 16}
    assert set(accepted["operations"].explode().drop_nulls()) == {
        "alpha_on_white",
        "cmyk_to_rgb",
        "exif_transpose",
        "gray_to_rgb",
        "icc_ignored",
        "icc_to_srgb",
        "palette_to_rgb",
        "to_rgb",
        "uint16_to_uint8",
    }
