"""The model card says what a bundle is for, how good it is by class and by variant, and what was left out."""

from dataclasses import replace
from typing import Any

from simclr_core.export.model_card import license_note, model_card
from simclr_core.reports import ClassifierResults, ClassResults, NoResults, ServedAccuracy, VariantReport

CARD: dict[str, Any] = {
    "name": "flowers",
    "license": "CC-BY-4.0",
    "dim": 64,
    "encoder": {"name": "resnet10", "width": 0.125, "stem": "compact"},
    "preprocessing": {"size": 16, "resize": 18},
    "provenance": {"kind": "pretrained", "model": "c" * 64, "data_digest": "d" * 64, "trained_by": "simclr-pipeline"},
    "metrics": {"pretrain": {"loss_last": 1.5}},
    "left_out": {"fp16": "mean cosine to fp32 0.5000, at least 0.99 is required"},
}
LABELS = ("rose", "tulip")
VARIANTS = {
    "fp32": ServedAccuracy(90.0, 80.0),
    "int8": VariantReport("static", 0.2595, 0.9991, 0.99, 89.9, None, {}, undecided="too few test images to tell"),
}
RESULTS = ClassifierResults(
    test_images=40,
    temperature=1.3,
    calibration_error_before=4.2,
    calibration_error=1.1,
    per_class={"rose": ClassResults(30, 95.0, 91.25), "tulip": ClassResults(10, 50.0, None)},
)


def test_each_class_and_each_variant_has_its_row() -> None:
    card = model_card(CARD, LABELS, VARIANTS, RESULTS)
    for row in (
        "| Data | " + "d" * 64 + " |",
        "| fp32 | the trained weights | 1 | 1 | 90.0 | 80.0 |",
        "| int8 | static | 0.2595 | 0.9991 | 89.9 | none |",
        "| rose | 30 | 95.0 | 91.2 |",
        "| tulip | 10 | 50.0 | none |",
        "| pretrain loss_last | 1.5 |",
    ):
        assert f"\n{row}\n" in card, row
    assert "\nfp16 was left out: mean cosine to fp32 0.5000, at least 0.99 is required.\n" in card
    assert "\nint8: too few test images to tell.\n" in card
    assert "Its probabilities are 1.1 percentage points off on\naverage (expected" in card
    assert "4.2 before the temperature 1.3" in card
    for section in ("Intended use", "Variants", "Classifier", "Metrics", "Limits"):
        assert f"\n## {section}\n" in card


def test_a_classifier_that_was_calibrated_before() -> None:
    results = replace(RESULTS, temperature=1.0, calibration_error=4.2)
    card = model_card(CARD, LABELS, VARIANTS, results)
    assert "no temperature brought held-out training labels closer" in card


def test_of_images_with_several_labels_it_tells_precisions_and_the_error_of_a_class() -> None:
    card = model_card(CARD | {"multi_label": True}, LABELS, {"fp32": ServedAccuracy(None, None, 71.0, 72.5)}, RESULTS)
    for part in (
        "An image may have several of the classes, or none",
        "| fp32 | the trained weights | 1 | 1 | 71.0 | 72.5 |",
        "Mean average precisions are percentages on the labeled test images",
        "expected calibration error, 15 bins, mean of the classes",
        "| rose | 30 | 95.0 | 91.2 |",
    ):
        assert part in card, part


def test_accuracies_out_of_fold_say_so() -> None:
    tested = {"knn_top1": 70.0, "linear_top1": {"1.0": 71.0}}
    assert "test split of the training data's owner" in model_card(CARD, LABELS, VARIANTS, RESULTS)
    card = model_card(
        CARD | {"metrics": {"linear_eval": tested | {"estimate": "out_of_fold"}}}, LABELS, VARIANTS, NoResults()
    )
    assert "| linear_eval estimate | out_of_fold |" in card
    assert "There was no test split." in card
    assert "The encoder was pretrained on these images, without labels." in card


def test_without_labels_it_says_so() -> None:
    card = model_card(CARD | {"left_out": {}}, (), {"fp32": ServedAccuracy(None, None)}, NoResults())
    assert "nothing was measured" in card
    assert "| fp32 | the trained weights | 1 | 1 | none | none |" in card
    assert "left out" not in card


def test_the_license_is_that_of_the_weights() -> None:
    assert "flowers are under this license: CC-BY-4.0" in license_note("flowers", "CC-BY-4.0")
