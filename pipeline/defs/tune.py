"""The job ``tune``: a search for settings of pretraining, in the pool of the stages, so that no training runs at the
same time."""

import dagster as dg
from pydantic import Field

from pipeline.defs.stage_assets import foreseen
from pipeline.defs.translator import POOL
from pipeline.tune import process
from pipeline.workspace import Workspace


class TuneConfig(dg.Config):
    """How long to search, and whether to write what is found."""

    budget: str = Field(default="2h", description="Time of the search: 10m, 2h, overnight.")
    trials: int = Field(default=9, ge=2, description="Settings in the first rung, the present ones among them.")
    write: bool = Field(default=False, description="Write settings that are shown to be better into params.yaml.")


@dg.op(pool=POOL)
def search_settings(context: dg.OpExecutionContext, config: TuneConfig, workspace: dg.ResourceParam[Workspace]) -> None:
    """Search, compare with the present settings, and write reports/tune.json."""
    arguments = ["--budget", config.budget, "--trials", str(config.trials), *(["--write"] if config.write else [])]
    said: list[str] = []

    def show(line: str) -> None:
        said.append(line)
        context.log.info(line)

    with foreseen():
        process.run(workspace, arguments, show)
    context.add_output_metadata({"result": dg.MetadataValue.md("```\n" + "\n".join(said) + "\n```")})


@dg.job(description="Search settings of pretraining on the images that are prepared; an interrupted search continues.")
def tune() -> None:
    search_settings()
