"""``python -m pipeline.explore``: run the stage in the workspace of the current folder."""

from pipeline.explore.explore import run
from pipeline.stage import run_stage

if __name__ == "__main__":
    run_stage("explore", run)
