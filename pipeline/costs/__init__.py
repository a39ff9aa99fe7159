"""One model of what a run costs in time, memory and disk, and the record of what runs were expected to cost and did.

The model is arithmetic; what it multiplies is measured on this machine and on these images. It knows nothing of a
workspace: ``pipeline.plan`` asks it about one.
"""
