"""From an image file to the pixels that a network takes: decoding, faults, orientation, color, size.

Training and serving share this single copy of the code. It does not depend on any model.
"""
