"""Each rule of the advice: what it says where it applies, and that it is silent where it does not."""

from dataclasses import replace

import pytest

from pipeline.run_report import advice
from simclr_core.evaluation_reports import BudgetAccuracies, ClassScores, Estimate, Scores
from tests.reports import EMBEDDING_DRIFT, FINETUNE, FOLDED, LINEAR_EVAL, PRETRAIN, VALIDATION


def found(rule: object) -> str:
    return " ".join(rule)


def scores(**classes: ClassScores) -> Scores:
    return Scores(Estimate(70, 68, 72), 70.0, 70.0, 70.0, classes)


def one_class(labels: int = 100, images: int = 50, answers: int = 50, recall: float | None = 75.0) -> ClassScores:
    return ClassScores(labels, images, answers, recall, 70.0, 70.0, 70.0)


def budget(labels: int, simclr: float, pixels: float = 50.0, random: float = 50.0) -> BudgetAccuracies:
    return BudgetAccuracies(labels, 3, *(Estimate(one, one - 1.5, one + 1.5) for one in (simclr, random, pixels)))


def test_classes_that_are_never_predicted_are_named() -> None:
    classes = {f"c{number}": one_class(answers=0 if number < 7 else 50) for number in range(12)}
    said = found(advice.never_predicted(scores(**classes)))
    assert said == "7 of 12 classes are never predicted: label 20 more images of each of c0, c1, c2, c3, c4 and 2 more."
    assert "1 of 2 classes is never" in found(advice.never_predicted(scores(a=one_class(answers=0), b=one_class())))
    absent = scores(a=one_class(images=0, answers=0, recall=None), b=one_class())
    assert found(advice.never_predicted(absent)) == ""  # no test image could show it
    never = scores(a=one_class(answers=0), b=one_class(answers=0), c=one_class(images=0))
    assert found(advice.never_predicted(never)).startswith("2 of 2 classes with test images are never predicted")


def test_classes_without_a_test_image_are_named() -> None:
    said = found(advice.untested(scores(a=one_class(), b=one_class(), c=one_class(images=0, recall=None))))
    assert said == (
        "1 of 3 classes has no test image, and how well it is recognized is not known, and means over classes leave it "
        "out: put labeled images of c into inbox/test/<class>/, or give them the split test in labels.csv."
    )
    two = found(advice.untested(scores(a=one_class(images=0), b=one_class(images=0), c=one_class())))
    assert two.startswith("2 of 3 classes have no test image, and how well they are recognized")
    assert found(advice.untested(scores(a=one_class(), b=one_class()))) == ""


def test_classes_behind_the_others_are_separated_by_their_labels() -> None:
    said = found(advice.badly_recognized(scores(rare=one_class(4, recall=20.0), often=one_class(recall=30.0))))
    assert "label more images of rare (4 labels)" in said
    assert "although labeled: often" in said
    assert found(advice.badly_recognized(scores(a=one_class(4, recall=60.0)))) == ""


def test_names_cannot_steer_the_text() -> None:
    assert "\\u202e" in found(advice.never_predicted(scores(**{"a\u202eb": one_class(answers=0)})))


def test_a_loss_that_still_falls_asks_for_more_epochs() -> None:
    falling, flat = [6.0 - 0.1 * number for number in range(20)], [6.0, 5.0, 4.5] + [4.4] * 17
    assert found(advice.epochs(falling)) == "More epochs: the loss still falls, by 0.200 in the last 2 epochs."
    for losses in (flat, [], [5.0, 4.0], [4.0] * 10, falling[::-1]):
        assert found(advice.epochs(losses)) == ""


@pytest.mark.parametrize(("pixels", "random", "named"), [(79.0, 50.0, "raw pixels"), (50.0, 79.0, "a random encoder")])
def test_a_baseline_that_is_as_good_is_named(pixels: float, random: float, named: str) -> None:
    near = replace(LINEAR_EVAL, budgets={"0.1": budget(80, 90.0), "1.0": budget(800, 80.0, pixels, random)})
    said = found(advice.baselines(near))
    assert said.startswith(f"On 800 labels the encoder reaches 80.0 %, {named} 79.0 %: ")
    assert said.count("On 800") == 1
    assert found(advice.baselines(replace(LINEAR_EVAL, budgets={"1.0": budget(800, 80.0)}))) == ""
    assert found(advice.baselines(replace(LINEAR_EVAL, budgets={}))) == ""


def test_few_test_images_say_how_many_more_would_do() -> None:
    assert found(advice.test_images(Estimate(70, 60, 80), 100)) == (
        "100 test images tell the accuracy to ± 10 points: label about 300 more test images for ± 5."
    )
    assert found(advice.test_images(Estimate(70, 66, 74), 500)) == ""


def test_labels_are_asked_for_while_they_pay() -> None:
    budgets = {"0.1": budget(80, 70.0), "1.0": budget(800, 80.0)}
    assert found(advice.more_labels(budgets)).startswith("Labels still pay: from 80 to 800 of them")
    assert "`simclr suggest` chooses" in found(advice.more_labels(budgets))
    for few in ({"0.1": budget(80, 79.0), "1.0": budget(800, 80.0)}, {"1.0": budget(800, 80.0)}, {}):
        assert found(advice.more_labels(few)) == ""


def test_pretraining_that_failed_or_nearly_did_says_so() -> None:
    assert "Pretraining failed" in found(advice.training(replace(PRETRAIN, collapsed=True)))
    assert "Pretraining failed" in found(advice.training(replace(PRETRAIN, finite=False)))
    assert "along 2.5 directions only" in found(advice.training(replace(PRETRAIN, effective_rank=2.5)))
    assert found(advice.training(PRETRAIN)) == ""


def test_sure_mistakes_may_be_wrong_labels() -> None:
    assert found(advice.wrong_labels([0.99, 0.95, 0.6])).startswith("2 images are taken for another class")
    assert found(advice.wrong_labels([0.94])) == ""


def test_one_seed_and_a_lost_comparison_are_named() -> None:
    assert "give finetune.seeds three" in found(advice.seeds([replace(FINETUNE, seeds=(0,))]))
    assert found(advice.seeds([FINETUNE, replace(FINETUNE, seeds=(0,), top1=None)])) == ""
    lost = replace(FINETUNE, interval=Estimate(60, 58, 62), scratch_interval=Estimate(70, 68, 72))
    assert found(advice.worse_than_scratch([lost])).startswith("With 80 labels the network trained from scratch")
    assert found(advice.worse_than_scratch([FINETUNE, replace(lost, interval=Estimate(60, 40, 80))])) == ""


def test_refused_files_drift_and_missing_labels_are_named() -> None:
    assert found(advice.quarantine(VALIDATION.images)) == (
        "3 files of 12 were refused, 2 as truncated: validation.html shows them."
    )
    assert found(advice.quarantine(replace(VALIDATION.images, ingested=1000, accepted=999))) == ""
    assert found(advice.drift(VALIDATION, EMBEDDING_DRIFT)).count("differs from the earlier ones") == 2
    assert found(advice.drift(replace(VALIDATION, drift=None), None)) == ""
    assert "no labeled test images" in found(
        advice.missing_labels(replace(LINEAR_EVAL, reason="no labeled test images"))
    )
    assert found(advice.missing_labels(LINEAR_EVAL)) == ""
    assert "are of 40 labeled training images, estimated out of fold (5 folds)" in found(advice.no_test_images(FOLDED))
    assert found(advice.no_test_images(LINEAR_EVAL)) == ""
