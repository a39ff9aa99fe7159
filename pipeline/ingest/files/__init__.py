"""The files of a source: which there are, which of them are taken, and their bytes.

Nothing here knows what a file says, or what was ingested before.
"""
