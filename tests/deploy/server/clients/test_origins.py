"""Web pages of other origins: none may use the server, except for those of --cors-origin."""

import base64
import json
from pathlib import Path

import pytest

from tests.browser import browser
from tests.deploy.server.conftest import IMAGE, Answer, Running, running

TOKEN = "0123456789abcdef-token"
PAGE, OTHER = "https://app.example.org", "https://app.example.org.evil.example"
FORM = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n%s\r\n--b--' % IMAGE


def preflight(server: Running, origin: str) -> Answer:
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    return server.ask("OPTIONS", "/v1/embed", Origin=origin, **asked)


def shared_with(answer: Answer) -> str | None:
    return answer.headers.get("Access-Control-Allow-Origin")


def test_a_page_that_is_listed_may_use_the_server_with_its_token(bundle: Path) -> None:
    with running(bundle, token=TOKEN, origins=(PAGE, "http://localhost:3000")) as server:
        answer = preflight(server, PAGE)  # browsers send no token here
        assert (answer.status, shared_with(answer), answer.body) == (204, PAGE, b"")
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        headers = {"Authorization": f"Bearer {TOKEN}", "Origin": PAGE, "Sec_Fetch_Site": "cross-site"}
        for answer, status in (
            (server.post("/v1/embed", IMAGE, **headers), 200),
            (server.post("/v1/embed", IMAGE, **headers | {"Authorization": "Bearer x"}), 401),
            (server.post("/v1/embed", b"no image", **headers), 422),
            (server.ask("GET", "/v2/health/ready", Origin=PAGE), 200),
            (server.ask("GET", "/nothing", **headers), 404),
        ):
            assert (answer.status, shared_with(answer), answer.headers["Vary"]) == (status, PAGE, "Origin")
            assert answer.headers["Access-Control-Expose-Headers"] == "*"
            assert answer.headers.get("Access-Control-Allow-Credentials") is None
        assert shared_with(preflight(server, "http://localhost:3000")) == "http://localhost:3000"


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "*", "http://app.example.org", f"{PAGE}:8443", PAGE.upper(), f"{PAGE}, {PAGE}", ""]
)
def test_no_other_origin_is_reflected(bundle: Path, origin: str) -> None:
    with running(bundle, token=TOKEN, origins=(PAGE,)) as server:
        refused = preflight(server, origin)
        assert refused.status == 403
        token = {"Authorization": f"Bearer {TOKEN}"}
        for answer in (refused, server.post("/v1/embed", IMAGE, Origin=origin, **token), server.ask("GET", "/metrics")):
            assert answer.headers["Vary"] == "Origin"
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert server.ask("OPTIONS", "/v1/embed", Origin=PAGE).status == 401  # no preflight: it needs the token


def test_a_page_of_another_origin_cannot_send_a_form(bundle: Path) -> None:
    """A form needs no preflight, so that the browser sends it before it asks; it says where it comes from."""
    form = "multipart/form-data; boundary=b"
    with running(bundle) as server:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            answer = server.post("/v1/embed", FORM, form, Sec_Fetch_Site=site, Origin=OTHER)
            assert answer.status == status
        assert server.ask("GET", "/", Sec_Fetch_Site="cross-site").status == 200  # a link


@pytest.mark.slow
def test_a_browser_obeys(bundle: Path, tmp_path: Path) -> None:
    """A page of one server asks another one, with a form, with compressed JSON and with a token."""
    script = """
        (async address => {
            const image = new Blob([Uint8Array.from(atob(IMAGE), letter => letter.charCodeAt(0))], {type: "image/png"});
            const form = new FormData();
            form.append("images", image, "ü.png");
            const packed = await new Response(new Blob([JSON.stringify({images: [{b64: IMAGE}]})]).stream()
                .pipeThrough(new CompressionStream("gzip"))).blob();
            const send = (body, headers) => fetch(address + "/v1/embed", {method: "POST", body, headers: {
                Authorization: "Bearer TOKEN", ...headers}})
                .then(answer => answer.status + " " + answer.headers.get("X-Model-Id"), error => "blocked");
            return [await send(form, {}), await send(image, {}),
                await send(packed, {"Content-Type": "application/json", "Content-Encoding": "gzip"})].join();
        })(ADDRESS)
    """
    with running(bundle) as page, browser(tmp_path / "profile") as tab:
        origin = f"http://127.0.0.1:{page.port}"
        tab.open(f"{origin}/openapi.json")  # unlike the page at /, nothing forbids its scripts to ask others
        tab.wait_for("simclr-deploy serve")
        source = script.replace("IMAGE", json.dumps(base64.b64encode(IMAGE).decode())).replace("TOKEN", TOKEN)
        for origins, expected in (((origin,), "200 {id}"), ((), "blocked"), ((PAGE,), "blocked")):
            with running(bundle, token=TOKEN, origins=origins) as server:
                address = json.dumps(f"http://127.0.0.1:{server.port}")
                answers = tab.evaluate(source.replace("ADDRESS", address))
                assert answers == ",".join([expected.format(id=server.service.models.current.id)] * 3)
                images = server.metric('simclr_images_total{outcome="ok"}')
                assert images == (3 if expected != "blocked" else 0)
