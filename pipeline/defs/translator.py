"""dvc.yaml in Dagster's terms: an asset for each result of a stage, described by the stage's ``meta.dagster``.

stages:
  pretrain:
    desc: What the asset page says
    meta:
      dagster:
        group: training
        kinds: [pytorch]
        owners: ["team:ml"]
        pool: dvc
        numbers: [knn_top1, loss_*]      # which of those in the metrics are drawn over time; by default all
        facts: [data/card.json]          # files with more of them
"""

import re
from pathlib import PurePosixPath
from typing import Any

import dagster as dg

from pipeline.dvc.project import CHAMPION, RAW, Out, Project, Stage

POOL = "dvc"
RAW_IMAGES = dg.AssetKey("raw_images")
SOURCES = {RAW: RAW_IMAGES, CHAMPION: dg.AssetKey("champion")}  # not results of a stage; they have separate names


def asset_key(path: str) -> dg.AssetKey:
    """``reports/compare.json`` → reports/compare, ``models/finetuned/0.01`` → models/finetuned_1pct.

    The graph shows the last part alone: an extension tells nothing there, and a number not enough.
    """
    if path in SOURCES:
        return SOURCES[path]
    *folders, name = PurePosixPath(re.sub(r"\.(json|html|csv|png|parquet)$", "", path)).parts
    if name[0].isdigit() and folders:
        share = f"{100 * float(name):g}pct" if re.fullmatch(r"[01]\.\d+", name) else name
        name = f"{folders.pop()}_{share}"
    return dg.AssetKey([part.replace(".", "_") for part in (*folders, name)])


def op_name(stage: Stage) -> str:
    """``finetune@0.01`` → finetune_0_01: Dagster allows letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9_]", "_", stage.name)


def pool(stage: Stage) -> str:
    """The pool whose single slot keeps two runs out of one workspace."""
    return str(_meta(stage).get("pool", POOL))


def charts(stage: Stage) -> tuple[str, ...]:
    """Patterns of the numbers that are drawn over time, such as ``images/*``."""
    return tuple(_meta(stage).get("numbers", ["*"]))


def facts(stage: Stage) -> tuple[str, ...]:
    """JSON files with numbers about the results, in addition to the stage's metrics."""
    return tuple(_meta(stage).get("facts", []))


def asset_spec(project: Project, stage: Stage, out: Out) -> dg.AssetSpec:
    """The asset of one result: where it comes from, who looks after it, and when its definition has changed."""
    meta = _meta(stage)
    return dg.AssetSpec(
        key=asset_key(out.path),
        deps=[asset_key(path) for path in project.upstream(stage)],
        description=out.description or stage.description,
        group_name=meta.get("group"),
        kinds=set(meta.get("kinds", ["dvc"])),
        owners=meta.get("owners"),
        code_version=stage.digest,
        metadata={"dvc/stage": stage.name, "dvc/path": out.path, "dvc/command": stage.command},
    )


def _meta(stage: Stage) -> dict[str, Any]:
    meta: dict[str, Any] = stage.meta.get("dagster", {})
    return meta
