"""The processes and records behind Dagster's runs: launching them, their database, their output.

Nothing here knows what a run computes.
"""
