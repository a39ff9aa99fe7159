"""From folders, globs and URLs to frozen raw batches in data/raw, byte for byte; each file is read once.

Nothing here decodes an image: whether a file is one is for ``pipeline.validation`` to say.
"""

from deploy.moved import names_of

__getattr__ = names_of("pipeline.ingest.ingest")
