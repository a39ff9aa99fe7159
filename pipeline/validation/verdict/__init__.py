"""From facts to verdicts: accept, convert or quarantine, and why; copies and near copies; a person's overrides.

Works on tables; nothing here opens an image.
"""

from deploy.moved import names_of

__getattr__ = names_of("pipeline.validation.verdict.verdict")
