"""What is read of released versions: from their commits alone, and with few processes however many there are."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.release.facts import Facts, comparison, facts, metrics, reports
from pipeline.release.versions import read_history
from simclr_core.evaluation_reports import LabelFree, Paired
from tests.reports import COMPARE, FINETUNE, FOLDED, LINEAR_EVAL

ARTIFACT = "simclr-encoder"


@pytest.fixture
def git(tmp_path: Path) -> Git:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    return Git(tmp_path, "bot", "bot@example.org")


def commit(git: Git, name: str, files: dict[str, bytes]) -> str:
    for path, content in files.items():
        (git.root / path).parent.mkdir(parents=True, exist_ok=True)
        (git.root / path).write_bytes(content)
    git.run("add", "--all")
    git.run("commit", "--quiet", "--allow-empty", "--message", name)
    return git.run("rev-parse", "HEAD")


def released(git: Git, number: int) -> None:
    export = json.dumps({"megabytes": number}).encode()
    files = {"reports/odd.json": export, "data/raw.dvc": b"outs:\n- md5: %032x.dir\n" % number}
    made = commit(git, f"Release\n\nBundle: {number:064x}", files)
    read_history(git, ARTIFACT).register(git, made, f"{number:064x}")


def test_contents_are_those_that_git_prints_one_by_one(git: Git) -> None:
    files = {
        "reports/one.json": b'{"name": "na\xc3\xafve"}\r\n\n',
        "reports/empty.json": b"",
        "reports/with space.json": b"[1]",
        "reports/odd\xff.json".encode("latin-1").decode("utf-8", "surrogateescape"): b"{}",
        "reports/deep/er.json": b"{}",
        "a": bytes(range(256)),
    }
    made = commit(git, "all", files)
    asked = [f"{made}:{path}" for path in files if "\udcff" not in path]
    printed = [subprocess.run(["git", "show", one], cwd=git.root, capture_output=True).stdout for one in asked]
    assert git.contents([*asked, f"{made}:none such", f"{made}:a"]) == [*printed, None, files["a"]]
    assert git.contents([]) == []
    plain = git.run("ls-tree", "-z", "--name-only", made, "reports/").split("\0")[:-1]
    assert git.listings([made, made], "reports") == [plain, plain]
    assert git.listings([made], "none") == [[]]
    with pytest.raises(ReleaseError, match="cat-file"):
        Git(git.root / "..", "bot", "b@example.org").contents(["HEAD"])


def test_facts_of_many_versions_take_no_more_processes_than_those_of_one(
    git: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``simclr release list`` started a process for each file of each version: seconds for a hundred."""
    for number in range(1, 6):
        released(git, number)
    history = read_history(git, ARTIFACT)
    started: list[Any] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: (started.append(given), run(*given, **options))[1])
    (one,) = facts(git, history, history.versions[:1])
    for_one = len(started)
    found = facts(git, history, history.versions)
    assert len(started) == 2 * for_one == 6
    assert found[0] == one
    assert [about.data for about in found] == [f"{number:032x}.dir" for number in range(1, 6)]
    assert [about.bundle for about in found] == [f"{number:064x}" for number in range(1, 6)]
    assert [about["odd"] for about in reports(git, [about.commit for about in found])] == [
        {"megabytes": number} for number in range(1, 6)
    ]


def test_the_record_in_the_registry_keeps_its_form() -> None:
    version = Facts(
        "encoder", "v0.0.2", "c", "runs/b", "b", "today", None, "d.dir", {"images": 3}, None, {"über": "ja"}
    )
    assert (
        version.to_json()
        == """{
  "artifact": "encoder",
  "version": "v0.0.2",
  "commit": "c",
  "branch": "runs/b",
  "bundle": "b",
  "registered": "today",
  "champion": null,
  "data": "d.dir",
  "metrics": {
    "images": 3
  },
  "compare": null,
  "gates": {
    "über": "ja"
  },
  "approved": null
}
"""
    )


def test_metrics_are_those_of_reports_that_fit() -> None:
    images = {"ingested": 3, "accepted": 2, "converted": 0, "quarantined": {"corrupt": 1}}
    about = {"validation": {"images": images}, "finetune-0.1": asdict(FINETUNE), "export": {"megabytes": 1.0}}
    assert metrics(about) == {"images": 2, f"finetune_top1/{FINETUNE.fraction}": FINETUNE.top1}
    assert metrics({"validation": {"images": {}}, "linear_eval": None}) == {}


def test_accuracies_out_of_fold_are_in_no_column_of_those_of_test_images() -> None:
    tested, folded = (metrics({"linear_eval": asdict(report)}) for report in (LINEAR_EVAL, FOLDED))
    assert tested == {"knn_top1": 82.8, "linear_top1/0.01": 60.0, "linear_top1/0.1": 70.0}
    assert folded == {f"out_of_fold/{name}": value for name, value in tested.items()}


@pytest.mark.parametrize(
    ("champion", "views", "said"),
    [
        (None, None, "UNJUDGED: nothing says how good this encoder is: no labels."),
        ("v0.0.1", None, "UNJUDGED: nothing says how good this encoder is: no labels; to compare it with v0.0.1 "),
        ("v0.0.1", LabelFree(900, "test", 41.5, 40.0, 1.5, 0.4), "Without labels: two views of an image have 41.50 % "),
    ],
)
def test_the_card_says_what_is_known_without_labels(champion: str | None, views: LabelFree | None, said: str) -> None:
    compare = replace(COMPARE, champion=champion, reason="no labels", knn=Paired(), probe=Paired(), label_free=views)
    version = Facts(ARTIFACT, "v0.0.2", "c", "runs/b", "b", "today", champion, None, {}, compare)
    assert comparison(version).startswith(said)
