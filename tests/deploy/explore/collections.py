"""Images that are nowhere, for the page: islands of points, and a server that shows them."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from deploy.errors import ImageError
from deploy.explore.app import application
from deploy.explore.collection import Action, Near, Picture
from deploy.explore.columns import Coded, pack
from tests.deploy.conftest import encoded

CLASSES = ("cat", "dog", "fox", "<b>owl</b>")
SIDE, ACROSS = 64, 16
HOSTILE = [
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "{{ 7 * 7 }}.png",
    "photo\u202egnp.exe",
    "-->]]></style></title><script src=//evil.example/x.js></script>",
    "&lt;script&gt;.png",
    "javascript:alert(1)",
    "https://evil.example/a.png",
    "שלום world مرحبا.png",
]
"""File names that try to act, or to reorder what is next to them."""


class Islands:
    """``count`` images on four islands, one for each class; the last ones have no place, and hostile names."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        self.count = count
        self.code = np.arange(count) % len(CLASSES) + 1
        centers = np.array([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)], np.float32)
        self.places = centers[self.code - 1] + random.normal(0, 0.12, (count, 2)).astype(np.float32)
        self.places = self.places.clip(-1, 1)
        self.places[count - len(HOSTILE) :] = np.nan
        self.names = [f"unlabeled/{number:07d}.png" for number in range(count - len(HOSTILE))] + HOSTILE
        self.found: list[bytes] = []
        self._sheet = encoded(np.full((ACROSS * SIDE, ACROSS * SIDE, 3), (30, 120, 200), np.uint8), "JPEG")

    @property
    def points(self) -> bytes:
        wrong = self.code.copy()
        wrong[::50] = wrong[::50] % len(CLASSES) + 1
        release = self.code.copy()
        release[::70] = release[::70] % len(CLASSES) + 1
        rows = np.arange(self.count)
        columns: dict[str, Any] = {"x": self.places[:, 0], "y": self.places[:, 1]}
        columns |= {"label": Coded(self.code, CLASSES), "prediction": Coded(wrong, CLASSES)}
        columns |= {"champion": Coded(release, CLASSES), "split": Coded(rows % 2 + 1, ("test", "train"))}
        columns |= {"batch": Coded(rows // (self.count // 3 + 1) + 1, ("0001", "0002", "0003"))}
        columns |= {"reason": Coded(np.isnan(self.places[:, 0]) * 1, ("truncated",))}
        columns |= dict.fromkeys(("confidence", "novelty", "label_confidence"), rows % 100 / 100)
        columns |= {"tile": Coded(np.where(np.isnan(self.places[:, 0]), 0, rows + 1))}
        return pack(columns, {"count": self.count, "sprites": {"side": SIDE, "across": ACROSS}})

    def sheet(self, number: int) -> Picture | None:
        return Picture(self._sheet, "image/jpeg")

    def picture(self, row: int) -> Picture | None:
        return Picture(encoded(np.full((40, 30, 3), (30, 120, 200), np.uint8)), "image/png")

    def details(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "path": self.names[row],
                "label": CLASSES[self.code[row] - 1],
                "prediction": CLASSES[(self.code[row] - (row % 50 != 0)) % len(CLASSES)],
                "confidence": 0.75,
                "state": "quarantined" if np.isnan(self.places[row, 0]) else "accepted",
                "neighbors": [0, 4, 8],
            }
            for row in rows
        ]

    def near(self, row: int, most: int) -> Near:
        return Near([1, 5, 9], [0.99, 0.9, 0.8])

    def find(self, picture: bytes, most: int) -> Near:
        self.found.append(picture)
        if not picture.startswith(b"\x89PNG"):
            raise ImageError("not_an_image", "is not an image")
        return Near([7, 3], [0.98, 0.5])

    def search(self, text: str) -> Sequence[int]:
        return [row for row, name in enumerate(self.names) if text in name]

    def listed(self, names: Sequence[str]) -> Sequence[int]:
        return [row for row, name in enumerate(self.names) if name in names]


@contextmanager
def served(app: Callable[..., Any]) -> Iterator[str]:
    """The address of an ASGI application on this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended"
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def shown(count: int, actions: Mapping[str, Action] | None = None) -> tuple[Islands, Callable[..., Any]]:
    """Islands and the application that shows them."""
    islands = Islands(count)
    about = {"title": "<i>islands</i>", "decides": bool(actions), "who": "ada", "classes": list(CLASSES)}
    return islands, application(islands, lambda: about, actions or {})
