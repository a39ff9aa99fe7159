"""The search for settings of pretraining: what is tried, how long, how it is judged, and whether it is better.

Belongs here: successive halving over real trainings, and the paired comparison at its end. Each training is that of
``pretraining``; the workspace, its params.yaml and what a person reads are for ``pipeline.tune``.
"""
