"""An index on the explorer's page, and the command that shows it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import deploy
from deploy.cli.main import main
from deploy.errors import IndexMismatchError
from deploy.explore.indexed import Indexed
from deploy.search.index import Index
from tests.deploy.conftest import encoded, make_bundle, make_card
from tests.deploy.explore.test_app import unpack

COLORS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}


@pytest.fixture
def photos(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and an index of 30 files with metadata."""
    encoder, names = deploy.load(bundle), []
    for number in range(30):
        color = list(COLORS.values())[number % 3]
        random = np.random.default_rng(number)
        pixels = (np.array(color) + random.normal(0, 10, 3) + random.normal(0, 4, (20, 30, 3))).clip(0, 255)
        path = tmp_path / f"{number:02d} <b>{list(COLORS)[number % 3]}.png"
        path.write_bytes(encoded(pixels.astype(np.uint8)))
        names.append(str(path))
    metadata = {
        "color": [list(COLORS)[n % 3] for n in range(30)],
        "year": [None if n == 4 else 2000 + n for n in range(30)],
    }
    Index.build(encoder.embed(names).vectors, names, encoder, metadata=metadata).save(tmp_path / "photos.index")
    return bundle, tmp_path / "photos.index"


@pytest.fixture
def shown(photos: tuple[Path, Path]) -> Indexed:
    return Indexed(Index.open(photos[1]), deploy.load(photos[0]))


def test_points_are_colored_by_metadata(shown: Indexed) -> None:
    header, columns = unpack(shown.points)
    kinds = {one["name"]: one for one in header["columns"]}
    assert kinds["color"]["values"] == ["blue", "green", "red"]
    assert [["blue", "green", "red"][code - 1] for code in columns["color"][:3]] == list(COLORS)
    assert np.isnan(columns["year"]).tolist() == [row == 4 for row in range(30)]
    assert columns["tile"].tolist() == list(range(1, 31))
    assert np.abs(columns["x"]).max() <= 1
    assert (columns["novelty"] >= 0).all()


def test_what_resembles_an_image_is_found(shown: Indexed) -> None:
    found = shown.near(0, 4)
    assert {row % 3 for row in found.rows} == {0}
    assert 0 not in found.rows
    assert shown.near(99, 4).rows == []
    assert {row % 3 for row in shown.find(encoded(np.full((9, 9, 3), COLORS["blue"], np.uint8)), 3).rows} == {2}
    assert shown.search("<B>GREEN") == list(range(1, 30, 3))
    assert shown.search("") == []
    (one,) = shown.details([3, 99])
    assert shown.listed([one["path"], "gone"]) == [3]
    assert one["metadata"] == {"color": "red", "year": 2003}


def test_thumbnails_come_from_the_files_and_a_lost_one_is_gray(shown: Indexed) -> None:
    Path(shown.details([1])[0]["path"]).unlink()
    Path(shown.details([2])[0]["path"]).write_bytes(b"no image")
    sheet, picture = shown.sheet(0), shown.picture(0)
    assert sheet is not None
    assert picture is not None
    with Image.open(io.BytesIO(sheet.data)) as drawn:
        centers = [drawn.getpixel((64 * cell + 32, 32)) for cell in range(3)]
    np.testing.assert_allclose(centers, [COLORS["red"], (127,) * 3, (127,) * 3], atol=40)
    assert Image.open(io.BytesIO(picture.data)).size == (30, 20)
    assert (shown.picture(1), shown.picture(2), shown.picture(99), shown.sheet(1)) == (None, None, None, None)


def test_an_index_of_another_encoder_is_refused(photos: tuple[Path, Path], publish_bundle: Any) -> None:
    other = deploy.load(publish_bundle(make_bundle(make_card(name="another"))))
    with pytest.raises(IndexMismatchError):
        Indexed(Index.open(photos[1]), other)


def test_the_command_serves_this_machine_only(
    photos: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **settings: started.append((app, settings)))
    assert main(["explore", *map(str, photos), "--port", "3123"]) == 0
    assert "open http://127.0.0.1:3123" in capsys.readouterr().err
    ((app, settings),) = started
    assert (settings["host"], settings["port"]) == ("127.0.0.1", 3123)
    client = TestClient(app, headers={"Host": "127.0.0.1:3123"})
    assert client.get("/about").json()["title"] == "photos.index"
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.post("/find", json={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/actions/label", json={}).status_code == 404
    assert main(["explore", str(photos[0]), "nothing.index"]) == 2
