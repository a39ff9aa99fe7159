"""What the next run of a workspace will cost, and how far the expectation of the latest one was off.

``pipeline.costs`` has the model; here is what a workspace has to do.
"""
