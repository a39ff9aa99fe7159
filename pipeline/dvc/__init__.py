"""The only code that knows DVC.

project     what dvc.yaml and dvc.lock say
client      runs ``dvc``, one writer at a time
processes   runs a command so that nothing of it is left behind
translator  a stage and its results in Dagster's terms
assets      the Dagster assets of a workspace

The first three work without Dagster.
"""
