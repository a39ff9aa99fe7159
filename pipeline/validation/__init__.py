"""Validation: raw bytes → facts → verdict → manifest → drift → expectations → report, without Dagster or torch.

python -m pipeline.validation        in a workspace, after ingest
"""
