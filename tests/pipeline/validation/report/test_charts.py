import re

import numpy as np
import pytest

from pipeline.validation.report.charts import (
    BARS,
    DISTRIBUTIONS,
    HEADROOM,
    HEIGHT,
    WIDTH,
    distributions,
    histogram,
    number,
)
from tests.pipeline.validation.corpus.manifests import row, table


def heights(outline: str) -> list[float]:
    """Of the bars, from left to right."""
    return [HEIGHT - float(top) for top in re.findall(r"V([\d.]+)H", outline)]


def test_bars_are_shares_of_each_group() -> None:
    random = np.random.default_rng(0)
    groups = [random.uniform(0, 100, 5000), random.normal(50, 10, 300)]
    found = histogram("title", groups)
    ends = np.array([np.percentile(group, [1, 99]) for group in groups])
    edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), BARS + 1)
    shares = [np.histogram(group.clip(edges[0], edges[-1]), edges)[0] / len(group) for group in groups]
    for outline, share in zip(found.outlines, shares, strict=True):
        oracle = share / np.max(shares) * (HEIGHT - HEADROOM)
        assert heights(outline) == pytest.approx(oracle, abs=0.01)
        assert outline.endswith(f"H{WIDTH}V{HEIGHT}Z")


def test_outliers_do_not_compress_the_axis() -> None:
    values = np.concatenate([np.linspace(0, 1, 1000), [1e9]])
    found = histogram("title", [values])
    assert 0 < float(found.low) < 0.02
    assert 0.98 < float(found.high) < 1
    assert min(heights(found.outlines[0])) > 0


def test_one_value_and_one_image_can_be_drawn() -> None:
    [outline] = histogram("title", [np.array([7.0])]).outlines
    assert max(heights(outline)) == HEIGHT - HEADROOM
    assert "nan" not in outline


def test_a_logarithmic_axis_is_labeled_with_the_values() -> None:
    found = histogram("title", [10 ** np.linspace(2, 6, 10001)], logarithmic=True)
    assert (found.low, found.high) == ("109.6", "912,011")
    bars = heights(found.outlines[0])[1:-1]  # the last ones hold the outliers
    assert max(bars) < 1.1 * min(bars)


def test_the_newest_batch_is_drawn_over_the_earlier_ones() -> None:
    earlier = [row(f"old{number}.jpg", luma_mean=float(number)) for number in range(100)]
    newer = [row(f"new{number}.jpg", luma_mean=90.0, batch="0002", ingest_batch="0002") for number in range(9)]
    refused = [row("bad.jpg", "too_small", luma_mean=1e6)]
    found = {one.title: one for one in distributions(table(earlier + newer + refused))}
    assert list(found) == list(DISTRIBUTIONS.values())
    old, new = (heights(outline) for outline in found["brightness, 0 to 255"].outlines)
    assert sum(height > 0 for height in old) > 30
    assert [height > 0 for height in new].count(True) == 1
    assert found["brightness, 0 to 255"].high == "98.01"


def test_a_first_batch_stands_alone_and_no_image_gives_no_chart() -> None:
    assert {len(one.outlines) for one in distributions(table([row("a.jpg")]))} == {1}
    relabeled = table([row("a.jpg"), row("b.jpg", "exact_duplicate", ingest_batch="0002")])
    assert {len(one.outlines) for one in distributions(relabeled)} == {1}
    assert distributions(table([row("a.jpg", "corrupt")])) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.12345, "0.1235"), (999.96, "1000"), (1234567.8, "1,234,568")]
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert number(value) == text
