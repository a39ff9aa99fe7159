"""The views of an image that SimCLR contrasts: crop, flip, color jitter, blur, in whole batches.

Tensors in, tensors out; nothing here reads a file.
"""
