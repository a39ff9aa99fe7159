"""The contrastive losses over all views of all processes, and forward and backward of a step.

Tensors in, tensors out; nothing here knows a data set or a stage.
"""
