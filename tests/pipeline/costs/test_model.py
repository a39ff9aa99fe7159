"""Every stage costs what its work times the measured parts give, worked out here by hand."""

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.costs import model
from pipeline.costs.model import Cost, Work, total
from pipeline.dvc.project import stage_names
from pipeline.preflight.images import Images
from pipeline.workspace import template
from simclr_core.data import label_sets
from tests.pipeline.costs.examples import IMAGES, MEASURED, UNIT, read_params

STAGES = stage_names(template("dvc.yaml").parent)
STARTED = 10 + 0.15 * 10  # a stage with PyTorch, started by DVC


def work(images: Images = IMAGES, **blocks: dict[str, object]) -> Work:
    return Work(read_params(**blocks), images, images.total, released=False, measured=MEASURED)


def stage_costs(job: Work) -> dict[str, Cost]:
    return model.stage_costs(job, STAGES)


def test_images_are_probed_and_prepared_on_all_cores() -> None:
    costs = stage_costs(work())
    assert costs["validate"].seconds == pytest.approx((0.15 + 1.45) * 10 + 1200 * 0.004 / 2)
    assert costs["prepare"].seconds == pytest.approx((0.15 + 0.22) * 10 + 1200 * 0.002 / 2)
    assert costs["prepare"].disk_bytes == 2 * (1200 * (1000 + 768) + 250_000)
    assert costs["raw_images"].disk_bytes == 1200 * (500 + 768 + 390), "a hard link of the cache counts once"


def test_an_image_that_was_validated_is_not_probed_again() -> None:
    again = stage_costs(replace(work(), new=200))
    assert again["validate"].seconds == pytest.approx(16 + 200 * 0.004 / 2)
    assert again["raw_images"].disk_bytes == 200 * (500 + 768 + 390)


def test_pretraining_costs_its_steps_and_a_look_after_each_epoch() -> None:
    found = stage_costs(work(pretrain={"epochs": 10, "batch_size": 300, "monitor_images": 600}))["pretrain"]
    steps, look = 3 * 300 / 100, 600 * (0.001 + 0.0005)  # of 1,000 images three batches of 300 are seen
    assert found.seconds == pytest.approx(STARTED + 10 * (steps + look) + (1000 + 600) * 0.001 / 2)
    projector = 600 * (8 * 256 + 820)
    assert found.disk_bytes == 2 * 4 * 1_100_000 + projector + 250_000


def test_large_images_are_decoded_in_every_epoch() -> None:
    sizes = {"image_size": 96, "resize": 96, "epochs": 10, "batch_size": 500, "monitor_images": 16}
    found = stage_costs(work(prepare={"short_side": 96}, pretrain=sizes))["pretrain"]
    epochs = 10 * (1000 / 100 + 16 * (0.001 + 0.0005))
    assert found.seconds == pytest.approx(STARTED + epochs + (10 * 1000 + 16) * 0.001 / 2)


def test_a_probe_costs_a_search_for_all_folds_at_once_and_a_fit() -> None:
    size = 100 * 100 * 2 / 2621440
    few = 12 * 10 * (0.001 + 0.002 * 5 * size) + 65 * (0.001 + 0.002 * size)
    assert work().fit(100, 256, 12) == pytest.approx(few + 0.25 * (100 / 512) ** 3)
    many = (12 * 10 + 65) * (0.001 + 0.002 * 2000 * 256 * 2 / 2621440)  # a single fold, no more axes than features
    assert work().fit(2000, 256, 12) == pytest.approx(many + 0.25 / 8)


def test_linear_evaluation_fits_a_probe_for_each_draw_and_set_of_features() -> None:
    one = {"fractions": '["1.0"]', "labels_per_class": "[5]", "draws": 3, "l2_count": 12}
    job = work(linear_eval=one)
    fits = 4 * job.fit(600, 256, 12) + job.fit(600, 3 * 28**2, 12)  # all labels are drawn once
    fits += 6 * job.fit(10, 256, 12) + 3 * job.fit(10, 3 * 28**2, 12)  # three draws; random weights have one each
    features = 800 * 0.001 / 2 + 4 * 800 * 0.001
    maps = (0.3 + 200 * 0.0009) * 10
    assert stage_costs(job)["linear_eval"].seconds == pytest.approx(STARTED + features + maps + fits)


def test_without_test_images_there_are_probes_of_each_fold_and_one_to_publish() -> None:
    one = {"fractions": '["1.0"]', "labels_per_class": "[5]", "draws": 3, "l2_count": 12}
    job = work(Images(IMAGES.train, Counter(), IMAGES.batches), linear_eval=one)
    fits = 4 * job.fit(480, 256, 12) + job.fit(480, 3 * 28**2, 12) + 4 * job.fit(10, 256, 12)
    fits = 5 * (fits + job.fit(10, 3 * 28**2, 12)) + job.fit(600, 256, 12)
    features = 600 * 0.001 / 2 + 4 * 600 * 0.001
    maps = (0.3 + 600 * 0.0009) * 10
    assert stage_costs(job)["linear_eval"].seconds == pytest.approx(STARTED + features + maps + fits)


def test_fine_tuning_has_a_least_number_of_steps() -> None:
    job = work(finetune={"seeds": "[0, 1]", "epochs": 30, "epochs_few": 60, "batch_size": 16})
    costs = stage_costs(job)
    rest = STARTED + (800 + 200) * 0.001 / 2 + (800 + 4 * 200) * 0.001
    few = 2 * 2 * 100 * (0.01 + 6 * 0.002) + 2 * job.fit(6, 256, 12)  # 60 steps would be too few
    many = 2 * 2 * 100 * (0.01 + 16 * 0.002) + 2 * job.fit(60, 256, 12)  # 30 epochs of three steps too
    assert costs["finetune@0.01"].seconds == pytest.approx(rest + few)
    assert costs["finetune@0.1"].seconds == pytest.approx(rest + many)
    assert costs["finetune@0.1"].disk_bytes == 2 * 4 * 1_000_000


def test_without_labels_nothing_is_fitted() -> None:
    costs = stage_costs(work(Images(Counter({None: 800}), Counter(), Counter({"0001": 800}))))
    assert costs["finetune@0.1"] == Cost(STARTED, 1_030_000_000)
    maps = (0.3 + 800 * 0.0009) * 10
    assert costs["linear_eval"].seconds == pytest.approx(STARTED + 800 * 0.001 / 2 + 4 * 800 * 0.001 + maps)


def test_precisions_of_several_labels_are_resampled() -> None:
    """The sets are as many as the classes of ``IMAGES`` and lead to the same probes; what is added is the bootstrap."""
    single = Images(Counter({"cat": 300, "dog": 300}), Counter({"cat": 200}), Counter({"0001": 600}))
    several = replace(single, test=Counter({"cat": 100, label_sets.NONE_OF_THEM: 100}))
    before, after = stage_costs(work(single)), stage_costs(work(several))
    answer, draw = 200 * 2 * model.RESAMPLE_START * 10, 200 * model.DRAW_START * 10
    params = work(several).params
    budgets = len(params.linear_eval.fractions) + len(params.linear_eval.labels_per_class)
    variants = len(params.export.variants) - 1
    expected = {
        "linear_eval": (2 * 5 + 1 + budgets * 3) * answer + (1 + budgets + 2) * draw,
        "finetune@0.1": 3 * len(params.finetune.seeds) * answer + 2 * draw,
        "export": variants * (4 * answer + 2 * draw),
        "compare": 2 * answer + draw,
    }
    for stage, seconds in expected.items():
        assert after[stage].seconds - before[stage].seconds == pytest.approx(seconds), stage
    assert after["pretrain"] == before["pretrain"]


def test_a_classifier_is_calibrated_by_a_fit_for_each_fold() -> None:
    """On four fifths of the labels each, with a penalty that is known."""
    job = work(export={"variants": '["fp32"]'})
    labels, axes = 480, 256
    evaluation = 0.001 + 0.002 * labels * axes * 2 / 2621440
    fits = 5 * (65 * evaluation + 0.25 / 8)
    rest = STARTED + 0.9 * 10 + 800 * 0.001 / 2 + (800 + 105 * 3) * 0.001
    assert stage_costs(job)["export"].seconds == pytest.approx(rest + fits)
    tuned = stage_costs(work(export={"variants": '["fp32"]', "source": "finetuned"}))
    assert tuned["export"].seconds == pytest.approx(rest), "labels that it has not seen are there"
    assert job.calibrated(29, 256) == 0.0


def test_a_champion_is_compared_with() -> None:
    job = work()
    alone, both = stage_costs(job), stage_costs(replace(job, released=True))
    one = 800 * 0.001 / 2 + 800 * 0.001 + job.fit(600, 256, 5)
    assert alone["compare"].seconds == pytest.approx(STARTED + one)
    assert both["compare"].seconds == pytest.approx(STARTED + 2 * one)
    embedded = 1000 + 1000  # at most 1,000 of the newest batch, 2,000 of the others
    assert both["embedding_drift"].seconds == pytest.approx((0.15 + 0.18) * 10 + embedded * (0.001 / 2 + 0.001))
    assert alone["embedding_drift"].seconds == pytest.approx((0.15 + 0.18) * 10)


def test_the_explorer_embeds_every_image_once_and_asks_the_champion_about_the_test_images() -> None:
    job = work()
    alone, both = stage_costs(job), stage_costs(replace(job, released=True))
    mapped = (0.15 + 0.3) * 10 + min(job.total, 3000) * model.MAP_START * 10
    assert alone["explore"].seconds == pytest.approx(mapped + job.total * (2 * 0.001 / 2 + 0.001))
    asked = both["explore"].seconds - alone["explore"].seconds
    assert asked == pytest.approx(job.images.tested * (0.001 / 2 + 0.001))


def test_the_whole_takes_the_memory_of_its_largest_stage() -> None:
    assert total([Cost(1, 5, 7), Cost(2, 4, 8)]) == Cost(3, 5, 15)
    assert total([]) == Cost()


def test_stages_are_estimated_by_their_names() -> None:
    assert {"raw_images", *STAGES, model.REST} == stage_costs(work()).keys()
    found = model.stage_costs(work(), ["validate", "finetune@0.5", "own"])
    assert [*found] == ["raw_images", "validate", "finetune@0.5", model.REST]
    assert found["finetune@0.5"].seconds > stage_costs(work())["finetune@0.1"].seconds


def test_the_constants_are_those_of_the_stages() -> None:
    from pipeline.explore import explore, landmark_map
    from simclr_core.data import dataset
    from simclr_core.evaluation import embedding_map, images, linear_eval, linear_probe, served_accuracy

    assert (model.FOLDS, model.FEW_LABELS) == (linear_probe.FOLDS, linear_probe.FEW_LABELS)
    assert (model.PIXEL_SIDE, model.RANDOM_ENCODERS) == (linear_eval.PIXEL_SIDE, linear_eval.RANDOM_ENCODERS)
    assert (model.MAPPED, model.UNLABELED_SAMPLE) == (embedding_map.IMAGES, images.UNLABELED_SAMPLE)
    assert (model.SERVED_TRAIN, model.SERVED_TEST) == (served_accuracy.MOST_TRAIN, served_accuracy.MOST_TEST)
    assert (model.EXPLORED, model.LANDMARKS) == (explore.MOST_IMAGES, landmark_map.MOST_LANDMARKS)
    assert dataset.CACHED_SIDE == model.CACHED_SIDE
    assert UNIT.feature_dim == 256
