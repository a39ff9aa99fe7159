"""The page behind the guard of the UI, and from a lasso in a browser to the manifest."""

from pathlib import Path

import polars as pl
import pytest
from starlette.testclient import TestClient

from pipeline.errors import ServiceError, WorkspaceError
from pipeline.explore.decisions import Decisions
from pipeline.explore.serve import guarded, serve
from pipeline.explore.shown import Shown
from pipeline.ingest.ingest import ingest
from pipeline.ui.access import Access, read_access
from pipeline.ui.sessions import session_key
from pipeline.validation import manifest
from pipeline.validation.__main__ import run as validate
from pipeline.workspace import Workspace
from tests.browser import browser
from tests.deploy.explore.collections import served
from tests.deploy.explore.test_page import drag, place_of, visit

HERE = {"Host": "127.0.0.1:3100"}
GIVEN = {"rows": [0], "label": "red", "who": "ada", "why": ""}


def access(workspace: Workspace, host: str, **environment: str) -> Access:
    return read_access(host, environment, session_key(workspace.root))


def test_only_the_page_itself_decides(explored: Workspace) -> None:
    client = TestClient(guarded(explored, access(explored, "127.0.0.1")), headers=HERE)
    assert client.get("/").status_code == 200
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
    ):
        assert client.post("/actions/label", json=GIVEN, headers=headers).status_code == 403, headers
    assert not (explored.inbox / "labels.csv").exists()
    answer = client.post("/actions/label", json=GIVEN, headers={"Origin": "http://127.0.0.1:3100"})
    assert "1 image labeled red" in answer.json()["done"]


def test_a_viewer_sees_everything_and_decides_nothing(explored: Workspace) -> None:
    environment = {"SIMCLR_UI_PASSWORD": "operator's", "SIMCLR_UI_VIEWER_PASSWORD": "viewer's"}
    client = TestClient(guarded(explored, access(explored, "0.0.0.0", **environment)), headers=HERE)
    assert client.get("/points").status_code == 401
    viewer, operator = (("any", password) for password in environment.values().__reversed__())
    assert client.get("/about", auth=viewer).json()["decides"] is False
    assert client.post("/actions/label", json=GIVEN, auth=viewer).status_code == 404
    assert client.get("/about", auth=operator).json()["decides"] is True
    assert client.post("/actions/label", json=GIVEN, auth=operator).status_code == 200


def test_another_address_needs_a_password_and_a_map_has_to_be_there(workspace: Workspace) -> None:
    with pytest.raises(ServiceError, match="SIMCLR_UI_PASSWORD"):
        serve(workspace, "0.0.0.0", 0)
    with pytest.raises(WorkspaceError, match="no map yet"):
        serve(workspace, "127.0.0.1", 0)


@pytest.mark.slow
def test_what_is_labeled_with_the_lasso_is_in_the_manifest_of_the_next_run(explored: Workspace, tmp_path: Path) -> None:
    shown = Shown(explored)
    assert Decisions(explored, shown).actions.keys() == {"label", "test", "refuse", "undo"}
    with served(guarded(explored, access(explored, "127.0.0.1"))) as url, browser(tmp_path / "profile") as tab:
        tab.call("DOM.enable")
        visit(tab, url)
        rows = shown.search("unlabeled/0001/")
        places = [place_of(tab, row) for row in rows]
        low, high = ([pick(one[axis] for one in places) for axis in (0, 1)] for pick in (min, max))
        corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
        outwards = [(x + (9 if x == high[0] else -9), y + (9 if y == high[1] else -9)) for x, y in corners]
        drag(tab, *outwards, modifiers=8)
        tab.wait_for("selected in the lasso")
        tab.evaluate("explorer.select(explorer.state.selected.slice(-20), 'in the lasso')")
        chosen = tab.evaluate("Array.from(explorer.state.selected)")
        assert len(chosen) == 20
        tab.evaluate("document.getElementById('label').focus()")
        tab.call("Input.insertText", text="seen by ada")
        tab.evaluate("document.querySelector('button[value=label]').click()")
        tab.wait_for("20 images labeled seen by ada, a new class")
    paths = {one["path"] for one in shown.details(chosen)}
    ingest(explored)
    validate(explored)
    found = manifest.read(explored.manifest, ["path", "label", "split"]).filter(pl.col("label") == "seen by ada")
    assert set(found["path"]) == paths
