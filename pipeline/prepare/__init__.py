"""Prepare: accepted raw files become canonical images in shards, the only thing that training reads.

The parts of raw batches that did not change are kept. Nothing here judges an image: what is accepted was decided by
``pipeline.validation``.
"""
