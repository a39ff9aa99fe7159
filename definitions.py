"""What `dg` loads in this workspace."""

from pipeline.definitions import defs

__all__ = ["defs"]
