"""When to train again: what waits in the sources, and one pure function that decides.

Nothing here starts a run: ``pipeline.defs.retraining`` does.
"""
