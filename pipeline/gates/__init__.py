"""Whether an encoder is good enough: judgments of the stages' reports, and of a candidate against the champion.

They read reports and return verdicts. Nothing here starts a run or changes what serves.
"""
