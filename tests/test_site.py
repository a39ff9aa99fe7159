"""The documentation site builds without a warning, every page is reachable, and nothing on it comes from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}  # what a page itself loads


class Requests(HTMLParser):
    """The addresses that a page loads when it is opened; a link that a person follows is not one."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "index", "search", "next", "prev", "author"):
            return
        self.addresses += [given[LOADED[tag]] or ""] if given.get(LOADED.get(tag, "")) else []


def foreign(text: str) -> list[str]:
    page = Requests()
    page.feed(text)
    styles = re.findall(r"url\(['\"]?(\w+:)?//[^)]+\)|@import\s+['\"]https?:", text)
    return [address for address in page.addresses if re.match(r"(\w+:)?//", address)] + styles


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.slow
def test_every_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := foreign(page.read_text(encoding="utf-8")))} == {}
    for style in site.rglob("*.css"):
        assert foreign(style.read_text(encoding="utf-8")) == [], style


@pytest.mark.slow
def test_the_questions_of_a_newcomer_have_a_page(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    pages = ("quickstart", "your-own-images", "how-it-works", "serving", "operations", "runbook", "api/deploy")
    for page in (*pages, "benchmarks", "security"):
        assert f"{page}.html" in home, page
    text = (site / "how-it-works.html").read_text(encoding="utf-8")
    for file in ("deploy/images/preprocess.py", "simclr_core/loss/nt_xent.py", "simclr_core/model/encoder.py"):
        assert file in text
    for page in ("contributing", "serving"):  # one links to the file in its folder, one to that above it
        assert 'href="security.html"' in (site / f"{page}.html").read_text(encoding="utf-8").partition("<article")[2]
    api = (site / "api" / "deploy.html").read_text(encoding="utf-8")
    for name in ("deploy.load", "deploy.Encoder.embed", "deploy.Index.search"):
        assert f'id="{name}"' in api, name


@pytest.mark.parametrize(
    "lie",
    ["<script src='https://cdn.example.org/a.js'></script>", "<img src='//a/b.png'>", "@import 'https://a/b.css';"],
)
def test_a_resource_from_elsewhere_is_found(lie: str) -> None:
    assert foreign(lie) != []
