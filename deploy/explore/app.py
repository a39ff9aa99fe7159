"""The explorer as an ASGI application: the page, its scripts, and what they ask for.

    GET  /about              what the caller says        GET  /points             every row, as ``columns`` says
    GET  /sheets/N           a sheet of thumbnails       GET  /picture?row=N      an image
    GET  /details?rows=1,2   what is known of rows       GET  /near?row=N         what resembles an image
    GET  /search?text=...    rows by their paths         POST /list, /find        rows of a list, rows like a picture
    POST /actions/NAME       what the caller offers

It has no login: who may ask is for what is around it. A request that cannot be answered gets ``{"error": "..."}``.
"""

import base64
import binascii
import csv
import io
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploy.errors import ArgumentError, DeployError
from deploy.explore.collection import MOST_DETAILS, Action, Collection, Near, Picture

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
KEPT = {"Cache-Control": "private, max-age=86400"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
NEAREST, FOUND = 12, 60  # images
NAMES = ("path", "sha256")  # columns of a list


def application(
    collection: Collection,
    about: Callable[[], Mapping[str, Any]],
    actions: Mapping[str, Action],
    foreseen: tuple[type[Exception], ...] = (DeployError,),
) -> Starlette:
    """The application for one collection.

    Args:
        about: what the page gets when it opens: its ``title`` and, if decisions are possible, ``decides``.
        actions: what the page may ask to be done, by name.
        foreseen: errors whose message is for the person in front of the page.
    """

    errors: tuple[type[Exception], ...] = (*foreseen, ArgumentError)
    served = secrets.token_hex(8)  # in the address of a sheet: browsers keep those of this server, and of no other

    def asked(work: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            request.state.json = await request.json() if request.method == "POST" else {}
            try:
                answer = await run_in_threadpool(work, request)
            except errors as error:
                answer = JSONResponse({"error": str(error)}, 400)
            answer.headers.update(HEADERS | (KEPT if request.query_params.get("served") == served else {}))
            return answer

        return endpoint

    def static(request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        folder = files("deploy.explore").joinpath("static")
        if name not in {one.name for one in folder.iterdir()}:
            return JSONResponse({"error": f"{name!r}: no such file"}, 404)
        kind = KINDS[name.rpartition(".")[2]]
        return Response(folder.joinpath(name).read_bytes(), media_type=f"{kind}; charset=utf-8")

    def do(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in actions:
            return JSONResponse({"error": f"{name!r}: this explorer only shows"}, 404)
        return JSONResponse(actions[name](_mapping(request)))

    gets: dict[str, Callable[[Request], Response]] = {
        "/": static,
        "/static/{name}": static,
        "/about": lambda _: JSONResponse({**about(), "served": served}),
        "/points": lambda _: Response(collection.points, media_type="application/octet-stream"),
        "/sheets/{number:int}": lambda request: _shown(collection.sheet(request.path_params["number"])),
        "/picture": lambda request: _shown(collection.picture(_numbers(request, "row")[0])),
        "/details": lambda request: JSONResponse(collection.details(_numbers(request, "rows"))),
        "/near": lambda request: _near(collection.near(_numbers(request, "row")[0], NEAREST)),
        "/search": lambda request: _rows(collection.search(request.query_params.get("text", ""))),
    }
    posts: dict[str, Callable[[Request], Response]] = {
        "/find": lambda request: _near(collection.find(_picture(_mapping(request)), FOUND)),
        "/list": lambda request: _rows(collection.listed(read_names(str(_mapping(request).get("text", ""))))),
        "/actions/{name}": do,
    }
    routes = [Route(path, asked(work)) for path, work in gets.items()]
    return Starlette(routes=[*routes, *(Route(path, asked(work), methods=["POST"]) for path, work in posts.items())])


def read_names(text: str) -> list[str]:
    """The names in a list of images: the column ``path`` or ``sha256`` of a CSV file, or every line.

    >>> read_names("rank,path\\n1,a.png\\n2,b.png\\n"), read_names("a.png\\nb.png")
    (['a.png', 'b.png'], ['a.png', 'b.png'])
    """
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    heads = [cell.strip().casefold() for cell in rows[0]] if rows else []
    column = next((heads.index(name) for name in NAMES if name in heads), None)
    if column is None:
        return [line.strip() for line in text.splitlines() if line.strip()]
    return [row[column] for row in rows[1:] if len(row) > column]


def _mapping(request: Request) -> Mapping[str, Any]:
    found = request.state.json
    if not isinstance(found, dict):
        raise ArgumentError("send one JSON object")
    return found


def _picture(given: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(str(given.get("picture", "")), validate=True)
    except (binascii.Error, ValueError):
        raise ArgumentError("picture: send the bytes of an image file in Base64") from None


def _numbers(request: Request, name: str) -> list[int]:
    text = request.query_params.get(name, "")
    numbers = text.split(",")
    if len(numbers) > MOST_DETAILS or not all(one.isascii() and one.isdigit() and len(one) < 10 for one in numbers):
        raise ArgumentError(f"{name}={text[:40]!r}; give at most {MOST_DETAILS} numbers of rows, separated by commas")
    return [int(one) for one in numbers]


def _near(found: Near) -> Response:
    return JSONResponse({"rows": list(found.rows), "cosines": [round(float(one), 4) for one in found.cosines]})


def _rows(found: Sequence[int]) -> Response:
    return Response(np.asarray(found, "<u4").tobytes(), media_type="application/octet-stream")


def _shown(picture: Picture | None) -> Response:
    if picture is None:
        return JSONResponse({"error": "there is no picture of this image"}, 404)
    return Response(picture.data, media_type=picture.kind)
