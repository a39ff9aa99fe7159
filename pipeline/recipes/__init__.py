"""The parameter sets that a workspace can begin with, one file each, and what makes a params.yaml of them.

Nothing here looks at an image or at the machine: values that depend on them are for ``pipeline.proposal`` to choose.
"""
