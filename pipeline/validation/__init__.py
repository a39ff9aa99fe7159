"""Validation: raw bytes → facts → verdict → manifest → expectations → report. Imports neither Dagster nor torch.

python -m pipeline.validation        in a workspace, after ingest
"""
