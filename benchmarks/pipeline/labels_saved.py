"""The sentence of the README: what labels with the demo's encoder are worth without it, from its committed run.

    python -m benchmarks.pipeline.labels_saved
    python -m benchmarks.pipeline.labels_saved demo/reports/summary.json

A summary has the sentence, with intervals over the draws of the labels. One of an earlier version has accuracies alone,
of shares of the labels: each then counts as one draw, which makes the interval wider.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run_report.labels_saved import find_labels_saved
from simclr_core.evaluation.scores.classification import estimate
from simclr_core.evaluation_reports import Accuracies, BudgetAccuracies, Estimate, FinetuneReport, LinearEvalReport

RESULTS = Path(__file__).parents[1] / "results"
TRAINING_IMAGES, TEST_IMAGES = 8000, 2000  # of the demo
FEATURES = ("simclr", "random_init", "pixels")


def find_newest() -> Path:
    """The newest committed run of the demo."""
    return max(RESULTS.glob("*_demo.json"))


def describe_summary(summary: Mapping[str, Any]) -> str:
    """The sentence of a summary of the demo."""
    if saved := summary.get("labels_saved"):
        return str(saved["sentence"])
    top1 = {name: summary["evaluation"][name]["linear_top1"] for name in FEATURES}
    labels = {share: round(float(share) * TRAINING_IMAGES) for share in top1["simclr"]}
    budgets = {
        share: BudgetAccuracies(count, 1, *(of_one_draw(top1[name][share], count) for name in FEATURES))
        for share, count in labels.items()
    }
    unknown = Accuracies(None, {}, {})
    evaluation = LinearEvalReport(unknown, unknown, unknown, labels, TEST_IMAGES, 10, None, budgets=budgets)
    tuned = [of_finetuning(share, labels[share], one) for share, one in summary["finetune"].items()]
    found = find_labels_saved(evaluation, tuned)
    assert found, "the run has no accuracies"
    return found.sentence


def of_one_draw(percent: float, labels: int) -> Estimate:
    return estimate([percent / 100], TEST_IMAGES, labels)


def of_finetuning(share: str, labels: int, one: Mapping[str, Any]) -> FinetuneReport:
    return FinetuneReport(
        fraction=share,
        labels=labels,
        seeds=(),
        top1=one["top1"],
        ci95=one["ci95"],
        scratch_top1=one["scratch_top1"],
        scratch_ci95=None,
        top1_per_seed=(),
        scratch_top1_per_seed=(),
        reason=None,
        interval=of_one_draw(one["top1"], labels),
        scratch_interval=of_one_draw(one["scratch_top1"], labels),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", type=Path, nargs="?", default=find_newest(), help="default: the newest in results/")
    print(describe_summary(json.loads(parser.parse_args().summary.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
