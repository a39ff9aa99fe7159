"""From an image file to the pixels that a network takes: decoding, faults, orientation, color, size.

The only copy of this code, for training and for serving. Nothing here knows a model.
"""
