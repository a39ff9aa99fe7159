"""The report ``transfer``: for a program, for a terminal, and as a separate page.

reports/transfer.json, reports/transfer.html
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from deploy.plural import align
from simclr_core.evaluation.scores.accuracies import RANDOM_INIT
from simclr_core.evaluation.scores.budgets import PIXELS, SIMCLR, START
from simclr_core.evaluation.transfer.few_shot import EPISODES, SHOTS, WAYS
from simclr_core.evaluation.transfer.measure import Transfer

FORMAT_VERSION = 1
SURE = 0.05  # p-value below which a difference counts
KINDS = {
    SIMCLR: "this encoder",
    RANDOM_INIT: "random weights",
    PIXELS: "raw pixels",
    START: "weights it began with",
}
HEAD = ("features", "linear", "per class", "kNN", "per class", f"{WAYS}-way {SHOTS}-shot")
GAINS = ("points above", "linear", "p", "kNN", "p", f"{WAYS}-way {SHOTS}-shot")
STYLE = "body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
CELLS = (
    "td,th{padding:.2em .8em;text-align:right}td:first-child,th:first-child{text-align:left}table+table{margin-top:1em}"
)


def to_json(encoder: str, found: Sequence[Transfer]) -> str:
    """``encoder`` says which one was measured."""
    sets = [asdict(one) for one in found]
    return json.dumps({"format_version": FORMAT_VERSION, "encoder": encoder, "sets": sets}, indent=2) + "\n"


def describe(found: Sequence[Transfer]) -> str:
    """Two tables of each set: accuracies, and how much better the encoder is than what it is compared with."""
    return "\n\n".join(
        "\n".join([_title(one), *align(_rows(one), numbers=True), "", *align(_gains(one), numbers=True), *one.notes])
        for one in found
    )


def page(found: Sequence[Transfer]) -> str:
    """HTML that needs no other file."""
    parts = [
        f"<h2>{escape(_title(one))}</h2>{_table(_rows(one))}{_table(_gains(one))}{_paragraphs(one.notes)}"
        for one in found
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Transfer</title><style>{STYLE}{CELLS}</style>'
    explained = (
        "Accuracy in percent on test images of sets that the encoder was not trained on. Linear evaluation is that of "
        f"SimCLR, appendix B.8; few-shot is the mean of {EPISODES} episodes with its interval of 95 %. A difference is "
        f"more than chance, and marked with *, where the p-value of McNemar's exact test is below {SURE}, or where "
        "the interval of few-shot is on one side of 0."
    )
    return f"{head}<h1>Transfer</h1><p>{explained}</p>{''.join(parts)}</html>\n"


def _title(one: Transfer) -> str:
    return f"{one.name}: {one.classes} classes, {one.train:,} training images, {one.test:,} test images"


def _spoken(features: str) -> str:
    kind, _, draw = features.partition(" ")
    said = KINDS.get(kind, kind)
    return f"{said} {int(draw) + 1}" if draw else said


def _rows(one: Transfer) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [HEAD]
    for name, worth in one.worth.items():
        numbers = (worth.linear, worth.linear_per_class, worth.knn, worth.knn_per_class)
        rows.append((_spoken(name), *(f"{number:.1f}" for number in numbers), _interval(worth.few_shot)))
    return rows


def _gains(one: Transfer) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [GAINS]
    for name, above in one.above.items():
        few_shot = _interval(above.few_shot, "+")
        sure = abs(above.few_shot[0]) > above.few_shot[1] if above.few_shot else False
        linear, knn = _judged(above.linear, above.linear_p), _judged(above.knn, above.knn_p)
        rows.append((_spoken(name), *linear, *knn, few_shot + (" *" if sure else "")))
    return rows


def _judged(points: float, p_value: float) -> tuple[str, str]:
    return f"{points:+.1f}{' *' if p_value < SURE else ''}", f"{p_value:.2g}"


def _interval(given: tuple[float, float] | None, sign: str = "") -> str:
    return "too few images" if given is None else f"{given[0]:{sign}.1f} ± {given[1]:.1f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
