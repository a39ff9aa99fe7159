"""The page at /, in a real browser: it sends requests only to this server, and works with the keyboard."""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from deploy.search.index import Index
from deploy.server.models import Model, load_model
from deploy.server.page import DOCS, PAGE, page
from tests.browser import browser
from tests.deploy.conftest import encoded
from tests.deploy.server.conftest import running

TOKEN = "0123456789abcdef-token"


@pytest.mark.parametrize("name", [PAGE, DOCS])
def test_the_policy_of_a_page_allows_only_its_own_script(name: str) -> None:
    html, policy = page(name)
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?://|//cdn|@import|style=|onclick=", html)


COLORS = {"sunset.jpg": (250, 5, 5), "meadow.jpg": (5, 250, 5), "sea.jpg": (5, 5, 250)}


def searchable(path: Path) -> Model:
    """Load a model with an index of three images."""
    encoder = load_model(path, 1, "fp32", None).encoder
    pictures = [np.full((9, 9, 3), color, np.uint8) for color in COLORS.values()]
    return Model(encoder, Index.build(encoder.embed(pictures).vectors, list(COLORS), encoder))


@pytest.mark.slow
def test_the_page_shows_labels_and_neighbors_of_a_chosen_image(bundle: Path, tmp_path: Path) -> None:
    image = tmp_path / "leaf.png"
    image.write_bytes(encoded(np.full((60, 90, 3), (5, 250, 5), np.uint8)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with running(bundle, load=searchable, token=TOKEN) as server, browser(tmp_path / "profile") as tab:
        tab.call("Network.enable")
        tab.open(f"http://127.0.0.1:{server.port}/")
        tab.wait_for("Authorization")
        assert tab.evaluate("document.activeElement.id") != "token"
        tab.evaluate("document.getElementById('token').focus()")
        tab.call("Input.insertText", text=TOKEN)
        tab.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        tab.wait_for("mean-color", "5 numbers")

        def choose(path: Path) -> None:
            document = tab.call("DOM.getDocument")["root"]["nodeId"]
            node = tab.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
            tab.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

        choose(image)
        text = tab.wait_for("Done.", "green", "meadow.jpg", "1.0000", "5 numbers")
        assert text.index("green") < text.index("red")
        tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        tab.screenshot(tmp_path / "page.png")
        choose(broken)
        text = tab.wait_for("not_an_image")
        assert "meadow.jpg" not in text
        assert tab.evaluate("document.getElementById('file').tabIndex") == 0
        assert tab.evaluate("performance.getEntriesByType('resource').every(entry => entry.name.startsWith(origin))")
        assert tab.evaluate("typeof fetch('http://127.0.0.1:9/').catch(error => 0)") == "object"


@pytest.mark.slow
def test_the_api_is_shown_with_every_operation_shape_and_example(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, token=TOKEN) as server, browser(tmp_path / "profile") as tab:
        tab.call("Network.enable")
        tab.open(f"http://127.0.0.1:{server.port}/docs")
        document = json.loads(server.ask("GET", "/openapi.json").body)
        count = sum(len({"get", "post"} & item.keys()) for item in document["paths"].values())
        text = tab.wait_for(f"{count} operations", "/v1/embed", "EmbedResponse")
        assert all(path in text for path in document["paths"])
        assert all(name in text for name in document["components"]["schemas"])
        tab.evaluate("for (const id of ['search', 'shape-SearchResult']) document.getElementById(id).open = true")
        text = tab.wait_for("from 1 to 1000, default 10", "413", "The body is too large.")
        assert (
            f"curl --data-binary @photo.jpg -H 'Content-Type: application/octet-stream' 'http://127.0.0.1:{server.port}/v1/search'"
            in text
        )
        tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        tab.screenshot(tmp_path / "docs.png")
        assert tab.evaluate("performance.getEntriesByType('resource').every(entry => entry.name.startsWith(origin))")


@pytest.mark.parametrize(("path", "name"), [("/", PAGE), ("/docs", DOCS)])
def test_a_page_is_sent_with_its_policy(bundle: Path, path: str, name: str) -> None:
    with running(bundle) as server:
        answer = server.ask("GET", path)
        assert answer.headers["Content-Security-Policy"] == page(name)[1]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
