"""Pages that show names of strangers: everything in their templates is escaped, and a missing value is an error."""

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from deploy.failure import printable


def load(path: Path, **filters: Callable[..., str]) -> Template:
    """The template, in which ``printable`` is always a filter."""
    loader = FileSystemLoader(path.parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"printable": printable, **filters}
    return environment.get_template(path.name)
