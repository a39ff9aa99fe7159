"""Prepared images: shards, the data set, decoded pixels in memory, the order of a run, subsets of the labels.

Nothing here augments or trains.
"""
