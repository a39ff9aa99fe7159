"""A report of each kind, as its stage writes it. Tests that need another take ``replace`` of one of these."""

from dataclasses import replace

from pipeline.reports import (
    DriftReport,
    EmbeddingDriftReport,
    FoundShape,
    ImageCounts,
    Novelty,
    Outcome,
    ReleasedEncoder,
    Statistic,
    ValidationReport,
)
from simclr_core.evaluation_reports import (
    Accuracies,
    BudgetAccuracies,
    BudgetPrecision,
    ClassScores,
    CompareReport,
    Estimate,
    FinetunePrecision,
    FinetuneReport,
    Gain,
    LinearEvalReport,
    Measured,
    Megabytes,
    MultiLabelResults,
    OldIndex,
    OutOfFold,
    Paired,
    PairedCounts,
    Scores,
    SetScores,
)
from simclr_core.reports import (
    ClassifierResults,
    ClassResults,
    ExportReport,
    LatencyReport,
    PretrainReport,
    ServedAccuracy,
    VariantReport,
)

PRETRAIN = PretrainReport(
    init="champion v0.0.2",
    epochs=40,
    steps=1240,
    loss_first=5.1,
    loss_last=4.2,
    loss_chance=6.2,
    finite=True,
    collapsed=False,
    learning_rate_scale=0.5,
    knn_top1=82.75,
    probe_top1=85.0,
    effective_rank=31.5,
    feature_std=0.4,
    effective_rank_z=12.25,
    feature_std_z=0.3,
    alignment=0.35,
    uniformity=-2.5,
    parameters=1236880,
    precision="float32",
    precision_fallback="bfloat16 differs by 2e-01",
    compiled=False,
    compile_fallback=None,
    skipped_steps=0,
    kept_epoch=38,
    processes=1,
)
SCORES = Scores(
    top1=Estimate(70.0, 67.5, 72.4),
    balanced_accuracy=68.5,
    macro_f1=69.25,
    mean_average_precision=74.0,
    per_class={"Möwe": ClassScores(80, 1000, 0, 0.0, None, 0.0, 12.5)},
)
LINEAR_EVAL = LinearEvalReport(
    simclr=Accuracies(82.8, {"0.01": 60.0, "0.1": 70.0}, {"0.01": 95.0, "0.1": 98.5}),
    random_init=Accuracies(70.1, {"0.01": 50.0, "0.1": 65.0}, {"0.01": 90.0, "0.1": 96.0}),
    pixels=Accuracies(None, {"0.01": None, "0.1": None}, {"0.01": None, "0.1": None}),
    labels={"0.01": 80, "0.1": 800},
    test_images=2000,
    classes=10,
    reason=None,
    majority_class=10.0,
    paired={
        "knn": {
            "random_init": PairedCounts((400, 420, 360), (140, 150, 130)),
            "pixels": PairedCounts((300,), (200,)),
            "majority": PairedCounts((1500,), (44,)),
        },
        "probe": {
            "random_init": PairedCounts((300, 310, 290), (200, 190, 210)),
            "pixels": PairedCounts((250,), (180,)),
            "majority": PairedCounts((1250,), (50,)),
        },
    },
    budgets={
        "2 per class": BudgetAccuracies(
            20, 3, Estimate(50.0, 44.0, 56.0), Estimate(40.0, 33.5, 46.5), Estimate(45.0, 41.0, 49.0)
        )
    },
    scores={"knn": SCORES, "probe": SCORES},
)
SET_SCORES = SetScores(
    mean_average_precision=Measured(60.0, 55.5, 64.5),
    macro_f1=Measured(50.25, 45.0, 55.5),
    micro_f1=Measured(52.5, 48.0, 57.0),
    per_class={"Möwe": ClassScores(80, 1000, 0, 0.0, None, 0.0, 12.5)},
)
GAINS = {
    "random_init": Gain(60.0, 40.0, 20.0, 2.0),
    "pixels": Gain(60.0, 45.5, 14.5, 2.0),
    "prevalence": Gain(60.0, 20.0, 40.0, 2.0),
}
SEVERAL = replace(
    LINEAR_EVAL,
    simclr=Accuracies(None, {"1.0": None}, {"1.0": None}),
    random_init=Accuracies(None, {"1.0": None}, {"1.0": None}),
    pixels=Accuracies(None, {"1.0": None}, {"1.0": None}),
    majority_class=None,
    paired={},
    budgets={},
    scores={},
    multi_label=MultiLabelResults(
        labels_per_image=1.5,
        prevalence=20.0,
        scores={"knn": SET_SCORES, "probe": SET_SCORES},
        gains={"knn": GAINS, "probe": GAINS},
        budgets={
            "2 per class": BudgetPrecision(
                20, 3, Measured(50.0, 44.0, 56.0), Measured(40.0, 33.5, 46.5), Measured(45.0, 41.0, 49.0)
            )
        },
    ),
)
"""Of images with several labels each."""
FOLDED = replace(LINEAR_EVAL, test_images=0, estimate="out_of_fold", out_of_fold=OutOfFold(images=40, folds=5))
FINETUNE = FinetuneReport(
    fraction="0.01",
    labels=80,
    seeds=(0, 1),
    top1=70.0,
    ci95=1.0,
    scratch_top1=60.0,
    scratch_ci95=2.0,
    top1_per_seed=(69.5, 70.5),
    scratch_top1_per_seed=(59.0, 61.0),
    reason=None,
    test_images=2000,
    paired=PairedCounts((310, 300), (100, 110)),
    interval=Estimate(70.0, 63.4, 76.6),
    scratch_interval=Estimate(60.0, 47.2, 72.8),
    probe=Estimate(69.0, 62.0, 76.0),
    scores=SCORES,
)
TUNED = replace(
    FINETUNE,
    **dict.fromkeys(("top1", "ci95", "scratch_top1", "scratch_ci95", "paired", "interval", "scratch_interval")),
    top1_per_seed=(),
    scratch_top1_per_seed=(),
    probe=None,
    scores=None,
    multi_label=FinetunePrecision(
        simclr=Measured(61.5, 57.0, 66.0),
        scratch=Measured(50.0, 44.0, 56.0),
        probe=Measured(60.5, 56.0, 65.0),
        gain=Gain(61.5, 50.0, 11.5, 1.0),
        gain_per_seed=(11.0, 12.0),
        scores=SET_SCORES,
    ),
)
"""The same where images have several labels."""
EXPORT = ExportReport(
    images=64,
    cosine_min=0.999999,
    max_abs=1e-05,
    passed=True,
    bundle="6f" * 32,
    source="models/pretrained",
    megabytes=4.95,
    variants={
        "fp32": ServedAccuracy(82.8, None),
        "int8": VariantReport("static", 0.2654, 0.99912, 1.0, 82.7, None, {"cosine_min": 0.9995, "max_abs": 0.005}),
    },
    left_out={"fp16": "mean cosine to fp32 0.9800, at least 0.99 is asked"},
    results=ClassifierResults(2000, 1.25, 3.5, 0.812, {"Möwe": ClassResults(1000, 88.1, None)}),
)
COMPARE = CompareReport(
    champion="v0.0.3",
    test_images=2000,
    classes=10,
    reason=None,
    knn=Paired(80.0, 80.0, 100, 100),
    probe=Paired(80.5, 80.0, 90, 80),
    old_index=OldIndex(True, 80.0, 76.0, 41.5),
    megabytes=Megabytes(4.2, 4.0),
)
LATENCY = LatencyReport(bundle="6f" * 32, champion=None, p50_ms=1.234, champion_p50_ms=None, rounds=100)
VALIDATION = ValidationReport(
    images=ImageCounts(12, 9, 1, {"truncated": 2, "empty_file": 1}, contents=11, contents_quarantined=2),
    passed=True,
    drift=DriftReport(
        verdict="drift",
        batch="0002",
        reference_images=200,
        batch_images=60,
        auroc=0.7123,
        statistics=(Statistic("luma_mean", 0.5, 0.25, True),),
        shapes=(FoundShape("0002", "red and blue swapped"),),
        advice="the new images differ",
    ),
    expectations=(
        Outcome("enough_images", "files", "critical", True, 9.0, ">= 1", None, [], None),
        Outcome("few_truncated", "files", "warning", False, 0.17, "0.1", 2, ["ä", "b"], None),
        Outcome("columns", "manifest", "info", True, "12 columns", "all", None, [], None),
    ),
)
EMBEDDING_DRIFT = EmbeddingDriftReport(
    verdict="drift",
    batch="0002",
    champion=ReleasedEncoder("v0.0.3", "6f" * 32, {"size": 28, "resize": 28}),
    reference_images=200,
    batch_images=60,
    auroc=0.7123,
    mmd=0.0712,
    mmd_p_value=0.005,
    novel_share=0.27,
    statistics=(Statistic("novel_share", 0.27, 0.05, True),),
    novel=(Novelty("ab" * 32, "cd" * 32, 0.8123),),
    advice="to v0.0.3 the new images differ",
)
