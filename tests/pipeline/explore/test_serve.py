"""The page behind the guard of the UI, and from a lasso in a browser to the manifest."""

import pytest
from starlette.testclient import TestClient

from pipeline.errors import ServiceError, WorkspaceError
from pipeline.explore.serve import guarded, serve
from pipeline.workspace import Workspace

HERE = {"Host": "127.0.0.1:3100"}
GIVEN = {"rows": [0], "label": "red", "who": "ada", "why": ""}


def test_only_the_page_itself_decides(explored: Workspace) -> None:
    client = TestClient(guarded(explored, "127.0.0.1", {}), headers=HERE)
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
    client = TestClient(guarded(explored, "0.0.0.0", environment), headers=HERE)
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
