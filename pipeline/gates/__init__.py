"""Whether an encoder is good enough: judgments of the stages' reports, and of a candidate against the champion.

A gate is a function of the evidence that returns a verdict. Nothing here knows Dagster, starts a run, or changes what
serves.
"""
