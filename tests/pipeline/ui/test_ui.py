"""Dagster's UI of a workspace as a person sees it: headless Chromium before a running `simclr ui`.

Graph, gates and release are the real ones; the stages only copy results that were made beforehand.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from benchmarks.pipeline import soak
from benchmarks.pipeline.soak import Stack, wait_for
from deploy.artifact import identity
from pipeline import workspace as workspaces
from pipeline.config import ValidateConfig
from pipeline.defs import build_definitions
from pipeline.params import read
from pipeline.release.registry import open_registry
from pipeline.validation.expectations import expectations
from pipeline.workspace import Workspace
from tests.browser import Page, browser
from tests.conftest import TINY_PARAMS, draw, encode
from tests.pipeline.conftest import put
from tests.pipeline.gates.reports import ALONE, EXPORT, LINEAR_EVAL, NOT_JUDGED, PRETRAIN, outcome
from tests.pipeline.release.conftest import git, make_candidate
from tests.reports import FINETUNE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[3]
PLOTS = {
    "validate": ["quarantine"],
    "embedding_drift": ["novel"],
    "pretrain": ["curves", "augmentations"],
    "linear_eval": ["confusion", "neighbours", "map"],
}
# Copies what is ready; the training waits for someone who has read its first line.
STAGE = r"""
import json, os, shutil, sys, time
from pathlib import Path

name = sys.argv[1]
if name == "pretrain":
    with open(os.environ["SIMCLR_EVENTS"], "a") as file:
        file.write(json.dumps({"event": "progress", "stage": name, "message": "epoch 1/2: loss 4.2"}) + "\n")
    deadline = time.monotonic() + 600
    while not Path("seen").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
shutil.copytree(Path("../factory") / name, ".", dirs_exist_ok=True)
"""
LAUNCHPAD = "/locations/pipeline.definitions/jobs/retrain/playground"
# A log follows its end until rows that grow late leave it a little above, as under load: a person scrolls too.
TO_THE_END = "for (const one of document.querySelectorAll('div')) one.scrollTop = one.scrollHeight"
CONFIG = "ops:\n  raw_images:\n    config:\n      pretrain:\n        temperature: 0.25\n"


class Ui:
    """A browser before the UI of a workspace; ``hosts`` are all that its pages have asked for anything."""

    def __init__(self, workspace: Workspace, stack: Stack, page: Page) -> None:
        self.workspace, self.page = workspace, page
        self.hosts: set[str] = set()
        self._stack = stack

    def resize(self, width: int = 1600, height: int = 1200) -> None:
        """The window, in pixels."""
        self.page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def visit(self, path: str, *texts: str) -> str:
        self.page.open(f"http://127.0.0.1:{self._stack.port}{path}")
        return self.see(*texts)

    def see(self, *texts: str) -> str:
        """The page's text once it has all of these."""
        shown = self.page.wait_for(*texts, seconds=120)
        resources = "performance.getEntriesByType('resource').map(one => new URL(one.name))"
        script = f"{resources}.filter(one => one.protocol !== 'data:').map(one => one.hostname)"
        self.hosts |= set(self.page.evaluate(script))
        return shown

    def follow(self, *texts: str) -> None:
        """Until the end of a run's log has all of these."""
        quoted = json.dumps(texts)
        self.wait_for(f"{{{TO_THE_END}}}; {quoted}.every(text => document.body.innerText.includes(text))", seconds=300)

    def wait_for(self, condition: str, seconds: float = 120) -> None:
        """Until this JavaScript is true."""
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition}: never, but:\n{self.page.text()[:3000]}"
            self.page.evaluate("new Promise(done => setTimeout(done, 100))")

    def click(self, label: str) -> None:
        element = f"[...document.querySelectorAll('body *')].filter(one => one.innerText === {label!r}).pop()"
        self.wait_for(f"!!{element} && !{element}.closest('[disabled]')")
        self.page.evaluate(f"{element}.click()")


def make_workspace(place: Path) -> Workspace:
    workspace = workspaces.create(place / "my pictures – ähm")
    graph = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))
    for name, stage in graph["stages"].items():
        stage["cmd"] = f"python stage.py {name}" + ("-${item.fraction}" if "matrix" in stage else "")
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(TINY_PARAMS), encoding="utf-8")
    (workspace.root / "stage.py").write_text(STAGE, encoding="utf-8")
    git(workspace.root, "add", "--all")
    git(workspace.root, "-c", "user.name=user", "-c", "user.email=user@example.org", "commit", "-qm", "The graph")
    for number in range(4):
        put(workspace, f"unlabeled/{number}.png", encode(draw(number, number)))
    make_results(place / "factory")
    return workspace


def make_results(factory: Path) -> None:
    """What each stage copies, in its own folder."""
    make_candidate(factory / "made", 1)
    shutil.copytree(factory / "made" / "1" / "bundle", factory / "export" / "models" / "bundle")
    shutil.copytree(factory / "made" / "1" / "pretrained", factory / "pretrain" / "models" / "pretrained")
    images = {"ingested": 4, "accepted": 3, "converted": 0, "quarantined": {"truncated": 1}}
    fraction = asdict(FINETUNE) | {"top1": 60.0, "ci95": 2.0, "scratch_top1": 50.0, "labels": 3}
    simclr = {"knn_top1": 75.0, "linear_top1": {"0.1": 70.0}, "linear_top5": {"0.1": 98.0}}
    bundle = identity(factory / "export" / "models" / "bundle")
    timing = {"bundle": bundle, "champion": None, "p50_ms": 0.1, "champion_p50_ms": None, "rounds": 100}
    kept = [outcome(rule.name) for rule in expectations(ValidateConfig())]
    files: dict[str, object] = {
        "validate/data/manifest/rows": "",
        "validate/reports/validation.html": "<p>3 of 4 images</p>",
        "validate/reports/data_docs.html": "<p>every expectation</p>",
        "validate/reports/validation.json": {"passed": True, "images": images, "expectations": kept},
        "prepare/data/prepared/dataset.json": {"images": {"train": 2, "test": 1}},
        "embedding_drift/reports/embedding_drift.json": NOT_JUDGED,
        "initial/models/initial/initial.json": {"init": "scratch"},
        "pretrain/reports/pretrain.json": PRETRAIN | {"knn_top1": 71.5},
        "pretrain/reports/pretrain.csv": "epoch,loss\n1,4.2\n",
        "linear_eval/models/probe/probe.json": {},
        "linear_eval/reports/linear_eval.json": LINEAR_EVAL | {"simclr": simclr},
        "linear_eval/reports/confusion.csv": "actual,predicted\n",
        "linear_eval/reports/predictions.parquet": "",
        "export/reports/export.json": EXPORT,
        "compare/reports/compare.json": ALONE,
        "explore/data/explore/images.parquet": "",
        "compare/.simclr/timings/latency.json": timing,
    }
    for share in ("0.01", "0.1"):
        files[f"finetune-{share}/models/finetuned/{share}/model.json"] = {}
        files[f"finetune-{share}/reports/finetune-{share}.json"] = fraction | {"fraction": share}
    for path, content in files.items():
        (factory / path).parent.mkdir(parents=True, exist_ok=True)
        (factory / path).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for number, (stage, names) in enumerate(PLOTS.items()):
        for name in names:
            (factory / stage / "reports" / f"{name}.png").write_bytes(encode(draw(number, 7, side=640)))


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    workspace = make_workspace(tmp_path_factory.mktemp("seen"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    stack = Stack(workspace.root, "pipeline.definitions", {"PATH": path})
    with soak.running(stack), browser(tmp_path_factory.mktemp("profile")) as page:
        stack.wait_until_ready()
        ui = Ui(workspace, stack, page)
        ui.resize()
        yield ui


@pytest.fixture(scope="module")
def finished(ui: Ui) -> Ui:
    """After a run that was configured and launched in the browser, where its log was followed."""
    ui.visit(LAUNCHPAD, "Launch Run", "raw_images")
    ui.page.evaluate(f"document.querySelector('.CodeMirror').CodeMirror.setValue({CONFIG!r})")
    ui.click("Launch Run")
    ui.wait_for("location.pathname.startsWith('/runs/')")
    ui.follow("pretrain: epoch 1/2: loss 4.2")  # while it trains: it ends only after this
    assert not (ui.workspace.root / "models" / "pretrained").exists()
    run = ui.page.evaluate("location.pathname")
    ui.page.open("about:blank")  # a page that draws a running run keeps a core busy
    (ui.workspace.root / "seen").touch()
    wait_for((ui.workspace.root / "registry" / "CURRENT").exists, 600, "a release")
    ui.visit(run, "Success")
    ui.follow("released_encoder: v0.0.1")
    return ui


def test_a_run_from_the_launchpad_uses_its_settings_shows_live_logs_and_releases(finished: Ui) -> None:
    assert read(finished.workspace).pretrain.temperature == 0.25
    assert open_registry(finished.workspace).current() == "v0.0.1"


def test_the_graph_shows_every_group_and_asset(finished: Ui) -> None:
    specs = list(build_definitions(finished.workspace).resolve_all_asset_specs())
    groups = sorted({spec.group_name for spec in specs if spec.group_name})
    assert groups == ["data", "encoder", "evaluation", "monitoring", "production", "release"]
    names = [spec.key.path[-1] for spec in specs]
    assert len(set(names)) == 17
    expanded = ",".join(f"global@global:{group}" for group in groups)
    finished.resize(height=4000)  # Dagster fits the width, and leaves out what is below the window
    finished.visit(f"/asset-groups/?expanded={expanded}", *groups, *names)
    finished.resize()


@pytest.mark.parametrize(
    ("asset", "words", "pictures"),
    [
        ("models/pretrained", ["The pretrained encoder", "knn_top1", "71.5", "ml", "PyTorch", "encoder"], 2),
        ("models/probe", ["The linear classifier", "simclr/linear_top1/0.1", "evaluation"], 3),
        ("data/manifest", ["One row per ingested file", "images/accepted", "images/quarantined/truncated"], 1),
        ("data/prepared", ["Canonical images", "images/train"], 0),
        ("reports/validation", ["validation.html"], 1),
        ("released_encoder", ["The encoder that servers load", "v0.0.1", "candidate and champion"], 0),
    ],
)
def test_an_asset_page_has_its_description_and_pictures(
    finished: Ui, asset: str, words: list[str], pictures: int
) -> None:
    shown = finished.visit(f"/assets/{asset}", "Description", "Owners", "Kinds", *words)
    assert "[Show Markdown]" not in shown
    large = "[...document.images].filter(one => one.complete && one.naturalWidth === 400).length"
    finished.wait_for(f"{large} === {pictures}")


def test_accuracy_and_data_size_are_drawn_over_time(finished: Ui) -> None:
    finished.visit("/assets/released_encoder", "knn_top1")
    finished.click("Plots")
    finished.wait_for("document.querySelectorAll('canvas').length > 3")


def test_each_gate_shows_its_question_and_its_finding(finished: Ui) -> None:
    page = "/assets/reports/compare?view=checks&checkDetail=representation"
    gates = ["beats_baselines", "latency_budget", "low_label", "old_index", "representation", "size_budget"]
    shown = finished.visit(page, *gates, "This is a blocking asset check", "not applicable: no encoder has been")
    assert shown.count("Succeeded") == len(gates)
    assert "Passed" in shown
    code = "[...document.querySelectorAll('pre')].filter(one => one.innerText.includes('A loss of')).length"
    assert finished.page.evaluate(code) == 0  # its words, indented in the source, do nothing


def test_the_launchpad_offers_documented_typed_keys(ui: Ui) -> None:
    ui.visit(LAUNCHPAD, "Launch Run", "raw_images")
    ui.page.evaluate("document.querySelector('.CodeMirror').CodeMirror.setCursor(3, 8)")
    ui.page.evaluate("document.querySelector('.CodeMirror').CodeMirror.focus()")
    ui.see(
        "temperature?: Float",
        "a number, above 0.",
        "scratch, champion, or weights",
        "Folders, globs or fsspec URLs to ingest",
    )


@pytest.mark.parametrize(
    ("page", "words", "running"),
    [
        ("sensors/new_images", "Starts a run when enough new images have arrived", False),
        ("schedules/scheduled", "Starts a run at 0 3 * * 0 (UTC) if anything is new.", False),
        ("sensors/run_failed", "Sends an alert about each failed run", True),
    ],
)
def test_sensors_and_schedules_are_described_and_off_until_switched_on(
    ui: Ui, page: str, words: str, running: bool
) -> None:
    ui.visit("/automation", page.partition("/")[2])
    ui.visit(f"/locations/pipeline.definitions/{page}", "Running", words)
    switches = "[...document.querySelectorAll('input[type=checkbox]')].map(one => one.checked)"
    ui.wait_for(f"{switches}.length > 0")
    assert ui.page.evaluate(switches) == [running]


def test_no_page_requests_another_host(finished: Ui) -> None:
    assert finished.hosts == {"127.0.0.1"}
