"""A bundle that export wrote, behind the server and its page: embed, classify, and search."""

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from deploy.cli.main import main
from tests.browser import browser
from tests.conftest import CLASSES
from tests.deploy.server.test_drain import served
from tests.simclr_core.export.test_export import export_once


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = export_once(tmp_path_factory) / "models"
    return shutil.copytree(models, tmp_path_factory.mktemp("served") / "models") / "bundle"


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    index = bundle.parent / "index"
    assert main(["index", str(bundle), str(index), *map(str, sorted((bundle / "golden").glob("*.png")))]) == 0
    with served(bundle, "--index", index) as (_, port, _):
        yield port


def ask(port: int, method: str, path: str, body: bytes | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    assert response.status == 200
    content = json.load(response)
    connection.close()
    return content


def test_the_routes_answer_from_an_exported_bundle(bundle: Path, port: int) -> None:
    image = (bundle / "golden" / "03.png").read_bytes()
    about = ask(port, "GET", "/v1/model")
    assert about["results"]["test_images"] == json.loads((bundle / "bundle.json").read_text())["results"]["test_images"]
    assert tuple(about["labels"]) == CLASSES
    encoder = deploy.load(bundle, threads=1)
    (embedded,) = ask(port, "POST", "/v1/embed", image)["results"]
    assert np.array(embedded["vector"]) @ encoder.embed(image).vectors[0] == pytest.approx(1, abs=1e-5)
    (classified,) = ask(port, "POST", "/v1/classify", image)["results"]
    assert classified["classes"][0]["label"] == encoder.classify(image)[0].labels[0]
    (found,) = ask(port, "POST", "/v1/search?k=3", image)["results"]
    assert Path(found["neighbours"][0]["id"]).name == "03.png"


@pytest.mark.slow
def test_the_page_shows_what_an_exported_bundle_answers(bundle: Path, port: int, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as tab:
        tab.open(f"http://127.0.0.1:{port}/")
        tab.wait_for("simclr-encoder", "numbers per image")
        document = tab.call("DOM.getDocument")["root"]["nodeId"]
        node = tab.call("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
        tab.call("DOM.setFileInputFiles", nodeId=node, files=[str(bundle / "golden" / "03.png")])
        text = tab.wait_for("Done.")
        (label,) = deploy.load(bundle, threads=1).classify(bundle / "golden" / "03.png", top_k=1)[0].labels
        for shown in ("Labels", label, "Nearest in the index", "03.png", "1.0000", "Embedding"):
            assert shown in text
