"""From a candidate that has passed its gates to the encoder that serves, and back: push, prove, tag, switch.

Git's tags are the truth and the registry follows them. Whether a candidate is good enough is for ``pipeline.gates``.
"""

from deploy.moved import names_of

__getattr__ = names_of("pipeline.release.release")
