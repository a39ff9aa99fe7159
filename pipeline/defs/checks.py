"""The gates between the stages, in the order in which a candidate meets them; those against the champion come last."""

from statistics import fmean

import dagster as dg

from pipeline.gates.champion import latency_budget, low_label, old_index, representation, size_budget
from pipeline.gates.evidence import Evidence, gate


@gate("data/manifest", rejects=False)
def data_contract(evidence: Evidence) -> dg.AssetCheckResult:
    """Every critical Great Expectations expectation holds for the images that were accepted."""
    report = evidence.report("reports/validation.json")
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


@gate("models/pretrained")
def not_collapsed(evidence: Evidence) -> dg.AssetCheckResult:
    """The loss stayed finite, and the features of different images differ."""
    report = evidence.report("reports/pretrain.json")
    rank, deviation = report["effective_rank"], report["feature_std"]
    shape = f"effective rank {rank}, feature standard deviation {deviation}"
    if not report["finite"]:
        description = "the loss did not stay finite; lower the learning rate or turn mixed precision off"
    elif report["collapsed"]:
        description = (
            f"all images have nearly the same features, {shape}; lower the learning rate or raise the batch size"
        )
    else:
        description = f"loss {report['loss_first']} → {report['loss_last']}, chance is {report['loss_chance']}; {shape}"
    return dg.AssetCheckResult(
        passed=bool(report["finite"]) and not report["collapsed"],
        description=description,
        metadata={"effective_rank": rank, "feature_std": deviation},
    )


@gate("models/probe")
def probe_beats_random_init(evidence: Evidence) -> dg.AssetCheckResult:
    """A linear probe on the features classifies better than one on the features of the same network before training.

    Compared is the mean over the label fractions, steadier than any one of them. Without labels there is nothing to
    compare, and the check passes.
    """
    report = evidence.report("reports/linear_eval.json")
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


@gate("models/bundle")
def onnx_parity(evidence: Evidence) -> dg.AssetCheckResult:
    """onnxruntime gives the embeddings that PyTorch gives."""
    report = evidence.report("reports/export.json")
    cosine, difference, images = report["cosine_min"], report["max_abs"], report["images"]
    return dg.AssetCheckResult(
        passed=bool(report["passed"]),
        description=f"lowest cosine {cosine}, largest difference {difference} on {images} images",
        metadata={"cosine_min": cosine, "max_abs": difference, "images": images},
    )


GATES = (
    data_contract,
    not_collapsed,
    probe_beats_random_init,
    onnx_parity,
    representation,
    low_label,
    latency_budget,
    size_budget,
    old_index,
)
