"""The page of Great Expectations' results: it loads nothing, does not name the machine, and is safe."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.config import ValidateConfig
from pipeline.validation.drift.drift import Drift
from pipeline.validation.evaluate import evaluate, tables
from pipeline.validation.expectations import expectations
from pipeline.validation.report import data_docs
from pipeline.validation.report.data_docs import KEPT
from tests.browser import browser
from tests.pipeline.validation.corpus.manifests import row, table

RULES = expectations(ValidateConfig())
NOT_JUDGED = Drift("not judged", "0001", 0, 1, "there is no earlier batch")
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "'\"></td></table><h1>owned</h1> $content ${icon} {{ 7 * 7 }}",
    "</style><base href='https://example.org'>",
    "\u202egnp.\nexe\x00\x1b[31m",
)
GUARD = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
from tests.pipeline.validation.report.test_data_docs import page
html = page()
assert "great_expectations" in sys.modules
print(sorted(name for name in sys.modules if "posthog" in name), len(html) > 10_000)
"""


def page(*values: str, count: int = 30, without: str | None = None) -> str:
    """The page about images of which the first have these values where a split should be."""
    rows = [row(f"{number}.png") for number in range(count)]
    rows = [one | {"split": value} for one, value in zip(rows, values, strict=False)] + rows[len(values) :]
    frames = tables(table(rows), NOT_JUDGED)
    if without:
        frames["contents"] = frames["contents"].drop(without)
    return data_docs.render(evaluate(RULES, frames).results)


class Tags(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def spoiled() -> str:
    return page(*HOSTILE)


@pytest.mark.seconds
def test_every_expectation_is_on_the_page_with_its_severity_and_result(spoiled: str) -> None:
    for rule in RULES:
        assert f"<td>{rule.name}</td><td>{rule.severity}</td>" in spoiled
    text = " ".join(Tags(spoiled).text.split())
    assert "values must belong to this set: train test. 5 unexpected values found." in text
    assert "short_side values must be greater than or equal to 8.0, at least 95 % of the time. 0% unexpected" in text
    assert len(spoiled.encode()) < 3_000_000


@pytest.mark.seconds
def test_an_info_that_does_not_hold_is_counted_as_elsewhere(spoiled: str) -> None:
    rows = re.findall(r"<tr><td>(.*?)</td><td>\w+</td><td>(\w+)</td>", spoiled)
    failed = [severity for status, severity in rows if "text-success" not in status]
    assert {"info", "critical"} <= {*failed}
    counted = [tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+) hold", spoiled)]
    held, every = (sum(column) for column in zip(*counted, strict=True))
    assert (held, every) == (len(rows) - len([one for one in failed if one != "info"]), len(rows))


def test_the_page_loads_nothing_from_elsewhere(spoiled: str) -> None:
    seen = Tags(spoiled).tags
    assert ("meta", "Content-Security-Policy") in [(tag, attributes.get("http-equiv")) for tag, attributes in seen]
    assert {tag for tag, _ in seen} <= KEPT | {"html", "head", "meta", "title", "style", "body", "h1", "h2", "a"}
    used = {(tag, name) for tag, attributes in seen for name in attributes if tag not in ("html", "meta")}
    assert {name for _, name in used} <= {"class", "href", "id"}
    assert all(str(attributes["href"]).startswith("#suite-") for tag, attributes in seen if tag == "a")
    style = spoiled[spoiled.index("<style>") : spoiled.index("</style>")]
    assert not re.search(r"url|@import|//", style)


@pytest.mark.seconds
def test_hostile_values_are_shown_as_text(spoiled: str, tmp_path: Path) -> None:
    assert spoiled.count("<h1>") == 1
    assert "\u202e" not in spoiled
    file = tmp_path / "data_docs.html"
    file.write_text(spoiled, encoding="utf-8")
    with browser(tmp_path / "profile") as tab:
        tab.open(file.as_uri())
        shown = tab.wait_for("Data Docs", "<script>document.title='owned'</script>", "\\u202egnp.\\nexe")
        assert tab.evaluate("document.title") == "Data Docs"
        assert tab.evaluate("performance.getEntriesByType('resource').length") == 0
    assert "{{ 7 * 7 }}" in shown


@pytest.mark.seconds
def test_the_same_images_give_the_same_bytes_without_time_or_place(spoiled: str) -> None:
    assert page(*HOSTILE) == spoiled
    assert not re.search(r"\d{4}-\d\d-\d\d|\d{8}T\d{6}|[0-9a-f]{8}-[0-9a-f]{4}-|site-packages", spoiled)
    assert str(Path.cwd()) not in spoiled


@pytest.mark.seconds
def test_an_error_is_reported_without_its_traceback() -> None:
    html = page(without="short_side")
    assert "raised an exception" in html
    assert "short_side" in html
    assert "Traceback" not in html
    assert "site-packages" not in html
    assert page(without="short_side") == html


@pytest.mark.slow
def test_great_expectations_opens_no_connection_and_sends_no_telemetry() -> None:
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", GUARD], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[] True\n"), done.stderr


@pytest.mark.seconds
def test_the_length_of_the_page_does_not_depend_on_the_number_of_rows() -> None:
    """Ten values stand for all."""
    few, many = page("?", count=50), page(*["?"] * 500, count=500)
    assert len(many) < len(few) + 2000
