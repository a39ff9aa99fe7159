"""``simclr explore``: see all images on a map, and label them."""

import click

from pipeline.cli.options import pass_workspace
from pipeline.workspace import Workspace


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other address needs SIMCLR_UI_PASSWORD.")
@click.option("--port", default=3100, show_default=True)
@click.option("--add-stage", is_flag=True, help="Add the stage that makes the map to an older dvc.yaml, and end.")
@pass_workspace
def explore(workspace: Workspace, host: str, port: int, add_stage: bool) -> None:
    """Show all images on a map in a browser, as the exported encoder sees them, until Ctrl-C.

    The stage `explore` makes the map at the end of `simclr run`.

    \b
    Example: simclr explore --port 3100
    """
    from pipeline.explore import graph

    if add_stage:
        click.echo(graph.add_stage(workspace))
        return
    from pipeline.explore.serve import serve

    click.echo(f"open http://{f'[{host}]' if ':' in host else host}:{port} in a browser; Ctrl-C ends it")
    serve(workspace, host, port)
