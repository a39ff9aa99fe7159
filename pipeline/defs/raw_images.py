"""The asset `raw_images`: what ``simclr ingest`` does, so that new images and new settings can come from the UI."""

import dagster as dg
from pydantic import Field

from pipeline.dvc.project import RAW, read_tracked
from pipeline.dvc.translator import POOL, RAW_IMAGES
from pipeline.workspace import Workspace


class RawImagesConfig(dg.Config):
    """Where to look, and which settings to change: ``overrides: {pretrain.epochs: "100"}``."""

    sources: list[str] = Field(default=["inbox"])
    overrides: dict[str, str] = Field(default={})


@dg.asset(
    key=RAW_IMAGES,
    group_name="data",
    kinds={"dvc", "python"},
    owners=["team:data"],
    pool=POOL,
    description="Every image ever ingested, byte for byte, in one frozen batch for each time something was new.",
    metadata={"dvc/path": RAW},
)
def raw_images(
    context: dg.AssetExecutionContext, config: RawImagesConfig, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[None]:
    """Write the overrides into params.yaml, then ingest what is new; with nothing new the data version stays."""
    # Here, because a code location has to load quickly and these bring numpy, fsspec and ruamel.yaml.
    from pipeline.ingest import ingest
    from pipeline.params import override

    override(workspace, config.overrides)
    result = ingest(workspace, config.sources)
    context.log.info(f"raw_images: {result}")
    record = read_tracked(workspace.root, RAW)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(record.md5),
        metadata={
            "new_images": result.new_images,
            "batch": result.batch or "nothing new",
            "dvc/md5": record.md5,
            "dvc/size": record.size,
            "dvc/files": record.files,
            "dvc/executed": result.batch is not None,
        },
    )
