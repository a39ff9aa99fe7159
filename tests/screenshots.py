"""Make the pictures of the guide, from a workspace with some releases:

python -m tests.screenshots WORKSPACE docs/images
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.pipeline import soak
from benchmarks.pipeline.soak import Stack
from tests.browser import Page, browser

WIDTH, HEIGHT = 1600, 1000
SETTLE_MILLISECONDS = 2500  # until layouts and charts stand still
GROUPS = ",".join(f"global@global:{group}" for group in ("data", "encoder", "evaluation", "release"))
LAST = "[...document.querySelectorAll('body *')].filter(one => one.innerText === {label!r}).pop()"
EDITOR = "document.querySelector('.CodeMirror').CodeMirror"
# Dagster begins with the top of a graph that is higher than wide outside of the page.
DRAG_DOWN = (
    "const [x, y] = [1200, 900], ground = document.elementFromPoint(x, y);"
    "[['mousedown', 0], ['mousemove', 60], ['mousemove', 120], ['mouseup', 120]].forEach(([name, down]) => "
    "ground.dispatchEvent(new MouseEvent(name, {bubbles: true, clientX: x, clientY: y + down, button: 0})))"
)
# Name → page, a text that it shows, and what to do there before the picture is taken.
SHOTS = {
    "graph": (f"/asset-groups/?expanded={GROUPS}", "released_encoder", DRAG_DOWN),
    "evaluation": ("/assets/models/probe", "confusion", f"{LAST.format(label='Metadata')}.scrollIntoView()"),
    "quarantine": ("/assets/data/manifest", "quarantine", f"{LAST.format(label='Metadata')}.scrollIntoView()"),
    "history": ("/assets/released_encoder", "knn_top1", f"{LAST.format(label='Plots')}.click()"),
    "gates": ("/assets/reports/compare?view=checks&checkDetail=representation", "Passed", ""),
    "launchpad": (
        "/locations/pipeline.definitions/jobs/retrain/playground",
        "Launch Run",
        f"{EDITOR}.setValue('ops:\\n  raw_images:\\n    config:\\n      pretrain:\\n        epochs: 100\\n');"
        f"{EDITOR}.setCursor(3, 16); {EDITOR}.focus()",
    ),
}


def main(workspace: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack(workspace.resolve(), "pipeline.definitions")
    with tempfile.TemporaryDirectory() as profile, soak.running(stack), browser(Path(profile)) as page:
        stack.wait_until_ready()
        page.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        for name, (path, text, script) in SHOTS.items():
            page.open(f"http://127.0.0.1:{stack.port}{path}")
            page.wait_for(text)
            settle(page)
            page.evaluate(f"{script};0")
            settle(page)
            save(page, folder / f"{name}.png")


def settle(page: Page) -> None:
    page.evaluate(f"new Promise(done => setTimeout(done, {SETTLE_MILLISECONDS}))")


def save(page: Page, path: Path) -> None:
    page.screenshot(path)
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
