"""From the bytes of a file to facts about it, in a confined process that may crash.

Facts only: what becomes of an image is for ``pipeline.validation.verdict`` to say.
"""

from deploy.moved import names_of

__getattr__ = names_of("pipeline.validation.probe.probe")
