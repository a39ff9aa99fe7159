"""The validation report for a person: one HTML file that needs nothing else, under 5 MB, with no active content.

File names are hostile until shown otherwise: they are escaped by the template, their control and direction characters
are spelled out, and a content security policy forbids scripts and every request. Thumbnails are drawn anew from pixels,
so that no byte of an original reaches a browser.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline.validation.drift import MEANINGS, Drift
from pipeline.validation.evaluate import Outcome, passed
from pipeline.validation.thumbnails import jpeg
from pipeline.validation.verdict import REASONS, WARNINGS

PER_REASON = 24
BARS = 40
MOST_DRIFTED = 3
ACCEPTED = "accepted"

DISTRIBUTIONS = {
    "short_side": "shorter side, pixels",
    "aspect": "longer over shorter side",
    "size_bytes": "file size, bytes (logarithmic)",
    "luma_mean": "brightness, 0 to 255",
    "luma_std": "contrast, 0 to 255",
    "entropy": "entropy of brightness, bits",
    "edge_energy": "edges, 0 to 255",
    "saturation": "saturation, 0 to 255",
}
"""The columns of the manifest that are drawn."""

LOGARITHMIC = {"size_bytes"}
COMPARISONS = {"label_conflict", "test_leak", "exact_duplicate", "pixel_duplicate"}


def summary(manifest: pa.Table, outcomes: Sequence[Outcome], drift: Drift) -> dict[str, Any]:
    """What ``reports/validation.json`` holds: all that gates and dashboards read."""
    rows = manifest.select(["verdict", "reasons"]).to_pylist()
    verdicts = Counter(row["verdict"] for row in rows)
    reasons = Counter(row["reasons"][0] for row in rows if row["reasons"])
    return {
        "images": {
            "ingested": len(rows),
            "accepted": verdicts["accept"] + verdicts["convert"],
            "converted": verdicts["convert"],
            "quarantined": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
        },
        "passed": passed(outcomes),
        "drift": drift.to_json(),
        "expectations": [asdict(outcome) for outcome in outcomes],
    }


def gallery(manifest: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """For each primary reason, and for ``accepted``, the files to be shown."""
    rows = manifest.select(["path", "sha256", "container", "reasons", "message"]).to_pylist()
    used = [row for row in rows if not row["reasons"]]
    groups = {reason: [row for row in rows if row["reasons"][:1] == [reason]][:PER_REASON] for reason in REASONS}
    groups[ACCEPTED] = used[:: max(1, -(-len(used) // PER_REASON))]
    return {name: shown for name, shown in groups.items() if shown}


def render(
    summary: Mapping[str, Any], manifest: pa.Table, drift: Drift, thumbnails: Mapping[str, Image.Image | None]
) -> str:
    """The report as HTML. ``thumbnails``: SHA-256 → picture, for the files of ``gallery``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    images = summary["images"]
    counts = images["quarantined"] | {ACCEPTED: images["accepted"]}
    return environment.get_template("report.html.j2").render(
        images=images,
        passed=summary["passed"],
        funnel=_funnel(manifest),
        reasons=[(reason, REASONS[reason], count) for reason, count in images["quarantined"].items()],
        notes=_notes(manifest),
        outcomes=summary["expectations"],
        histograms=_histograms(manifest),
        drift=drift,
        drift_batch=printable(drift.batch or ""),
        drift_advice=printable(drift.advice, 1000),
        drift_meanings=MEANINGS,
        drift_histograms=_drift_histograms(drift),
        per_reason=PER_REASON,
        gallery=[
            {
                "name": name,
                "meaning": REASONS.get(name, "a sample of what is trained and tested on"),
                "count": counts[name],
                "entries": [_entry(row, thumbnails.get(row["sha256"])) for row in rows],
            }
            for name, rows in gallery(manifest).items()
        ],
    )


def printable(text: str, limit: int = 200) -> str:
    """``text`` with every character that is not meant to be seen spelled out, such as \\u202e, and cut at ``limit``."""
    hidden = ("C", "Zl", "Zp")  # control, format, surrogate, unassigned; line and paragraph separators
    shown = "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character).startswith(hidden) else character
        for character in text[:limit]
    )
    return shown + ("…" if len(text) > limit else "")


def _entry(row: Mapping[str, Any], thumbnail: Image.Image | None) -> dict[str, Any]:
    return {
        "path": printable(row["path"]),
        "message": printable(row["message"]),
        "container": row["container"],
        "thumbnail": jpeg(thumbnail) if thumbnail else None,
    }


def _funnel(manifest: pa.Table) -> list[tuple[str, int]]:
    rows = manifest.select(["decodes", "reasons"]).to_pylist()
    fit = [row for row in rows if not set(row["reasons"]) - COMPARISONS]
    return [
        ("ingested", len(rows)),
        ("decoded", sum(row["decodes"] for row in rows)),
        ("fit on their own", len(fit)),
        ("accepted, after comparison with each other", sum(not row["reasons"] for row in fit)),
    ]


def _notes(manifest: pa.Table) -> list[tuple[str, str, int]]:
    rows = [row for row in manifest.select(["reasons", "warnings", "operations"]).to_pylist() if not row["reasons"]]
    warned = Counter(name for row in rows for name in row["warnings"])
    converted = Counter(name for row in rows for name in row["operations"])
    return [(name, meaning, warned[name]) for name, meaning in WARNINGS.items() if warned[name]] + [
        (name, "converted on the way", converted[name]) for name in sorted(converted)
    ]


def _histograms(manifest: pa.Table) -> Iterable[dict[str, Any]]:
    refused = np.array([verdict == "quarantine" for verdict in manifest["verdict"].to_pylist()], dtype=bool)
    for column, title in DISTRIBUTIONS.items():
        values = np.array(manifest[column].to_pylist(), dtype=np.float64)
        known = ~np.isnan(values)
        scaled = np.log10(np.maximum(values, 1)) if column in LOGARITHMIC else values
        bars, low, high = _bars(scaled[known & ~refused], scaled[known & refused])
        if column in LOGARITHMIC:
            low, high = 10**low, 10**high
        yield {"title": title, "bars": bars, "low": f"{low:.4g}", "high": f"{high:.4g}"}


def _bars(accepted: np.ndarray[Any, Any], refused: np.ndarray[Any, Any]) -> tuple[list[tuple[Any, ...]], float, float]:
    """Rectangles of a stacked histogram, 240 x 90, of the central 98 % of accepted values; others fall on its ends."""
    scale = accepted if accepted.size else refused
    if not scale.size:
        return [], 0.0, 0.0
    low, high = (float(end) for end in np.percentile(scale, [1, 99]))
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    used, lost = (np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] for values in (accepted, refused))
    unit, width = 88 / max(1, (used + lost).max()), 240 / BARS
    rectangles = []
    for index, (good, bad) in enumerate(zip(used * unit, lost * unit, strict=True)):
        for height, bottom, kind in ((good, 90.0, "accepted"), (bad, 90.0 - good, "refused")):
            if height:
                rectangles.append((index * width, f"{bottom - height:.2f}", width - 1, f"{height:.2f}", kind))
    return rectangles, low, high


def _drift_histograms(drift: Drift) -> Iterable[dict[str, Any]]:
    """The numbers that are furthest from their thresholds, earlier and new images on top of each other."""
    numbers = [one for one in drift.statistics if one.name in drift.samples]
    for one in sorted(numbers, key=lambda one: -one.effect / one.threshold)[:MOST_DRIFTED]:
        earlier, new = drift.samples[one.name]
        low, high = (float(end) for end in np.percentile(np.concatenate([earlier, new]), [0.5, 99.5]))
        edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
        shares = [np.histogram(each.clip(edges[0], edges[-1]), edges)[0] / each.size for each in (earlier, new)]
        unit = 88 / max(share.max() for share in shares)
        yield {
            "title": MEANINGS[one.name],
            "outlines": [_outline(90 - share * unit) for share in shares],
            "low": f"{low:.4g}",
            "high": f"{high:.4g}",
        }


def _outline(tops: np.ndarray[Any, Any]) -> str:
    """The steps of a histogram as an SVG path, 240 x 90."""
    width = 240 / BARS
    return "M0 90" + "".join(f"V{top:.2f}H{(bar + 1) * width:g}" for bar, top in enumerate(tops)) + "V90Z"
