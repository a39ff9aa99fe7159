"""The pretraining stage: batches, the loop, checkpoints and resuming, precision, warm starts, replay.

The networks, losses and augmentations it drives live in their own rooms.
"""
