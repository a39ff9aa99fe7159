"""From a trained encoder to the ONNX bundle that ``deploy`` serves, and the proof that both compute the same.

Nothing here trains.
"""

from deploy.moved import names_of

__getattr__ = names_of("simclr_core.export.export")
