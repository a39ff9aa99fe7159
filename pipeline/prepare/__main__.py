"""``python -m pipeline.prepare``: see ``pipeline.prepare.prepare``."""

from pipeline.prepare.prepare import run
from pipeline.stage import run_stage

if __name__ == "__main__":
    run_stage("prepare", run)
