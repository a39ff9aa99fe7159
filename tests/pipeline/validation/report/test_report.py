import base64
import io
import json
import re
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from deploy.failure import printable
from deploy.images.background import BACKGROUNDS
from pipeline.reports import Outcome
from pipeline.validation.drift.drift import Drift, Shape
from pipeline.validation.probe.probe import THUMBNAIL_SIDE
from pipeline.validation.reasons import REASONS, WARNINGS
from pipeline.validation.report.charts import DISTRIBUTIONS
from pipeline.validation.report.report import (
    ACCEPTED,
    CONVERSIONS,
    MOST_BYTES,
    PER_REASON,
    gallery,
    render,
    shown,
    summary,
)
from pipeline.validation.report.side_by_side import MOST_GROUPS, MOST_PAIRS, MOST_PATHS, MOST_PICTURES
from pipeline.validation.report.thumbnails import jpeg
from tests.pipeline.validation.corpus.corpus import picture
from tests.pipeline.validation.corpus.manifests import HOSTILE, everything, row, statistic, table

NOT_JUDGED = Drift("not judged", "0001", 0, 1, "there is no earlier batch")
RULE = Outcome("decodes", "files", "critical", True, 1.0, "True for 95 %", 0, [], None)
Thumbnails = dict[str, Image.Image | None]


class Page(HTMLParser):
    """Everything in a page that could act, call out, or be read."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.links: set[str] = set()
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "action", "data", "srcset")]
        self.links |= {value or "" for name, value in attrs if name == "href"}
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(
    manifest: pl.DataFrame, *rules: Outcome, thumbnails: Thumbnails | None = None, drift: Drift = NOT_JUDGED
) -> str:
    return render(summary(manifest, rules or [RULE], drift), manifest, drift, thumbnails or {})


def drawn(manifest: pl.DataFrame) -> Thumbnails:
    return {sha256: picture(1) for sha256 in manifest["sha256"]}


def test_summary_counts_every_file_once() -> None:
    manifest = everything()
    images = summary(manifest, [RULE], NOT_JUDGED).images
    oracle = Counter(reasons[0] for reasons in manifest["reasons"].to_list() if reasons)
    assert images.quarantined == oracle
    assert list(images.quarantined) == list(REASONS)
    assert images.ingested == manifest.height == images.accepted + sum(oracle.values())
    assert images.converted == len(CONVERSIONS)


def test_only_the_primary_reason_counts() -> None:
    images = summary(table([row("a.png", "too_small", "extreme_aspect")]), [RULE], NOT_JUDGED).images
    assert images.quarantined == {"too_small": 1}


def test_a_content_is_quarantined_when_none_of_its_files_is_used() -> None:
    files = [
        row("old.png", "exact_duplicate", content="relabeled"),
        row("new.png", content="relabeled", label="cat", ingest_batch="0002"),
        row("once.png"),
        row("broken.png", "corrupt", content="broken"),
        row("broken too.png", "corrupt", content="broken"),
    ]
    images = summary(table(files), [RULE], NOT_JUDGED).images
    assert (images.contents, images.contents_quarantined) == (3, 1)


def test_summary_has_the_fields_that_gates_read() -> None:
    failed = Outcome("aspect", "files", "critical", False, 0.5, "<= 10 for 95 %", 7, ["a"], None)
    found = summary(table([row("a.png")]), [RULE, failed], NOT_JUDGED)
    assert found.passed is False
    assert list(asdict(found)["expectations"][1]) == [
        "name",
        "suite",
        "severity",
        "success",
        "observed",
        "threshold",
        "unexpected_count",
        "sample_ids",
        "error",
    ]
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("reasons", [(), ("corrupt",), ("test_leak",)])
def test_hostile_names_are_shown_as_text(reasons: tuple[str, ...]) -> None:
    files = [row(name, *reasons, message=name, label=name, copy_of=row("", content="t")["sha256"]) for name in HOSTILE]
    manifest = table([*files, row("t", content="t", split="test")])
    broken = Outcome("aspect", "files", "critical", False, HOSTILE[1], HOSTILE[0], 1, HOSTILE[:10], HOSTILE[0])
    read = Page(page(manifest, broken, thumbnails=drawn(manifest)))
    assert not read.tags & {"script", "iframe", "object", "embed", "base", "form", "video", "audio", "input"}
    assert read.handlers == []
    assert all(source.startswith("data:image/jpeg;base64,") for source in read.sources)
    for name in HOSTILE:
        assert printable(name) in read.text
    assert not set("\u202e\u200b\u2028\r\t\U000e0041") & set(read.text)


def test_a_broken_contract_is_said_at_the_top_with_what_to_do() -> None:
    broken = Outcome("quarantine_rate", "contents", "critical", False, 0.91, "<= 0.05", None, [], None)
    top = Page(page(table([row("a.png", "corrupt")]), broken)).text.partition("Great Expectations Data Docs")[0]
    assert "found 91 %, required: at most 5 %" in top
    assert "simclr quarantine release" in top


def test_drift_is_shown_and_hostile_batch_names_are_shown_as_text() -> None:
    name = "0002-<script>alert(1)</script>\u202e"
    effects = {"luma_mean": 0.5, "saturation": 0.05, "entropy": 0.4, "edge_energy": 0.3, "format": 0.9}
    drift = Drift(
        "drift",
        name,
        300,
        100,
        f"look at {name}",
        tuple(statistic(each, effect) for each, effect in effects.items()),
        (Shape(name, "gray", True),),
        {each: (np.arange(300.0), np.full(100, 7.0)) for each in effects if each != "format"},
    )
    html = page(table([row("a.png", "corrupt")]), drift=drift)
    read = Page(html)
    assert not read.tags & {"script", "img"}
    assert read.text.count(printable(name)) == 2
    assert "\u202e" not in read.text
    titles = re.findall('aria-label="([^"]*)">\n<path', html)
    assert titles == ["brightness, 0 to 255", "entropy of brightness, bits", "edges, 0 to 255"]
    assert read.text.count("drifted") == 4
    assert "<path" not in page(table([row("a.png", "corrupt")]))


def test_the_page_is_self_contained() -> None:
    html = page(everything(), thumbnails=drawn(everything()))
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    links = {link for link in Page(html).links if not link.startswith("#")}
    assert links == {"data_docs.html", "data:,"}
    assert all(f'id="{link[1:]}"' in html for link in Page(html).links if link.startswith("#"))


def test_every_reason_conversion_and_distribution_is_on_the_page() -> None:
    text = Page(page(everything())).text
    for meanings in (REASONS, WARNINGS, CONVERSIONS):
        assert all(name in text and meaning in text for name, meaning in meanings.items())
    assert all(title in text for title in DISTRIBUTIONS.values())
    assert "accepted images of earlier batches" in text
    near = text[text.index("2 files, 2 pictures; 2 used") :]
    assert near.index("near/a.jpg") < near.index("in a chain of near copies") < near.index("near/b.jpg")
    leak = text[text.index("Nearly the same picture, 2 of 64 bits differ") :]
    assert leak.index("label dog") < leak.index("train/a.jpg") < leak.index("label cat") < leak.index("test/a.jpg")


def test_near_copies_with_different_labels_are_listed_with_their_paths() -> None:
    def copy(path: str, label: str, group: str, *reasons: str) -> dict[str, Any]:
        return row(path, *reasons, label=label, near_group=group, near_group_size=2, warnings=["near_label_conflict"])

    rows = [copy("fine/part 1.png", "fine", "g"), copy("scratched/part 1.png", "scratched", "g", "test_leak")]
    rows += [copy(f"{label}/{number}.png", label, f"h{number}") for number in range(40) for label in ("left", "right")]
    text = Page(page(table(rows))).text
    found = text[text.index("Near copies with different labels", text.index("Duplicates")) :]
    found = found[: found.index("Duplicates")]
    assert "The 20 largest of 41 groups." in found
    assert found.index("fine/part 1.png") < found.index("scratched/part 1.png") < found.index("not used")
    assert found.count("right/") == 19


def test_a_set_without_faults() -> None:
    text = Page(page(table([row("a.png")]))).text
    assert "passed" in text
    for nothing in ("None: every file is used.", "None: no training image", "None: every picture is there once."):
        assert nothing in text


def test_every_operation_of_the_preprocessing_has_a_meaning() -> None:
    from deploy.images import preprocess

    listed = str(preprocess.canonicalize.__doc__).partition("out of")[2].partition(";")[0]
    named = {*re.findall(r"``(\w+)``", listed), *(f"alpha_on_{background}" for background in BACKGROUNDS)}
    assert named | {"uint8_to_uint16"} == set(CONVERSIONS), "and what full depth does"


def test_failures_come_first_with_paths_and_readable_numbers() -> None:
    manifest = table([row("holiday/dark.jpg")])
    [file_id] = manifest["file_id"]
    rules = [
        RULE,
        Outcome("not_dark", "files", "warning", False, 0.999999, "x", 12345678, [file_id, "luma_mean"], None),
        Outcome("enough_training_images", "splits", "critical", False, 1234567.0, ">= 64", None, [], None),
        Outcome("has_colour", "files", "info", False, None, "y", None, [], "no such column"),
    ]
    text = Page(page(manifest, *rules)).text.split("stops the pipeline")[1]
    order = [text.index(one) for one in ("enough_training_images", "has_colour", "not_dark", "1 without a finding")]
    assert order == sorted(order)
    for readable in ("12,345,678", "1,234,567", "99.9999 %", f"{file_id} holiday/dark.jpg", "no such column"):
        assert readable in text


def test_what_is_only_noted_counts_as_held() -> None:
    noted = Outcome("has_colour", "files", "info", False, 0.5, "y", 3, [], None)
    warned = Outcome("not_dark", "files", "warning", False, 0.5, "x", 3, [], None)
    text = Page(page(table([row("a.jpg")]), RULE, noted, warned)).text
    assert "2 of 3 hold." in text
    assert "noted" in text[text.index("has_colour") : text.index("1 without a finding")]


def test_every_reason_shows_its_newest_contents_once() -> None:
    old = [row(f"{number:03}.png", "corrupt", "too_small") for number in range(PER_REASON)]
    new = [row(f"new{number}.png", "corrupt", ingest_batch="0002") for number in range(6)]
    again = [row(f"again{number}.png", "corrupt", content="new0.png", ingest_batch="0003") for number in range(3)]
    fine = [row(f"fine{number:03}.png") for number in range(100)]
    manifest = table(old + new + again + fine)
    groups = gallery(manifest)
    assert set(groups) == {"corrupt", ACCEPTED}
    expected = ["again0.png", *(f"new{number}.png" for number in range(1, 6)), *(one["path"] for one in old)]
    assert [one["path"] for one in groups["corrupt"]] == expected[:PER_REASON]
    assert PER_REASON / 2 < len(groups[ACCEPTED]) <= PER_REASON
    assert f"damaged inside; {PER_REASON + 9} files" in Page(page(manifest)).text


def test_no_picture_is_drawn_of_a_denied_image() -> None:
    """Neither the content, under any name, nor other files with the very same pixels."""
    secret = {"content": "secret", "pixel_hash": "s"}
    manifest = table(
        [
            row("a.png", "denied", **secret),
            row("b.png", "denied", "test_leak", **secret, copy_of=row("", content="t")["sha256"]),
            row("c.png", "unsafe_path", "denied", **secret),
            row("d.png", content="other bytes", pixel_hash="s"),
            row("e.png"),
            row("f.png", "empty_file", decodes=False, pixel_hash=None),
        ]
    )
    visible = {row("e.png")["sha256"], row("f.png")["sha256"]}
    assert shown(manifest) == visible
    html = page(manifest, thumbnails=drawn(manifest))
    assert html.count("<img") == len(visible)
    assert html.count("not shown") == 3


def test_thumbnails_are_requested_only_for_shown_images() -> None:
    many = [row(f"more/{number}.jpg", "corrupt") for number in range(2 * PER_REASON)]
    manifest = pl.concat([everything(), table(many)])
    pictures = {sha256: picture(seed) for seed, sha256 in enumerate(sorted(set(manifest["sha256"])))}
    wanted = shown(manifest)
    assert len(wanted) < len(pictures)
    sources = set(Page(page(manifest, thumbnails=dict(pictures))).sources)
    assert sources == {f"data:image/jpeg;base64,{jpeg(pictures[sha256])}" for sha256 in wanted}


def noisy(seed: int) -> Image.Image:
    """What compresses worst."""
    bits = np.random.default_rng(seed).integers(0, 2, (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3))
    return Image.fromarray((255 * bits).astype(np.uint8))


def worst() -> pl.DataFrame:
    """All galleries, groups and leaks are full, with the longest names that are possible."""
    long = {"message": '"' * 300, "label": '"' * 300}

    def files(reason: str, count: int, **changes: Any) -> list[dict[str, Any]]:
        name = f"{reason}{len(changes)}" + '"' * 300
        return [row(f"{name}{number}", *([reason] if reason else []), **long, **changes) for number in range(count)]

    rows = [one for reason in ("", *REASONS) for one in files(reason, PER_REASON)]
    for number in range(MOST_PAIRS):
        test = row(f"test{number}" + '"' * 300, split="test", **long)
        rows += [test, row(f"leak{number}" + '"' * 300, "test_leak", copy_of=test["sha256"], **long)]
    for kind, count in MOST_GROUPS.items():
        for group in range(count):
            shared = {"near": {"near_group": f"{group}"}, "pixel": {"pixel_hash": f"{group}"}, "exact": {}}[kind]
            for number in range(MOST_PICTURES + 1):
                content = f"{kind}{group}" if kind == "exact" else f"{kind}{group}.{number}"
                for copy in range(MOST_PATHS + 1):
                    pixels = {"pixel_hash": f"{group}.{number}"} if kind == "near" else {}
                    rows.append(
                        row(f"{kind}{group}.{number}.{copy}" + '"' * 300, content=content, **pixels, **shared, **long)
                    )
    return table(rows)


@pytest.mark.seconds
def test_the_largest_report_stays_below_five_megabytes() -> None:
    manifest = worst()
    ids = [one + "&" * 300 for one in manifest["file_id"][:10]]
    rules = [Outcome(f"rule{n}", "x", "critical", False, 0.5, "&" * 300, 9, ids, "&" * 3000) for n in range(80)]
    pictures = [noisy(seed) for seed in range(4)]
    wanted = sorted(shown(manifest))
    html = page(manifest, *rules, thumbnails={sha256: pictures[n % 4] for n, sha256 in enumerate(wanted)})
    assert 0.7 * MOST_BYTES < len(html.encode()) < MOST_BYTES
    titles = re.findall(r"Up to (\d+) of each", html)
    assert 4 <= int(titles[0]) < PER_REASON
    groups = MOST_PICTURES * (MOST_GROUPS["near"] + MOST_GROUPS["pixel"]) + MOST_GROUPS["exact"]
    denied = int(titles[0])
    assert html.count("<img") == int(titles[0]) * (len(REASONS) + 1) - denied + 2 * MOST_PAIRS + groups


def test_a_set_without_one_readable_file() -> None:
    unknown = dict.fromkeys(name for name in DISTRIBUTIONS if name != "size_bytes")
    html = page(table([row("a.png", "empty_file", decodes=False, pixel_hash=None, phash=None, **unknown)]))
    assert "empty_file" in Page(html).text
    assert "No image was accepted." in html
    assert "nan" not in html


def test_thumbnails_are_shown_as_they_were_drawn() -> None:
    manifest = table([row("a.png")])
    [address] = Page(page(manifest, thumbnails=drawn(manifest))).sources
    assert Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).size == (64, 48)


def test_the_same_table_gives_the_same_bytes() -> None:
    manifest = everything()
    assert page(manifest, thumbnails=drawn(manifest)) == page(manifest.clone(), thumbnails=drawn(manifest))
