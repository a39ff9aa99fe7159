"""Run docs/browser in a real browser: onnxruntime-web gives the same vectors as ``deploy.load(bundle).embed``."""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

import deploy
from deploy.artifact import publish
from deploy.bundle import Bundle, graph_promise, write_bundle
from deploy.encoder import compare, l2_normalize
from deploy.images.background import BACKGROUNDS
from deploy.images.preprocess import Preprocessing
from deploy.session import METADATA
from simclr_core.export import export
from tests.browser import Page, browser
from tests.conftest import write_prepared
from tests.deploy.conftest import encoded, make_card
from tests.simclr_core.export.test_export import write_model, write_probe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/browser"
RUNTIME = ROOT / ".venv/browser/node_modules/onnxruntime-web/dist"
SIZE, DIM = 32, 16
PREPROCESSING = Preprocessing(SIZE, SIZE + 5)
MIXING = np.random.default_rng(3).normal(size=(SIZE * SIZE * 3, DIM)).astype(np.float32)
RECORD_FAULTS = """
window.faults = [];
for (const name of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(name, (event) => faults.push(`${name}: ${event.message ?? event.reason ?? event.blockedURI}`), true);
for (const name of ["error", "warn"]) {
  const original = console[name];
  console[name] = (...words) => { faults.push(`${name}: ${words.join(" ")}`); original(...words); };
}
"""


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Make waves, some too fine for the resized image, with a bright corner, so that no rotation or mirroring fits."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(height, width)
    channels = []
    for _ in range(3):
        coarse, fine = random.uniform(2, 6, 2), random.uniform(40, 90, 2)
        channels.append(128 + 60 * np.sin(coarse[0] * x + coarse[1] * y) + 30 * np.sin(fine[0] * x + fine[1] * y))
    pixels = np.stack(channels, axis=-1)
    pixels[: height // 3, : width // 2, 0] += 90
    return pixels.clip(0, 255).astype(np.uint8)


def projection_model(card: dict[str, Any]) -> bytes:
    """Make a model in which every pixel counts by its position: (images - 127.5) times MIXING."""
    constants = {
        "middle": np.array(127.5, np.float32),
        "flat": np.array([-1, SIZE * SIZE * 3], np.int64),
        "mixing": MIXING / np.float32(127.5),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "middle"], ["centered"]),
        helper.make_node("Reshape", ["centered", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "mixing"], ["features"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", DIM])
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "projection", [images], [features], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA: graph_promise(card)})
    return model.SerializeToString()


def publish_projection(directory: Path, golden_error: float = 0.0) -> None:
    card = make_card(name="projection", dim=DIM, preprocessing=PREPROCESSING.to_json())
    golden = [picture(seed, 40 + 9 * seed, 64) for seed in range(3)]
    pixels = np.stack([PREPROCESSING.apply(image) for image in golden]).reshape(3, -1).astype(np.float32)
    vectors = l2_normalize((pixels - np.float32(127.5)) @ (MIXING / np.float32(127.5)))
    vectors[1, 2] += np.float32(golden_error)
    images = tuple(encoded(image) for image in golden)
    with publish(directory, replace=True) as work:
        write_bundle(work, Bundle(card, projection_model(card), None, images, vectors))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that the stage `export` wrote."""
    workspace = write_prepared(tmp_path_factory.mktemp("exported") / "workspace", train=40)
    write_model(workspace / "models" / "pretrained", seed=0)
    write_probe(workspace)
    export.run(workspace)
    return workspace / "models" / "bundle"


@pytest.fixture
def site(tmp_path: Path, exported: Path) -> Path:
    """The page, onnxruntime-web's two files and a bundle, set up as docs/browser/README.md says."""
    assert RUNTIME.is_dir(), f"{RUNTIME.relative_to(ROOT)}: missing; run `make .venv/browser-installed`"
    site = tmp_path / "site"
    shutil.copytree(PAGE, site, ignore=shutil.ignore_patterns("node_modules"))
    (site / "ort").mkdir()
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        (site / "ort" / name).symlink_to(RUNTIME / name)
    shutil.copytree(exported, site / "bundle")
    return site


@contextmanager
def opened(site: Path, isolated: bool = False) -> Iterator[Page]:
    """Open the page in a browser, and check that all its requests succeeded and went to this server."""
    answers: list[tuple[str, int]] = []

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            if isolated:
                self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            answers.append((self.path, int(code)))

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with browser(site.parent / "profile") as page:
                page.call("Page.addScriptToEvaluateOnNewDocument", source=RECORD_FAULTS)
                page.open(f"http://127.0.0.1:{server.server_port}/index.html")
                yield page
                asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
                own = f"http://127.0.0.1:{server.server_port}/"
                assert [url for url in asked if not url.startswith((own, "data:", "blob:"))] == []
                assert page.evaluate("faults") == []
        finally:
            server.shutdown()
    assert [answer for answer in answers if answer[1] not in (200, 304)] == []


def choose(page: Page, path: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def embed_chosen(page: Page) -> NDArray[np.float32]:
    """Return the whole vector of the file in the page's file input; the page itself shows the first numbers."""
    vector = page.evaluate("""(async () => {
      const { load } = await import("./embed.js");
      window.own ??= await load("bundle/");
      return Array.from((await own.embed(document.getElementById("file").files[0])).vector);
    })()""")
    return np.array(vector, np.float32)


def image_files(folder: Path) -> dict[str, float]:
    """Write files to choose, and return the lowest cosine that is allowed for each."""
    exif = Image.Exif()
    exif[274] = 6
    photo = Image.fromarray(picture(5, 300, 400))
    photo.save(folder / "plain.png")
    photo.save(folder / "turned.jpg", quality=92, exif=exif)
    alpha = np.linspace(0, 255, 400).astype(np.uint8)[None].repeat(300, axis=0)
    photo.putalpha(Image.fromarray(alpha))
    photo.save(folder / "alpha.png")
    Image.fromarray(picture(6, 2400, 3200)).save(folder / "large.jpg", quality=90)
    Image.fromarray(picture(7, 20, 45)).convert("P").save(folder / "small.gif")
    Image.fromarray(picture(8, 90, 60)[..., 0]).save(folder / "gray.png")
    exact = dict.fromkeys(("plain.png", "small.gif", "gray.png"), 0.999999)
    return exact | dict.fromkeys(("turned.jpg", "alpha.png", "large.jpg"), 0.9999)


@pytest.mark.parametrize(
    ("isolated", "positions"),
    [(False, False), (True, False), (False, True)],
    ids=["one thread", "threads", "every pixel by its position"],
)
def test_the_browser_gives_the_same_vectors_as_python(
    site: Path, tmp_path: Path, isolated: bool, positions: bool
) -> None:
    if positions:
        publish_projection(site / "bundle")
    files = image_files(tmp_path)
    encoder = deploy.load(site / "bundle")
    golden = sorted(path.name for path in (site / "bundle/golden").glob("*.png"))
    passed = f"Passed: {len(golden)} of {len(golden)}"
    with opened(site, isolated) as page:
        page.wait_for(
            "Ready.", passed, f"golden/{golden[-1]}", encoder.info["id"][:12], f"{encoder.info['dim']} numbers"
        )
        assert page.evaluate("crossOriginIsolated") == isolated
        for name, cosine in files.items():
            choose(page, tmp_path / name)
            expected = encoder.embed(tmp_path / name).vectors
            found = embed_chosen(page)
            assert compare(found[None], expected).cosine_min >= cosine, name
            page.wait_for(name, "Done.", ", ".join(f"{value:.4f}" for value in found[:8]))
        page.screenshot(tmp_path / "page.png")
        assert page.evaluate("performance.getEntriesByType('resource').some(({ name }) => name.endsWith('.wasm'))")


def test_the_browser_resizes_to_the_same_bytes_as_pillow(site: Path) -> None:
    random = np.random.default_rng(0)
    shapes = [(1, 1), (37, 37), (32, 32), (1, 5000), (5000, 3), (33, 38), (75, 74), (613, 999), (20, 21)]
    shapes += [tuple(random.integers(1, 400, 2).tolist()) for _ in range(20)]
    with opened(site) as page:
        page.wait_for("Ready.")
        for height, width in shapes:
            pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
            image = f"{{width: {width}, height: {height}, data: Uint8Array.from({pixels.ravel().tolist()})}}"
            target = json.dumps(PREPROCESSING.to_json())
            found = page.evaluate(
                f"import('./preprocess.js').then((module) => Array.from(module.resizeAndCrop({image}, {target})))"
            )
            assert found == PREPROCESSING.apply(pixels).ravel().tolist(), (height, width)


def test_the_browser_puts_images_on_the_same_background_and_into_the_same_square(site: Path) -> None:
    opaque = [encoded(picture(seed, *shape)) for seed, shape in enumerate([(9, 30), (300, 41), (77, 400), (50, 50)])]
    half = np.dstack([picture(9, 60, 90), np.tile(np.repeat([0, 255], 45), (60, 1)).astype(np.uint8)])
    with opened(site) as page:
        page.wait_for("Ready.")
        for background in BACKGROUNDS:
            for image, letterbox in [*((one, True) for one in opaque), (encoded(half), False), (encoded(half), True)]:
                preprocessing = Preprocessing(SIZE, SIZE + 5, background, letterbox)
                found = page.evaluate(
                    f"import('./preprocess.js').then(({{ read }}) => read(new Blob([Uint8Array.from({list(image)})]), "
                    f"{json.dumps(preprocessing.to_json())})).then((pixels) => Array.from(pixels))"
                )
                assert found == preprocessing.read(image).ravel().tolist(), (background, letterbox)
        refused = page.evaluate(
            "import('./preprocess.js').then(({ read }) => read(new Blob([]), { size: 1, resize: 1, pad: 2 }))"
            ".catch((error) => error.message)"
        )
        assert '"pad":2}, which this page does not know; take a newer page' in refused


def test_the_page_can_be_used_with_the_keyboard(site: Path) -> None:
    with opened(site) as page:
        page.wait_for("Ready.")
        page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert page.evaluate("document.activeElement.id") == "file"
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if "role" in node}
        assert any(role == "button" and name.startswith("Choose an image") for role, name in named)
        assert {("columnheader", "Cosine"), ("rowheader", "golden/00.png")} <= named


def test_an_unusable_image_is_refused_and_the_next_one_is_embedded(site: Path, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no image")
    clear = Image.new("RGBA", (20, 20), (9, 9, 9, 0))
    content = io.BytesIO()
    clear.save(content, "PNG")
    (tmp_path / "clear.png").write_bytes(content.getvalue())
    (tmp_path / "strip.png").write_bytes(encoded(np.zeros((1, 20_000, 3), np.uint8)))
    (tmp_path / "good.png").write_bytes(encoded(picture(1, 50, 50)))
    with opened(site) as page:
        page.wait_for("Ready.")
        for name, message in (
            ("words.png", "cannot read the image"),
            ("clear.png", "fully transparent"),
            ("strip.png", "20000 x 1 pixels, allowed are 80,000,000"),
        ):
            choose(page, tmp_path / name)
            assert "First numbers" not in page.wait_for(message)
        choose(page, tmp_path / "good.png")
        page.wait_for("Done.", "good.png")


def test_a_changed_byte_in_the_bundle_is_refused(site: Path) -> None:
    model = site / "bundle/encoder.fp32.onnx"
    content = bytearray(model.read_bytes())
    content[-1000] ^= 1
    model.write_bytes(content)
    with opened(site) as page:
        page.wait_for("encoder.fp32.onnx: its SHA-256 differs from MANIFEST.sha256")
        assert page.evaluate("document.getElementById('file').disabled")


def test_an_encoder_that_misses_its_golden_vectors_embeds_no_image(site: Path) -> None:
    publish_projection(site / "bundle", golden_error=0.01)
    with opened(site) as page:
        page.wait_for("Failed:", "The golden images do not match", "1.0e-2")
        assert page.evaluate("document.getElementById('file').disabled")


def request_another_server(site: Path) -> None:
    with opened(site) as page:
        page.wait_for("Ready.")
        page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")


def test_a_request_to_another_server_is_blocked_and_reported(site: Path) -> None:
    with pytest.raises(AssertionError, match="securitypolicyviolation"):
        request_another_server(site)
