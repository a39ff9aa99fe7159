"""Distillation (SimCLRv2, section 3): a student learns from what a teacher says of all training images.

The stage, its parameters, its report, its objective, and where teachers come from. It drives the loop of
``pretraining`` and has none itself; exporting the student is the task of ``export``.
"""
