"""Embedding whole folders: which files, in what order, written how, and resumed after a kill.

One image, or a few, need none of this: ``deploy.encoder``.
"""
