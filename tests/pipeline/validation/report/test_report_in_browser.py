"""The report in headless Chromium, full of hostile names: it runs nothing, asks for nothing, and stays in shape."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from deploy.failure import printable
from pipeline.reports import Outcome
from pipeline.validation.drift.drift import Drift, Shape
from pipeline.validation.report.report import render, shown, summary
from tests.browser import Page, browser
from tests.pipeline.validation.corpus.corpus import picture
from tests.pipeline.validation.corpus.manifests import HOSTILE, row, statistic, table

PROBES = [
    *HOSTILE,
    "<img src=x onerror=\"document.title='ran'\">",
    '"><svg onload="document.title=\'ran\'">',
    "</style><style>body{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=/beacon'>",
    "\u202e" * 50 + "reversed.jpg",
    "z\u0310\u0311\u0312\u0313" * 40,
    "W" * 300,
]
FOUL = "<script>fetch('/beacon')</script>\u202e\n"


@dataclass
class Visit:
    """A page in the browser; what it asked for as DevTools tells it, and what a server was asked for."""

    page: Page
    requests: list[str]
    asked: list[str]


def report() -> str:
    """Every text that a page shows is hostile."""
    test = [row(f"test/{name}", split="test", label=name) for name in PROBES]
    rows = [
        *test,
        *(row(name, "corrupt", message=name, container=name, batch=FOUL, ingest_batch=FOUL) for name in PROBES),
        *(row(f"leak/{name}", "test_leak", message=name, copy_of=test[n]["sha256"]) for n, name in enumerate(PROBES)),
        *(row(f"{n}/{name}", content=name, near_group=FOUL) for n, name in enumerate(PROBES)),
        *(row(f"{n}/copy/{name}", "exact_duplicate", content=name, label=name) for n, name in enumerate(PROBES)),
    ]
    manifest = table(rows)
    ids = [row(PROBES[0])["file_id"], *PROBES[:9]]
    rules = [Outcome(f"rule {name}", FOUL, "critical", False, name, name, 3, ids, name) for name in PROBES]
    rules += [Outcome("passes", FOUL, "info", True, name, name, 0, [], None) for name in PROBES]
    samples = {"luma_mean": (np.arange(200.0), np.arange(50.0))}
    drift = Drift(
        "drift", FOUL, 200, 50, FOUL * 20, (statistic("luma_mean", 0.5),), (Shape(FOUL, "gray", True),), samples
    )
    return render(summary(manifest, rules, drift), manifest, drift, {one: picture(1) for one in shown(manifest)})


class Recorder(SimpleHTTPRequestHandler):
    """Serves a folder and remembers what it was asked for."""

    def __init__(self, *args: Any, asked: list[str], **options: Any) -> None:
        self.asked = asked
        super().__init__(*args, **options)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        self.asked.append(self.path)

    def log_error(self, *args: Any) -> None:
        pass


def visit(page: Page, url: str) -> list[str]:
    """Open the page and wait until it is loaded: the addresses that it asked for, as DevTools tells them."""
    page.call("Network.enable")
    page._socket.send(json.dumps({"id": 0, "method": "Page.navigate", "params": {"url": url}}))
    requests: list[str] = []
    while True:
        event = json.loads(page._socket.recv(timeout=60))
        assert event.get("method") != "Page.javascriptDialogOpening", event
        if event.get("method") == "Network.requestWillBeSent":
            requests.append(event["params"]["request"]["url"])
        if event.get("method") == "Page.loadEventFired" and url in requests:  # not that of the empty page before
            return requests


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str, list[str]]]:
    """A browser, the address of a folder with the report and a page that is not harmless, and what is asked there."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "validation.html").write_text(report(), encoding="utf-8")
    (folder / "harmful.html").write_text(
        f"<img src=/beacon><p onclick=''>{PROBES[-7]}<script>document.title='ran'</script>"
    )
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Recorder, directory=folder, asked=asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with browser(tmp_path_factory.mktemp("profile")) as page:
            yield page, f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def opened(site: tuple[Page, str, list[str]]) -> Visit:
    page, address, asked = site
    asked.clear()
    requests = visit(page, f"{address}/validation.html")
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    return Visit(page, requests, list(asked))


def test_the_page_makes_no_request(opened: Visit) -> None:
    beyond = [url for url in opened.requests if not url.startswith("data:")]
    assert len(beyond) == 1
    assert beyond[0].endswith("/validation.html")
    assert opened.asked == ["/validation.html"]
    assert opened.page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_no_script_runs(opened: Visit) -> None:
    assert opened.page.evaluate("document.title") == "Validation failed"
    assert opened.page.evaluate("document.scripts.length + document.forms.length + document.styleSheets.length") == 1
    handlers = (
        "[...document.querySelectorAll('*')].filter(one => one.getAttributeNames().some(name => name.startsWith('on')))"
    )
    assert opened.page.evaluate(f"{handlers}.length") == 0
    links = "[...document.links].map(one => one.getAttribute('href')).filter(one => !one.startsWith('#'))"
    assert set(opened.page.evaluate(links)) == {"data_docs.html"}


def test_every_name_is_shown_as_text(opened: Visit) -> None:
    shown_text = opened.page.evaluate("document.body.textContent")
    for name in PROBES:
        assert printable(name) in shown_text
    assert not {"\u202e", "\u200b", "\u2028", "\U000e0041"} & set(shown_text)
    assert opened.page.evaluate("document.title.length + document.querySelectorAll('.text').length") > 100
    assert opened.page.evaluate("document.images.length") == opened.page.evaluate(
        "[...document.images].filter(one => one.naturalWidth === 64).length"
    )


def test_direction_marks_reorder_nothing(opened: Visit) -> None:
    """Every letter of the name stands right of the one before, and each name is isolated from what is next to it."""
    left = opened.page.evaluate(
        r"""(() => {
            const names = [...document.querySelectorAll('.text')]
            const name = names.find(one => one.textContent.includes('gnp.exe')).firstChild
            const range = document.createRange()
            return [...name.data].map((_, index) => {
                range.setStart(name, index); range.setEnd(name, index + 1)
                const box = range.getBoundingClientRect()
                return box.top * 10000 + box.left
            })
        })()"""
    )
    assert len(left) >= len("photo\\u202egnp.exe")
    assert left == sorted(left)
    style = "getComputedStyle(one).unicodeBidi + ' ' + getComputedStyle(one).direction"
    names = f"new Set([...document.querySelectorAll('.text, bdi')].map(one => {style}))"
    assert opened.page.evaluate(f"[...{names}]") == ["isolate ltr"]
    starts = opened.page.evaluate(
        "[...document.querySelectorAll('figcaption')].filter(one => one.querySelector('.text') && !one.closest('.one'))"
        ".map(one => one.getBoundingClientRect().left - one.parentElement.getBoundingClientRect().left)"
    )
    assert set(starts) == {0}


@pytest.mark.parametrize("width", [1280, 400])
def test_no_name_breaks_the_layout(opened: Visit, width: int) -> None:
    opened.page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 800
    )
    wide = "[...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1)"
    assert opened.page.evaluate(f"{wide}.map(one => one.outerHTML.slice(0, 200))") == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tall = "Math.max(...[...document.querySelectorAll('.text')].map(one => one.getBoundingClientRect().height))"
    assert opened.page.evaluate(tall) < 80


def test_the_browser_detects_a_harmful_page(site: tuple[Page, str, list[str]], opened: Visit) -> None:
    """What these tests look for is found where it is."""
    page, address, asked = site
    asked.clear()
    requests = visit(page, f"{address}/harmful.html")
    assert any(url.endswith("/beacon") for url in requests)
    assert "/beacon" in asked
    assert page.evaluate("document.title") == "ran"
