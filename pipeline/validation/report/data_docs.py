"""Great Expectations' Data Docs of one validation, as one page that loads nothing.

What each expectation says, and what was seen, is written by Great Expectations' own renderers. Their pages bring
scripts, fonts and a logo from five other hosts, one of which learns who looks, and write values into the page as they
are. Of their HTML only the tags of text and tables are kept, each with its class alone; the style is ours, the numbers
of rows are left out, and nothing tells when or where the page was made.
"""

import html
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from jinja2 import pass_context as with_context
from markupsafe import Markup

from deploy.failure import printable
from pipeline.validation.report.template import load

TEXT = frozenset(["div", "span", "p", "br", "hr", "h5", "h6", "i", "b", "strong", "ul", "ol", "li"])
TABLE = frozenset(["table", "thead", "tbody", "tr", "th", "td"])
KEPT = TEXT | TABLE
EMPTY = frozenset(["br", "hr"])
SILENT = frozenset(["script", "style", "title"])


def render(suites: Mapping[str, Sequence[Any]]) -> str:
    """The page of these results of expectations, by the title under which they are shown; their meta has a ``name``."""
    view = _view()
    shown = [
        {
            "name": name,
            "held": sum(_holds(result) for result in results),
            "rows": [_row(view, result) for result in results],
        }
        for name, results in suites.items()
    ]
    return load(Path(__file__).with_name("data_docs.html.j2")).render(suites=shown)


def _holds(result: Any) -> bool:
    """An info that was evaluated is noted, and counts as held, as everywhere."""
    return bool(result.success) or (_severity(result) == "info" and not _raised(result.exception_info))


def _severity(result: Any) -> str:
    severity = result.expectation_config.severity
    return str(getattr(severity, "value", severity))


def _raised(info: Mapping[str, Any]) -> bool:
    records = [info] if "raised_exception" in info else list(info.values())
    return any(record["raised_exception"] for record in records)


def _row(view: Any, result: Any) -> tuple[str, str, list[Markup]]:
    """Name and severity of an expectation, and its cells: status, what it says, what was observed."""
    from great_expectations.render.renderer.content_block import validation_results_table_content_block as renderers

    block: Any = renderers.ValidationResultsTableContentBlockRenderer.render([_plain_result(result)])
    (row,) = block.to_json_dict()["table"]
    cell = view.env.from_string("{{ cell | render_content_block | safe }}")
    cells = [Markup(_sanitized(cell.render(cell=content))) for content in row]  # noqa: S704
    return result.expectation_config.meta["name"], _severity(result), cells


def _plain_result(result: Any) -> Any:
    """A copy whose values are Python's own, printable, and independent of the machine."""
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    config = result.expectation_config
    arguments = {key: value for key, value in config.kwargs.items() if key != "batch_id"}
    # Shares of no rows are NaN, which is not itself; numbers of rows mean nothing to a reader.
    known = {key: value for key, value in result.result.items() if "index" not in key and value == value}
    return ExpectationValidationResult(
        success=bool(result.success),
        expectation_config=ExpectationConfiguration(type=config.type, kwargs=arguments),
        result=_plain(known),
        exception_info=_without_traceback(_plain(result.exception_info)),
    )


def _without_traceback(info: Mapping[str, Any]) -> dict[str, Any]:
    """Great Expectations gives one record, or one per metric that could not be computed; its key is an address."""
    records = [info] if "raised_exception" in info else list(info.values())
    raised = next((record for record in records if record["raised_exception"]), records[0])
    return {**raised, "exception_traceback": ""}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return printable(value)
    return value.item() if hasattr(value, "item") else value  # the renderers take none of numpy's numbers


def _view() -> Any:
    """Great Expectations' view, which escapes what it would write as it is."""
    from great_expectations.render.view.view import DefaultJinjaComponentView

    class EscapingView(DefaultJinjaComponentView):
        @with_context
        def render_content_block(self, context: Any, content_block: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(content_block, str):
                return html.escape(content_block)
            if isinstance(content_block, list):
                content_block = [html.escape(one) if isinstance(one, str) else one for one in content_block]
            return super().render_content_block(context, content_block, *arguments, **options)

    return EscapingView()


def _sanitized(text: str) -> str:
    sanitizer = _Sanitizer()
    sanitizer.feed(text)
    sanitizer.close()
    return "".join(sanitizer.kept)


class _Sanitizer(HTMLParser):
    """Keeps text, and the tags of KEPT with their class. No other attribute gets through, and so no address."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._silent += tag in SILENT
        if tag in KEPT and not self._silent:
            names = dict(attrs).get("class")
            self.kept.append(f'<{tag} class="{html.escape(names)}">' if names else f"<{tag}>")

    def handle_endtag(self, tag: str) -> None:
        if tag in KEPT - EMPTY and not self._silent:
            self.kept.append(f"</{tag}>")
        self._silent = max(0, self._silent - (tag in SILENT))

    def handle_data(self, data: str) -> None:
        if not self._silent:
            text = " ".join(data.split())
            space = [" " if data[:1].isspace() else "", " " if data[-1:].isspace() and text else ""]
            self.kept.append(html.escape(space[0] + text + space[1], quote=False))
