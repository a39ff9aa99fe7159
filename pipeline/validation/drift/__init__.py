"""Whether a new batch looks like the earlier ones: distances, a classifier, and what chance alone would give.

Works on tables and on vectors; nothing here opens an image.
"""

from deploy.moved import names_of

__getattr__ = names_of("pipeline.validation.drift.drift")
