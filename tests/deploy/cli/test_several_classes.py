"""A bundle of which an image may have several classes: each has a probability for itself, and what it has is said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.bundle import MULTI_LABEL_VERSION, Bundle, Head, read_bundle
from deploy.cli.main import main
from deploy.errors import BundleFormatError
from tests.deploy.conftest import LABELS, encoded, make_bundle, make_card
from tests.deploy.server.conftest import running

YELLOW, BLACK = (np.full((9, 9, 3), color, np.uint8) for color in ((250, 250, 5), (0, 0, 0)))


def make_several() -> Bundle:
    """A class for each color, which an image has from half of full brightness on."""
    whole = make_bundle(make_card(format_version=MULTI_LABEL_VERSION, multi_label=True))
    assert whole.head is not None
    return replace(whole, head=replace(whole.head, bias=np.full(3, -25, np.float32), multi_label=True))


@pytest.fixture
def several(publish_bundle: Callable[[Bundle], Path]) -> Path:
    return publish_bundle(make_several())


def test_an_image_has_every_class_of_even_probability(several: Path) -> None:
    encoder = deploy.load(several)
    yellow, black = encoder.classify([YELLOW, BLACK], top_k=2)
    assert (set(yellow.assigned or ()), set(yellow.labels)) == ({"red", "green"}, {"red", "green"})
    assert min(yellow.probabilities) > 0.99
    assert (black.assigned, len(black.labels)) == ((), 2)
    assert max(black.probabilities) < 0.01
    assert encoder.info["multi_label"] is True
    (unread,) = encoder.classify([b"nonsense"], on_error="null")
    assert unread.assigned is None


def test_probabilities_are_sigmoids_without_overflow() -> None:
    head = Head(np.array([[1.0, -1.0]], np.float32), np.zeros(2, np.float32), ("a", "b"), multi_label=True)
    features = np.array([[-1e4], [0.0], [2.0], [1e4]], np.float32)
    with np.errstate(over="raise"):
        found = head.probabilities(features)
    expected = 1 / (1 + np.exp(-np.array([[-80.0, 80.0], [0.0, 0.0], [2.0, -2.0], [80.0, -80.0]])))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


def test_a_bundle_whose_classes_exclude_each_other_has_no_assigned_ones(bundle: Path) -> None:
    encoder = deploy.load(bundle)
    assert encoder.classify(YELLOW)[0].assigned is None
    assert "multi_label" not in encoder.info


@pytest.mark.parametrize(
    "changes",
    [{"format_version": 2, "multi_label": True}, {"format_version": 3}, {"format_version": 3, "multi_label": False}],
)
def test_the_version_keeps_earlier_releases_from_answering_with_one_class(
    changes: dict[str, object], publish_bundle: Callable[[Bundle], Path]
) -> None:
    with pytest.raises(BundleFormatError, match="do not belong together"):
        read_bundle(publish_bundle(make_bundle(make_card(**changes))))


def test_the_command_prints_the_classes_that_an_image_has(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "yellow.png"
    photo.write_bytes(encoded(YELLOW))
    assert main(["classify", str(several), str(photo)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (sorted(record["labels"]), set(record["probabilities"])) == (["green", "red"], set(LABELS))
    assert "label" not in record


def test_the_server_says_which_classes_an_image_has(several: Path) -> None:
    with running(several) as server:
        (yellow,) = server.post("/v1/classify?top=1", encoded(YELLOW)).json["results"]
        (black,) = server.post("/v1/classify", encoded(BLACK)).json["results"]
    assert (sorted(yellow["labels"]), len(yellow["classes"])) == (["green", "red"], 1)
    assert (black["labels"], len(black["classes"])) == ([], 3)
