"""Bytes as a person reads them."""

import pytest

from pipeline.maintenance.disk import size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (2e6, "2.0 MB"),
        (3.5e12, "3500.0 GB"),
        (-2_760_916, "2.8 MB less"),  # than before a run
        (-1, "1 byte less"),
    ],
)
def test_sizes_are_human_readable(count: float, text: str) -> None:
    assert size(count) == text
