"""The only code that knows DVC: the graph in dvc.yaml, running its stages, the cache with its locks, and the remote.

Nothing here knows Dagster, what a stage computes, or what a release is.
"""
