"""The documentation site: `make docs` builds it into docs/_build, strictly and without the network."""

from importlib.metadata import version as installed_version
from typing import Any

project = "simclr-pipeline"
author = "The simclr-pipeline developers"
copyright = "the simclr-pipeline developers, Apache-2.0"  # noqa: A001  # Sphinx names it so
version = release = installed_version("simclr-pipeline")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "browser", "deployment"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Pages link to files of the repository, such as ../CHANGELOG.md, and are read there as well.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "simclr-pipeline"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

INCLUDED = {
    "../benchmarks/README.md": "benchmarks.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../SECURITY.md": "security.md",
}


def link_to_pages(_app: object, _page: str, source: list[str]) -> None:
    """Let links to files that a page includes lead to that page."""
    for file, page in INCLUDED.items():
        for up in ("", "../"):
            source[0] = source[0].replace(f"]({up}{file}", f"]({up}{page}")


def link_from_included(_app: object, _path: object, _page: str, content: list[str]) -> None:
    """As ``link_to_pages``, for the links of an included file, which begin at the repository's root."""
    for file, page in INCLUDED.items():
        content[0] = content[0].replace(f"]({file.removeprefix('../')}", f"]({page}")


def setup(app: Any) -> None:
    app.connect("source-read", link_to_pages)
    app.connect("include-read", link_from_included)
