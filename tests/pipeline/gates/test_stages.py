"""The gates on single stages: what passes, what does not, and the numbers that are reported."""

import json
from typing import Any

import pytest

from pipeline.gates.stages import embedding_drift, not_collapsed, onnx_parity
from simclr_core.data.shards import DatasetCard, write_card
from tests.pipeline.gates.conftest import Case
from tests.pipeline.gates.reports import DRIFT, EMBEDDING_DRIFT, EXPORT, NOT_JUDGED, PRETRAIN


@pytest.mark.parametrize(
    ("values", "passed", "says"),
    [
        ({}, True, "loss 5.1 → 4.2, chance is 6.2; effective rank 31.5, feature standard deviation 0.4"),
        ({"finite": False}, False, "has to stay finite and did not"),
        ({"collapsed": True}, False, "nearly the same features"),
        ({"finite": False, "collapsed": True}, False, "has to stay finite and did not"),
    ],
)
def test_collapse(case: Case, values: dict[str, bool], passed: bool, says: str) -> None:
    case.put("reports/pretrain.json", PRETRAIN | values)
    verdict = case.ask(not_collapsed)
    assert (verdict.passed, verdict.judged) == (passed, True)
    assert says in verdict.description
    assert verdict.numbers == {"effective_rank": 31.5, "feature_std": 0.4}


def test_no_number_of_a_sentence_has_more_digits_than_a_person_compares(case: Case) -> None:
    long = {"loss_first": 5.123456, "loss_last": 4.234567, "loss_chance": 6.234411, "effective_rank": 31.512345}
    case.put("reports/pretrain.json", PRETRAIN | long | {"feature_std": 0.041236})
    said = "loss 5.123 → 4.235, chance is 6.234; effective rank 31.5, feature standard deviation 0.0412"
    assert case.ask(not_collapsed).description == said


def test_parity(case: Case) -> None:
    case.put("reports/export.json", EXPORT | {"passed": False})
    verdict = case.ask(onnx_parity)
    assert (verdict.passed, verdict.judged) == (False, True)
    assert verdict.description == (
        "lowest cosine 0.999999, largest difference 1e-05 on 64 images, which reports/export.json calls too far apart; "
        "`simclr run --select export` exports again"
    )


@pytest.mark.parametrize(
    ("images", "outcome", "says"),
    [
        (64, "passed", "on 64 images"),
        (20, "passed", "on 20 images: with 95 % confidence up to 14 % of other images may differ by more; 32 or more"),
        (1, "passed", "on 1 image: with 95 % confidence up to 95 % of other images"),
        (0, "not applicable", "there was no image to compare on"),
    ],
)
def test_parity_says_how_much_few_images_prove(case: Case, images: int, outcome: str, says: str) -> None:
    case.put("reports/export.json", EXPORT | {"images": images})
    verdict = case.ask(onnx_parity)
    assert (verdict.passed, verdict.outcome) == (True, outcome)
    assert says in verdict.description


@pytest.mark.parametrize(("least", "passed"), [(0.98, True), (0.999, False)])
def test_parity_compares_files_with_what_training_saw(case: Case, least: float, passed: bool) -> None:
    case.set_limits(min_served_cosine=least)
    served = {"images": 32, "cosine_median": 0.9999, "cosine_min": 0.9871, "worst": "3f" * 32}
    case.put("reports/export.json", EXPORT | {"served": served})
    verdict = case.ask(onnx_parity)
    assert verdict.passed is passed
    assert "what training saw of 32 images: lowest cosine 0.9871, median 0.9999" in verdict.description
    assert ("gates.min_served_cosine asks for 0.999, 3f3f3f3f3f3f has the lowest" in verdict.description) is not passed


@pytest.mark.parametrize(("images", "applicable"), [(2, False), (3, True)])
def test_two_images_cannot_show_a_collapse(case: Case, images: int, applicable: bool) -> None:
    case.put("reports/pretrain.json", PRETRAIN | {"collapsed": True})
    counts = {"train": images, "train_labelled": 0, "test": 0}
    prepared = case.folder / "data" / "prepared"
    card = DatasetCard((), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 16, 16, counts, "digest")
    prepared.mkdir(parents=True)
    write_card(prepared, card)
    verdict = case.ask(not_collapsed)
    assert (verdict.applicable, verdict.passed) == (applicable, not applicable)


def test_drift_is_a_warning_with_every_number(case: Case) -> None:
    case.put(EMBEDDING_DRIFT, DRIFT)
    verdict = case.ask(embedding_drift)
    assert (verdict.passed, verdict.severity) == (False, "warning")
    assert verdict.description == "drift: to v0.0.3 the new images differ: look at reports/novel.png"
    assert verdict.numbers == {
        "champion": "v0.0.3",
        "bundle": "0123456789ab",
        "batch": "0001",
        "images": "3 new, 0 earlier",
        "novel_share": 0.27,
        "novel_share/threshold": 0.05,
        "mmd_p_value": 0.005,
    }


@pytest.mark.parametrize("report", [NOT_JUDGED, DRIFT | {"verdict": "none"}])
def test_without_drift_it_passes_with_the_advice(case: Case, report: dict[str, Any]) -> None:
    case.put(EMBEDDING_DRIFT, report)
    verdict = case.ask(embedding_drift)
    assert verdict.passed
    assert report["advice"] in verdict.description


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"verdict": NaN}', json.dumps(DRIFT | {"statistics": 3})])
def test_a_drift_report_that_is_missing_or_broken_is_a_warning_that_does_not_pass(case: Case, text: str | None) -> None:
    if text is not None:
        case.put(EMBEDDING_DRIFT, text)
    verdict = case.ask(embedding_drift)
    assert (verdict.passed, verdict.severity, verdict.judged) == (False, "warning", False)
    assert verdict.description.startswith(EMBEDDING_DRIFT)
    assert "run the stage" in verdict.description


def test_a_check_of_drift_that_did_not_take_place_is_not_applicable(case: Case) -> None:
    advice = "the newest batch has only 12 accepted training images; embedding_drift.min_images is 50"
    verdict = case.ask(embedding_drift, {EMBEDDING_DRIFT: NOT_JUDGED | {"advice": advice}})
    assert (verdict.outcome, verdict.severity) == ("not applicable", "warning")
    assert verdict.description == f"not applicable: drift was not checked, {advice}"
