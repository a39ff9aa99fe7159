import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.validation.drift import Drift, Shape, Statistic
from pipeline.validation.evaluate import Outcome
from pipeline.validation.facts import Facts
from pipeline.validation.manifest import manifest
from pipeline.validation.probe import probe, thumbnail
from pipeline.validation.report import PER_REASON, gallery, printable, render, summary
from pipeline.validation.thumbnails import read
from pipeline.validation.verdict import REASONS, File, Verdict, judge
from tests.pipeline.validation.corpus import bad_kinds, encoded, good_kinds, picture

HOSTILE = [
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}.png",
    "line\nbreak\r\ttab.png",
    "photo\u202egnp.exe",
    "zero\u200bwidth\u2028line.png",
    "-->]]></style></svg><script src=//evil.example/x.js></script>",
    "&lt;script&gt;.png",
    "日本 語.png",
]
NOT_JUDGED = Drift("not judged", "0001", 0, 1, "there is no earlier batch")
RULE = Outcome("decodes", "files", "critical", True, 1.0, "True for 95 %", 0, [], None)


class Page(HTMLParser):
    """Everything in a page that could act, call out, or be read."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def verdicts(paths: list[str], reasons: tuple[str, ...] = (), message: str = "") -> list[Verdict]:
    found = []
    for number, path in enumerate(paths):
        facts = Facts(**probe(encoded(picture(number), "PNG")))
        found.append(Verdict(File(path, "train", None, facts.sha256, "0001", "0001"), facts, reasons, (), message))
    return found


def page(
    found: list[Verdict],
    thumbnails: dict[str, Image.Image | None] | None = None,
    *rules: Outcome,
    drift: Drift = NOT_JUDGED,
) -> str:
    table = manifest(found)
    return render(summary(table, rules or [RULE], drift), table, drift, thumbnails or {})


def test_summary_counts_every_file_once() -> None:
    contents = [Facts(**probe(kind.data)) for kind in good_kinds() + bad_kinds()]
    files = [
        File(kind.name, "train", None, facts.sha256, "0001", "0001")
        for kind, facts in zip(good_kinds() + bad_kinds(), contents, strict=True)
    ]
    limits = {"min_side": 8, "max_aspect": 10.0, "min_standard_deviation": 2.0, "allow_animated": False}
    found = judge(files, {facts.sha256: facts for facts in contents}, **limits)
    images = summary(manifest(found), [RULE], NOT_JUDGED)["images"]
    assert (images["ingested"], images["accepted"], images["converted"]) == (len(files), len(good_kinds()), 4)
    oracle: dict[str, int] = {}
    for kind in bad_kinds():
        oracle[kind.reasons[0]] = oracle.get(kind.reasons[0], 0) + 1
    assert images["quarantined"] == oracle
    assert list(images["quarantined"]) == [reason for reason in REASONS if reason in oracle]


def test_summary_has_the_fields_that_gates_read() -> None:
    failed = Outcome("aspect", "files", "critical", False, 0.5, "<= 10 for 95 %", 7, ["a"], None)
    found = summary(manifest(verdicts(["a.png"])), [RULE, failed], NOT_JUDGED)
    assert found["passed"] is False
    assert list(found["expectations"][1]) == [
        *("name", "suite", "severity", "success", "observed", "threshold", "unexpected_count", "sample_ids", "error")
    ]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("reasons", [(), ("corrupt",)])
def test_hostile_names_do_nothing(reasons: tuple[str, ...]) -> None:
    found = verdicts(HOSTILE, reasons, message="<script>alert('message')</script>")
    broken = Outcome("aspect", "files", "critical", False, None, "x", None, [], "<script>alert('error')</script>")
    thumbnails = {verdict.file.sha256: picture(1) for verdict in found}
    read = Page(page(found, thumbnails, broken))
    assert not read.tags & {"script", "iframe", "object", "embed", "link", "base", "form", "a", "video", "audio"}
    assert read.handlers == []
    assert all(address.startswith("data:image/jpeg;base64,") for address in read.addresses)
    for path in HOSTILE:
        assert printable(path) in read.text
    assert not set("\u202e\u200b\u2028") & set(read.text)


def test_drift_is_shown_and_hostile_batches_do_nothing() -> None:
    name = "0002-<script>alert(1)</script>\u202e"
    effects = {"luma_mean": 0.5, "saturation": 0.05, "entropy": 0.4, "edge_energy": 0.3, "format": 0.9}
    drift = Drift(
        "drift",
        name,
        300,
        100,
        f"look at {name}",
        tuple(Statistic(each, effect, 0.1, effect > 0.1) for each, effect in effects.items()),
        (Shape(name, "gray", True),),
        {each: (np.arange(300.0), np.full(100, 7.0)) for each in effects if each != "format"},
    )
    html = page(verdicts(["a.png"]), drift=drift)
    read = Page(html)
    assert not read.tags & {"script", "img"}
    assert printable(name) in read.text
    assert "\u202e" not in read.text
    titles = re.findall('aria-label="([^"]*)">\n<path', html)
    assert titles == ["brightness, 0 to 255", "entropy of brightness, bits", "edges, 0 to 255"]
    assert read.text.count("drifted") == 4
    assert "<path" not in page(verdicts(["a.png"]))


def test_the_page_needs_nothing_else() -> None:
    html = page(verdicts(["a.png"]))
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)


def test_names_stay_readable() -> None:
    assert printable("ordner/bild – ähm 日本.png") == "ordner/bild – ähm 日本.png"
    assert printable("a\nb\u202ec\\d") == "a\\nb\\u202ec\\d"
    assert printable("x" * 500) == "x" * 200 + "…"


def test_every_reason_shows_some_of_its_files() -> None:
    found = verdicts([f"{number:03}.png" for number in range(PER_REASON + 6)], ("corrupt", "too_small"))
    found += verdicts([f"fine{number:03}.png" for number in range(100)])
    groups = gallery(manifest(found))
    assert set(groups) == {"corrupt", "accepted"}
    assert [row["path"] for row in groups["corrupt"]] == [f"{number:03}.png" for number in range(PER_REASON)]
    assert PER_REASON / 2 < len(groups["accepted"]) <= PER_REASON
    assert f"{PER_REASON + 6} in all" in page(found)


def test_the_largest_report_stays_below_five_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    drawn = read(thumbnail(encoded(Image.fromarray(noise), "PNG")))
    assert drawn
    found = []
    for reason in REASONS:
        found += verdicts([f"{reason}/{'x' * 300}{number}.png" for number in range(PER_REASON)], (reason,), "y" * 300)
    found += verdicts([f"{number}.png" for number in range(PER_REASON)])
    html = page(found, {verdict.file.sha256: drawn for verdict in found})
    assert html.count("data:image") == PER_REASON * (len(REASONS) + 1)
    assert len(html.encode()) < 5_000_000


def test_a_set_without_one_readable_file() -> None:
    nothing = Facts("0" * 64, 0, "empty", False, "empty_file", "no bytes")
    file = File("a.png", "train", None, nothing.sha256, "0001", "0001")
    html = page([Verdict(file, nothing, ("empty_file",), (), "no bytes")])
    assert "empty_file" in Page(html).text
    assert "nan" not in html


def test_thumbnails_are_shown_as_they_were_drawn() -> None:
    [only] = verdicts(["a.png"])
    drawn = read(thumbnail(encoded(picture(0), "PNG")))
    [address] = Page(page([only], {only.file.sha256: drawn})).addresses
    assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size == (64, 48)
