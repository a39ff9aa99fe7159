"""The Dagster code location, for ``dagster`` and ``dg``: `DAGSTER_HOME=$PWD dagster dev -m pipeline.definitions`.

It serves the workspace named by ``SIMCLR_WORKSPACE``, else the nearest one above the current folder.
"""

from pipeline.defs import build_definitions
from pipeline.workspace import find

defs = build_definitions(find())
