"""Embed whole folders: find the files, write the vectors in one of several formats, and resume after a kill.

For one image or a few, ``deploy.encoder`` is enough.
"""
