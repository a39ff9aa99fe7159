"""The gates on single stages: what each has to show before the next one is worth its time."""

from deploy.plural import counted
from pipeline.gates.evidence import Evidence
from pipeline.gates.verdict import Verdict, not_applicable, not_judged
from pipeline.reports import EmbeddingDriftReport
from simclr_core.errors import ReportError
from simclr_core.evaluation.fewest import PARITY_IMAGES
from simclr_core.reports import ExportReport, PretrainReport

FEWEST_TO_DIFFER = 3  # two have an effective rank of 2 at most, little above that of a collapsed network


def not_collapsed(evidence: Evidence) -> Verdict:
    """The loss stayed finite, and the features of different images differ."""
    report = evidence.report(PretrainReport)
    prepared = evidence.card
    if prepared is not None and (images := prepared.images["train"]) < FEWEST_TO_DIFFER:
        return not_applicable(f"{counted(images, 'training image')} cannot show whether features differ; add images")
    rank, deviation = report.effective_rank, report.feature_std
    shape = f"effective rank {rank:.1f}, feature standard deviation {deviation:.3g}"
    if not report.finite:
        description = "the loss has to stay finite and did not; lower the learning rate or turn mixed precision off"
    elif report.collapsed:
        description = (
            f"all images have nearly the same features, {shape}, where different images have to differ; lower the "
            "learning rate or raise the batch size"
        )
    else:
        losses = f"loss {report.loss_first:.4g} → {report.loss_last:.4g}, chance is {report.loss_chance:.4g}"
        description = f"{losses}; {shape}"
    return Verdict(
        passed=report.finite and not report.collapsed,
        description=description,
        numbers={"effective_rank": rank, "feature_std": deviation},
    )


def onnx_parity(evidence: Evidence) -> Verdict:
    """onnxruntime gives the embeddings that PyTorch gives, and files as they came give those of what training saw.

    Compared are up to 64 images. If all of n agree, then with 95 % confidence no more than 1 - 0.05^(1/n) of others
    do not: 5 % for 64 images, 14 % for 20.
    """
    report = evidence.report(ExportReport)
    cosine, difference, images = report.cosine_min, report.max_abs, report.images
    if not images:
        return not_applicable("there was no image to compare on; ingest some")
    description = f"lowest cosine {cosine}, largest difference {difference} on {counted(images, 'image')}"
    if report.passed and images < PARITY_IMAGES:
        most = 100 * (1 - 0.05 ** (1 / images))
        description += (
            f": with 95 % confidence up to {most:.0f} % of other images may differ by more; "
            f"{PARITY_IMAGES} or more images would prove more"
        )
    if not report.passed:
        description += f", which {report.file} calls too far apart; `simclr run --select export` exports again"
    numbers: dict[str, float | str | None] = {"cosine_min": cosine, "max_abs": difference, "images": images}
    served, least = report.served, evidence.limits.min_served_cosine
    agrees = served is None or served.cosine_min >= least
    if served is not None:
        numbers |= {"served/cosine_min": served.cosine_min, "served/cosine_median": served.cosine_median}
        description += (
            f"; files as they came against what training saw of {counted(served.images, 'image')}: lowest cosine "
            f"{served.cosine_min:.4f}, median {served.cosine_median:.4f}"
        )
    if served is not None and not agrees:
        description += (
            f"; gates.min_served_cosine asks for {least:g}, {served.worst[:12]} has the lowest: set "
            "prepare.short_side to null, so that images are resized once, and raise prepare.jpeg_quality"
        )
    return Verdict(passed=report.passed and agrees, description=description, numbers=numbers)


def embedding_drift(evidence: Evidence) -> Verdict:
    """To the released encoder, the newest batch looks like the earlier images."""
    # Drift is not a fault of the candidate, and training on the new images is the remedy: a warning at most.
    try:
        report = evidence.report(EmbeddingDriftReport)
    except ReportError as error:
        return not_judged(str(error), severity="warning")
    numbers: dict[str, float | str | None] = {
        "champion": report.champion.version or "none yet",
        "bundle": (report.champion.bundle or "none yet")[:12],
        "batch": report.batch,
        "images": f"{report.batch_images} new, {report.reference_images} earlier",
    }
    if report.verdict == "not judged":
        return not_applicable(f"drift was not checked, {report.advice}", numbers, severity="warning")
    for one in report.statistics:
        numbers |= {one.name: one.effect, f"{one.name}/threshold": one.threshold}
    return Verdict(
        passed=report.verdict != "drift",
        description=f"drift: {report.advice}" if report.verdict == "drift" else f"no drift: {report.advice}",
        numbers=numbers | ({"mmd_p_value": report.mmd_p_value} if report.statistics else {}),
        severity="warning",
    )
