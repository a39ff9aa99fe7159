"""What a person looks at before a decision: numbers of both, pictures of what one alone has right, and text as text."""

import json
from dataclasses import asdict, replace

import polars as pl
import pytest

from pipeline import waiting
from pipeline.explore.explore import TABLE, folder_of
from pipeline.run_report.candidate import MOST_PICTURES, compare, flipped, write
from pipeline.waiting import Candidate, candidate_page
from pipeline.workspace import Workspace
from simclr_core import reports
from simclr_core.data.shards import ShardedImages
from simclr_core.evaluation_reports import Paired
from simclr_core.reports import LatencyReport
from tests.conftest import write_prepared
from tests.reports import COMPARE, EMBEDDING_DRIFT, FINETUNE, LINEAR_EVAL, SCORES, SEVERAL, VALIDATION

HOSTILE = '"><script>alert(1)</script>\u202e<img src=x onerror=alert(1)>'
ASKED = ("2026-11-30T03:20:00+00:00", "2126-12-14T03:20:00+00:00")
CANDIDATE = Candidate(
    "ab" * 32, "b" * 64, "c" * 40, "v0.0.3", ("drift",), {"low_label": f"undecided: {HOSTILE}"}, *ASKED
)


def fill(workspace: Workspace) -> None:
    """Reports of both, and what both said of 40 test images: 30 lost, 4 won, 6 right by both."""
    write_prepared(workspace.root)
    evaluation = replace(LINEAR_EVAL, scores={"probe": SCORES})
    latency = LatencyReport("ab" * 32, "6f" * 32, 3.14159, 3.0, 100)
    for report in (COMPARE, EMBEDDING_DRIFT, FINETUNE, VALIDATION, evaluation, latency):
        reports.write(workspace.root, report)
    before = {"finetune-0.01": asdict(replace(FINETUNE, top1=12.5, interval=None, multi_label=None))}
    champion = {"version": "v0.0.3", "commit": None, "bundle": "6f" * 32, "reports": before}
    (workspace.root / "models" / "champion").mkdir(parents=True)
    (workspace.root / "models" / "champion" / "champion.json").write_text(json.dumps(champion))
    keys = [key.tobytes().hex() for key in ShardedImages(workspace.prepared / "test").keys]
    said = [("dog", "cat")] * 30 + [("cat", "dog")] * 4 + [("cat", "cat")] * 6
    rows = {
        "path": [f"test/{HOSTILE}/{number}.png" for number in range(40)],
        "sha256": keys,
        "split": ["test"] * 40,
        "label": ["cat"] * 40,
        "prediction": [one for one, _ in said],
        "champion": [other for _, other in said],
        "confidence": [number / 40 for number in range(40)],
    }
    folder_of(workspace).mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(folder_of(workspace) / TABLE)


def test_the_page_has_numbers_of_both_and_pictures_of_what_one_alone_has_right(workspace: Workspace) -> None:
    fill(workspace)
    waiting.keep(workspace.root / "registry", CANDIDATE)
    target = candidate_page(workspace.root, CANDIDATE.name)
    target.parent.mkdir()
    old = target.with_name("0123456789ab.html")
    old.write_text("of one that waits no more")
    write(workspace, CANDIDATE)
    assert not old.exists()
    page = target.read_text()
    assert "<script" not in page
    assert "onerror=alert(1)&gt;" in page
    assert "\u202e" not in page
    assert "Of 40 labeled test images" in page
    assert "the champion has 30 right that the candidate has wrong" in page
    assert "the candidate has 4 right that the champion has wrong" in page
    assert page.count('<img alt="" src="data:image/jpeg;base64,') == MOST_PICTURES + 4
    assert "6 more are in `simclr explore`" in page
    assert EMBEDDING_DRIFT.advice.partition("'")[0] in page


def test_what_was_lost_is_shown_with_the_surest_mistake_first(workspace: Workspace) -> None:
    fill(workspace)
    images, lost, won = flipped(workspace)
    assert images == 40
    assert [one.path.rpartition("/")[2] for one in lost[:2]] == ["29.png", "28.png"]
    assert {(one.label, one.candidate, one.champion) for one in won} == {("cat", "cat", "dog")}
    assert len(won) == 4


def test_differences_have_their_intervals_and_both_costs_are_named(workspace: Workspace) -> None:
    fill(workspace)
    rows = {row.name: row for row in compare(workspace)}
    knn = rows["kNN on the served embeddings"]
    assert (knn.candidate, knn.champion) == ("80.0 %", "80.0 %")
    assert knn.difference == "+0.0 points (-1.2 to +1.2); alone right: 100 and 100 of 2,000"
    assert rows["linear probe on the served embeddings"].difference.startswith("+0.5 points (")
    assert rows["ONNX file"].champion == "4.0 MB"
    assert (rows["one image on one thread"].candidate, rows["one image on one thread"].champion) == (
        "3.14 ms",
        "3.00 ms",
    )
    (tuned,) = [row for name, row in rows.items() if name.startswith("fine-tuned on ")]
    assert tuned.champion == "12.5 %"
    assert " to " in rows["linear probe, each in its run"].candidate


@pytest.mark.parametrize("several", [False, True])
def test_without_a_champion_or_a_table_of_images_the_page_says_so(workspace: Workspace, several: bool) -> None:
    first = replace(COMPARE, champion=None, knn=Paired(80.0), probe=Paired(None))
    reports.write(workspace.root, replace(first, gains=SEVERAL.multi_label.gains["knn"]) if several else first)  # type: ignore[union-attr]
    write(workspace, replace(CANDIDATE, champion=None))
    page = candidate_page(workspace.root, CANDIDATE.name).read_text()
    assert "no champion" in page
    assert "Not known: there is no champion" in page
