"""The gates between the stages: blocking checks on the numbers that the stages have committed to ``reports/``.

Each is a check of its own rather than part of a stage, so that it can be repeated without computing anything, and also
holds when DVC skips the stage.
"""

import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

import dagster as dg

from pipeline.dvc.translator import asset_key
from pipeline.workspace import Workspace

Report = dict[str, Any]
Judge = Callable[[Report], dg.AssetCheckResult]


def gate(asset: str, report: str) -> Callable[[Judge], dg.AssetChecksDefinition]:
    """Make a blocking check of the asset at this path out of a verdict on one of its reports.

    A report that is missing, unreadable or without the numbers in question does not pass.
    """

    def decorate(judge: Judge) -> dg.AssetChecksDefinition:
        @dg.asset_check(name=judge.__name__, asset=asset_key(asset), description=judge.__doc__, blocking=True)
        def check(
            context: dg.AssetCheckExecutionContext, workspace: dg.ResourceParam[Workspace]
        ) -> dg.AssetCheckResult:
            try:
                result = judge(json.loads((workspace.reports / report).read_text(encoding="utf-8")))
            except FileNotFoundError:
                result = _failed(f"reports/{report} does not exist; run the stage that writes it")
            except (OSError, ValueError) as error:
                result = _failed(f"reports/{report} cannot be read: {error}; run the stage that writes it again")
            except (LookupError, TypeError) as error:
                result = _failed(f"reports/{report} lacks what this check needs: {error!r}; was an older version here?")
            verdict = "passed" if result.passed else "FAILED"
            context.log.info(f"{judge.__name__}: {verdict}, {result.description}")
            return result

        return check

    return decorate


@gate("data/manifest", "validation.json")
def data_contract(report: Report) -> dg.AssetCheckResult:
    """Every critical Great Expectations expectation holds for the images that were accepted."""
    broken = [one for one in report["expectations"] if not one["success"]]
    accepted, quarantined = report["images"]["accepted"], report["images"]["quarantined"]
    parts = [f"{accepted} images accepted, {sum(quarantined.values())} quarantined"]
    parts += [f"{one['severity']} {one['name']}: {one['observed']}, allowed {one['threshold']}" for one in broken]
    return dg.AssetCheckResult(
        passed=bool(report["passed"]),
        description="; ".join(parts),
        metadata={
            "accepted": accepted,
            "quarantined": dg.MetadataValue.json(quarantined),
            "broken": dg.MetadataValue.json(broken),
        },
    )


@gate("models/pretrained", "pretrain.json")
def not_collapsed(report: Report) -> dg.AssetCheckResult:
    """The loss stayed finite, and the features of different images differ."""
    shape = f"effective rank {report['effective_rank']}, feature standard deviation {report['feature_std']}"
    if not report["finite"]:
        description = "the loss did not stay finite; lower the learning rate or turn mixed precision off"
    elif report["collapsed"]:
        description = (
            f"all images have nearly the same features, {shape}; lower the learning rate or raise the batch size"
        )
    else:
        description = f"loss {report['loss_first']} → {report['loss_last']}, chance is {report['loss_chance']}; {shape}"
    return dg.AssetCheckResult(passed=bool(report["finite"]) and not report["collapsed"], description=description)


@gate("models/probe", "linear_eval.json")
def probe_beats_random_init(report: Report) -> dg.AssetCheckResult:
    """A linear probe on the features classifies better than one on the features of the same network before training.

    Compared is the mean over the label fractions, steadier than any one of them. Without labels there is nothing to
    compare, and the check passes.
    """
    ours, random = (report[encoder]["linear_top1"] for encoder in ("simclr", "random_init"))
    fractions = [fraction for fraction in ours if ours[fraction] is not None and random[fraction] is not None]
    if not fractions:
        return dg.AssetCheckResult(passed=True, description=f"nothing to compare: {report['reason']}")
    trained, untrained = (fmean(top1[fraction] for fraction in fractions) for top1 in (ours, random))
    return dg.AssetCheckResult(
        passed=trained > untrained,
        description=f"mean top-1 {trained:.2f} % against {untrained:.2f} % of random init",
        metadata={"simclr": trained, "random_init": untrained, "gain": trained - untrained},
    )


@gate("models/bundle", "export.json")
def onnx_parity(report: Report) -> dg.AssetCheckResult:
    """onnxruntime gives the embeddings that PyTorch gives."""
    cosine, difference, images = report["cosine_min"], report["max_abs"], report["images"]
    return dg.AssetCheckResult(
        passed=bool(report["passed"]),
        description=f"lowest cosine {cosine}, largest difference {difference} on {images} images",
        metadata={"cosine_min": cosine, "max_abs": difference, "images": images},
    )


def _failed(description: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False, description=description)


GATES = (data_contract, not_collapsed, probe_beats_random_init, onnx_parity)
