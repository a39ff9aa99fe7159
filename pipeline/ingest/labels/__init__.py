"""Tables of labels: what the columns of ``labels.csv`` are, which file a row names, and how names compare.

What the folders of a source say, and what overrules what, is for ``pipeline.ingest.layout``.
"""
