"""The page in headless Chromium: points, lasso, search, pictures, keyboard; nothing from elsewhere, no hostile name."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.browser import Page, browser
from tests.deploy.conftest import encoded, noise
from tests.deploy.explore.collections import HOSTILE, Islands, served, shown

pytestmark = pytest.mark.seconds
ROOT = Path(__file__).parents[3]
AXE = ROOT / ".venv/accessibility/node_modules/axe-core/axe.min.js"
PIXELS = """const ask = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, more) {
  return kind === "webgl2" ? null : ask.call(this, kind, more);
};"""
PANNED = """new Promise(done => {
  const { map } = explorer, times = [];
  const step = () => {
    map.view.left += times.length % 20 < 10 ? 5 : -5;
    const began = performance.now();
    map.draw();
    times.push(performance.now() - began);
    if (times.length < 40) requestAnimationFrame(step);
    else done(Math.min(...times));
  };
  requestAnimationFrame(step);
})"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.call("DOM.enable")
        yield page


def visit(tab: Page, url: str) -> None:
    tab.open(url)
    tab.wait_for(" images.")
    deadline = time.monotonic() + 30
    while not tab.evaluate("!!window.explorer?.map.frames"):
        assert time.monotonic() < deadline, tab.text()


def drag(tab: Page, *places: tuple[float, float], modifiers: int = 0) -> None:
    """Press at the first place of the window, move over all, and release at the last."""
    for kind, (x, y) in [
        ("mousePressed", places[0]),
        *(("mouseMoved", one) for one in places),
        ("mouseReleased", places[-1]),
    ]:
        tab.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1, modifiers=modifiers
        )


def press(tab: Page, key: str, code: str = "", text: str = "") -> None:
    tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code or key, text=text)
    tab.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code or key)


def place_of(tab: Page, row: int) -> tuple[float, float]:
    """Where a point is in the window."""
    x, y = tab.evaluate(
        f"(() => {{ const {{ map }} = explorer, box = map.overlay.getBoundingClientRect();"
        f"const [x, y] = map.at({row}); return [x / map.ratio + box.left, y / map.ratio + box.top]; }})()"
    )
    return x, y


def choose(tab: Page, selector: str, file: Path) -> None:
    document = tab.call("DOM.getDocument")["root"]["nodeId"]
    node = tab.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
    tab.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])


def color_by(tab: Page, name: str) -> None:
    tab.evaluate(
        f"(() => {{ const color = document.getElementById('color'); color.value = '{name}';"
        "color.dispatchEvent(new Event('change')); })()"
    )


def selected(tab: Page) -> list[int]:
    found: list[int] = tab.evaluate("Array.from(explorer.state.selected)")
    return found


def around(tab: Page, islands: Islands, island: int) -> list[tuple[float, float]]:
    """Corners in the window around one island."""
    rows = np.flatnonzero((islands.code == island) & ~np.isnan(islands.places[:, 0]))
    left, low = islands.places[rows].argmin(axis=0)
    right, high = islands.places[rows].argmax(axis=0)
    (x0, _), (_, y1), (x1, _), (_, y0) = (place_of(tab, int(rows[one])) for one in (left, low, right, high))
    return [(x0 - 3, y0 - 3), (x1 + 3, y0 - 3), (x1 + 3, y1 + 3), (x0 - 3, y1 + 3)]


def test_a_lasso_selects_what_is_in_it(tab: Page) -> None:
    islands, app = shown(400)
    with served(app) as url:
        visit(tab, url)
        drag(tab, *around(tab, islands, 1), modifiers=8)  # Shift
        tab.wait_for("selected in the lasso")
        expected = np.flatnonzero((islands.code == 1) & ~np.isnan(islands.places[:, 0]))
        inside = set(expected) <= set(selected(tab))
        assert inside
        assert len(selected(tab)) < 1.3 * len(expected)
        assert tab.evaluate("document.querySelectorAll('#grid button').length") == min(120, len(selected(tab)))
        first, *rest = selected(tab)
        tab.evaluate("document.querySelector('#grid button').dispatchEvent(new MouseEvent('click', { ctrlKey: true }))")
        assert selected(tab) == rest
        tab.evaluate("document.querySelector('#grid button').focus()")
        press(tab, "Delete")
        assert selected(tab) == rest[1:]
        assert first not in selected(tab)
        press(tab, "Escape")
        tab.evaluate("explorer.map.overlay.focus()")
        press(tab, "Escape")
        tab.wait_for("Nothing is selected")


def test_an_image_shows_what_is_known_of_it_and_its_neighbors(tab: Page, tmp_path: Path) -> None:
    islands, app = shown(400)
    with served(app) as url:
        visit(tab, url)
        x, y = place_of(tab, 50)
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        hovered = tab.evaluate("document.getElementById('hover').innerText")
        assert "class" in hovered
        drag(tab, (x, y))
        text = tab.wait_for("Nearest labeled images", "0.99", "All of class")
        assert "0.750" in text
        opened = tab.evaluate("explorer.map.focused")
        assert islands.names[opened] in text
        tab.evaluate("document.getElementById('tab-mistakes').click()")
        tab.wait_for("Worst answers", "that the release had right", "labeled test images")
        cell = tab.evaluate("document.querySelector('#confusion button').ariaLabel")
        tab.evaluate("document.querySelector('#confusion button').click()")
        tab.wait_for(f"{cell.rpartition(' ')[2]} selected of class")


def test_search_list_and_picture_select(tab: Page, tmp_path: Path) -> None:
    islands, app = shown(400)
    listed = tmp_path / "suggested.csv"
    listed.write_text("rank,path,score\n1,unlabeled/0000012.png,0.5\n2,unlabeled/0000017.png,0.4\n3,gone.png,0\n")
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded(noise(3)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with served(app) as url:
        visit(tab, url)
        press(tab, "/", "Slash")
        assert tab.evaluate("document.activeElement.id") == "text"
        tab.call("Input.insertText", text="000003")
        tab.call(
            "Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
        )
        tab.wait_for("whose path contains “000003”")
        assert selected(tab) == [3, *range(30, 40)]
        choose(tab, "#list", listed)
        tab.wait_for("of the list suggested.csv")
        assert selected(tab) == [12, 17]
        choose(tab, "#picture", picture)
        tab.wait_for("most like the picture", "0.980")
        assert selected(tab) == [7, 3]
        assert islands.found == [picture.read_bytes()]
        choose(tab, "#picture", broken)
        tab.wait_for("is not an image")


def test_the_keyboard_moves_zooms_and_selects(tab: Page) -> None:
    _, app = shown(400)
    with served(app) as url:
        visit(tab, url)
        tab.evaluate("explorer.map.overlay.focus()")
        before = tab.evaluate("({ ...explorer.map.view })")
        press(tab, "ArrowLeft")
        press(tab, "+", "Equal")
        after = tab.evaluate("({ ...explorer.map.view })")
        assert after["scale"] == pytest.approx(1.3 * before["scale"])
        assert after["left"] > before["left"] - 0.3 * 1000
        press(tab, "0", "Digit0")
        assert tab.evaluate("explorer.map.view.scale") == pytest.approx(before["scale"])
        press(tab, "l", "KeyL")
        assert tab.evaluate("document.getElementById('lasso').ariaPressed") == "true"
        press(tab, "Enter")
        tab.wait_for("400 selected in view")
        tab.evaluate("document.getElementById('tab-selection').focus()")
        press(tab, "ArrowRight")
        assert tab.evaluate("document.activeElement.id") == "tab-details"


def test_every_color_has_a_legend_and_a_class_can_be_shown_alone(tab: Page) -> None:
    _, app = shown(400)
    with served(app) as url:
        visit(tab, url)
        names = tab.evaluate("[...document.getElementById('color').options].map(one => one.value)")
        assert {"label", "prediction", "confidence", "novelty", "batch", "split", "reason", "champion"} <= set(names)
        for name in names:
            color_by(tab, name)
            assert tab.evaluate("document.querySelector('#legend li').textContent.length") > 2, name
            assert tab.evaluate("new Set(explorer.map.colors).size") > 1, name
        color_by(tab, "confidence")
        assert tab.evaluate("document.querySelector('#legend li').innerText") == "0.00 to 0.99"
        inside = "one => [one.clientHeight, getComputedStyle(one).position]"
        height, position = tab.evaluate(f"({inside})(document.querySelector('#legend canvas'))")
        assert (height < 20, position) == (True, "static"), "the scale does not cover its numbers"
        color_by(tab, "label")
        tab.evaluate("document.querySelector('#legend button').click()")
        assert tab.evaluate("explorer.map.order.length") == 100


@pytest.mark.parametrize("media", ["light", "dark"])
def test_axe_finds_no_serious_fault(tab: Page, media: str) -> None:
    assert AXE.is_file(), f"{AXE.relative_to(ROOT)}: missing; run `make .venv/browser-installed`"
    _, app = shown(400, {"label": lambda _: {"done": "done"}})
    with served(app) as url:
        tab.call("Page.setBypassCSP", enabled=True)  # for axe's own script
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": media}])
        try:
            visit(tab, url)
            tab.evaluate(AXE.read_text(encoding="utf-8"))
            for panel in ("selection", "details", "mistakes"):
                tab.evaluate("explorer.select(Uint32Array.of(1, 2, 50), '')")
                if panel == "details":
                    tab.evaluate("document.querySelector('#grid button').click()")
                    tab.wait_for("Nearest images", "0.99")
                else:
                    tab.evaluate(f"document.getElementById('tab-{panel}').click()")
                found = tab.evaluate("axe.run().then(one => one.violations)")
                bad = [
                    (one["id"], one["nodes"][0]["html"], one["nodes"][0]["failureSummary"])
                    for one in found
                    if one["impact"] in ("serious", "critical")
                ]
                assert not bad, panel
        finally:
            tab.call("Emulation.setEmulatedMedia", features=[])
            tab.call("Page.setBypassCSP", enabled=False)


def test_hostile_names_are_text_and_nothing_comes_from_elsewhere(tab: Page) -> None:
    islands, app = shown(400)
    with served(app) as url:
        visit(tab, url)
        for row in range(400 - len(HOSTILE), 400):
            tab.evaluate(f"explorer.map.events.open({row})")
            deadline = time.monotonic() + 30
            while tab.evaluate("document.querySelector('#one td')?.textContent") != islands.names[row]:
                assert time.monotonic() < deadline, islands.names[row]
        assert tab.evaluate("document.querySelectorAll('main script, main iframe, main i, main b').length") == 0
        assert tab.evaluate("document.title") == "Explore <i>islands</i>"
        asked = tab.evaluate("performance.getEntriesByType('resource').map(one => new URL(one.name).origin)")
        assert set(asked) <= {url, "null"}
        refused = tab.evaluate(
            "new Promise(done => {"
            "document.addEventListener('securitypolicyviolation', one => done(one.violatedDirective));"
            "fetch('http://127.0.0.1:9/').catch(() => {}); setTimeout(() => done(''), 5000); })"
        )
        assert refused == "connect-src"


def test_decisions_are_sent_and_warnings_wait_for_an_answer(tab: Page) -> None:
    asked: list[dict[str, Any]] = []

    def test(given: Any) -> dict[str, Any]:
        asked.append(dict(given))
        return {"done": "2 images are held out"} if given.get("confirmed") else {"warnings": ["Near copies."]}

    def label(given: Any) -> dict[str, Any]:
        asked.append(dict(given))
        return {"done": f"2 images labeled {given['label']}"}

    _, app = shown(400, {"label": label, "test": test})
    with served(app) as url:
        visit(tab, url)
        tab.evaluate("explorer.select(Uint32Array.of(4, 9), '')")
        tab.evaluate("document.getElementById('label').value = 'lynx'")
        tab.evaluate("document.querySelector('button[value=label]').click()")
        tab.wait_for("2 images labeled lynx")
        color_by(tab, "decided")
        assert tab.evaluate("document.querySelector('#legend li').textContent") == "labeled (2)"
        tab.evaluate("document.querySelector('button[value=test]').click()")
        tab.wait_for("Near copies.", "Nothing is written yet.")
        tab.evaluate("document.getElementById('confirm').click()")
        tab.wait_for("2 images are held out")
        assert tab.evaluate("document.querySelector('#legend li').textContent") == "moved to test (2)"
    assert asked[0] == {"rows": [4, 9], "who": "ada", "why": "", "label": "lynx"}
    assert [one.get("confirmed") for one in asked[1:]] == [None, True]


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_many_points_move_fluently_by_software_alone(tab: Page, count: int, record_property: Any) -> None:
    _, app = shown(count)
    added = tab.call("Page.addScriptToEvaluateOnNewDocument", source=PIXELS)["identifier"]
    try:
        with served(app) as url:
            visit(tab, url)
            assert tab.evaluate("explorer.map.renderer.kind") == "2d"
            milliseconds = tab.evaluate(PANNED)  # of the fastest frame: others wait for what else runs here
            record_property("milliseconds", milliseconds)
            assert milliseconds < (50 if count <= 100_000 else 200)
    finally:
        tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
