"""The only code that knows DVC.

project     what dvc.yaml and dvc.lock say
client      runs ``dvc``, one writer at a time
processes   runs a command so that nothing of it is left behind
logs        what a stage prints, without secrets
cache       the objects that DVC keeps, and which of them a version needs
locks       DVC's own locks, when a crash has left them behind
remote      sends data to the remote, and proves that others can get them back
translator  a stage and its results in Dagster's terms
assets      the Dagster assets of a workspace

Only the last two know Dagster.
"""
