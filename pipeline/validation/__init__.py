"""Validation: raw bytes → facts → verdict → manifest → drift → expectations → report, without Dagster or torch.

python -m pipeline.validation        in a workspace, after ingest
"""

from deploy.moved import keep_old_names

keep_old_names(
    "pipeline.validation",
    {
        "drift": "calibration distances shapes embeddings",
        "probe": "container checksums jpeg_stream hashes facts pool ray_engine facts_cache scan",
        "report": "charts thumbnails side_by_side data_docs",
        "verdict": "copies near_duplicates overrides",
    },
)
