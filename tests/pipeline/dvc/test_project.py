"""What we read out of dvc.yaml and dvc.lock."""

import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.logger import LoggerHandler

from pipeline.dvc import project
from pipeline.dvc.cache import opened
from pipeline.dvc.client import changed_stages, repro
from pipeline.dvc.project import (
    Out,
    find_unchanged,
    load,
    overlap,
    read_definitions,
    read_lock,
    read_outs,
    read_tracked,
    stage_names,
    track,
)
from pipeline.errors import BusyError, DvcError
from pipeline.maintenance.disk import raw_is_linked
from pipeline.workspace import Workspace
from tests.pipeline.small_graph import GRAPH, write_graph


def test_a_matrix_is_one_stage_for_each_combination(graph: Workspace) -> None:
    project = load(graph.root)
    assert [stage.name for stage in project.stages] == ["prepare", "pretrain", "finetune@0.01", "finetune@0.1"]
    one = project.stages[2]
    assert one.command == "python stage.py finetune 0.01"
    assert one.outs == (Out("models/finetuned/0.01"),)
    assert [stage.name for stage in project.select("finetune")] == ["finetune@0.01", "finetune@0.1"]
    assert project.select("finetune@0.1") == (project.stages[3],)


def test_names_of_stages_are_known_without_a_project(graph: Workspace, workspace: Workspace) -> None:
    for root in (graph.root, workspace.root):
        assert stage_names(root) == [stage.name for stage in load(root).stages]
    two = {"stages": {"a": {"cmd": "a"}, "b": {"cmd": "b", "matrix": {"x": ["1", "2"], "y": ["u", "v"]}}}}
    (graph.root / "dvc.yaml").write_text(yaml.safe_dump(two))
    assert stage_names(graph.root) == ["a", "b@1-u", "b@1-v", "b@2-u", "b@2-v"]
    assert stage_names(graph.root) == [stage.name for stage in load(graph.root).stages]
    (graph.root / "dvc.yaml").unlink()
    assert stage_names(graph.root) == []


def test_a_lock_is_parsed_once_until_its_content_changes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def counted(content: bytes) -> object:
        parsed.append(content)
        return yaml.safe_load(content)

    monkeypatch.setattr(project, "yaml", SimpleNamespace(safe_load=counted, YAMLError=yaml.YAMLError))
    lock = workspace.root / "dvc.lock"
    for md5 in ("a" * 32, "b" * 32):
        lock.write_text(yaml.safe_dump({"stages": {"made": {"outs": [{"path": "out", "md5": md5}]}}}))
        for _ in range(3):
            found = read_lock(workspace.root)
            assert found["made"].outs["out"].md5 == md5
            found.clear()
    assert len(parsed) == 2


def test_a_lock_with_the_marks_of_a_merge_is_one_sentence(graph: Workspace) -> None:
    prepare = load(graph.root).stages[0]
    (graph.root / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {\n")
    with pytest.raises(DvcError, match=r"dvc\.lock: is not valid YAML; restore it with"):
        read_outs(graph.root, prepare)


def test_outputs_have_the_kind_that_dvc_yaml_gives_them(graph: Workspace) -> None:
    prepare, pretrain, *_ = load(graph.root).stages
    assert prepare.data == (Out("data/prepared", "data", "All of them in one."),)
    assert {(out.path, out.kind) for out in pretrain.outs} == {
        ("models/pretrained", "data"),
        ("reports/pretrain.json", "metric"),
        ("reports/curves.png", "plot"),
        ("reports/pretrain.csv", "plot"),
    }
    assert pretrain.deps == ("data/prepared",)
    assert pretrain.params == ("params.yaml:pretrain",)
    assert pretrain.meta["dagster"]["group"] == "training"


def test_reading_a_metric_depends_on_the_result_that_it_measures(graph: Workspace) -> None:
    project = load(graph.root)
    assert project.upstream(project.stages[2]) == ("models/pretrained",)


def test_a_stage_that_writes_only_metrics_has_them_as_results(workspace: Workspace) -> None:
    write_graph(workspace, "stages: {count: {cmd: ls, metrics: [reports/count.json]}}")
    assert load(workspace.root).stages[0].data == (Out("reports/count.json", "metric"),)


def test_overlap_is_symmetric_and_tells_folders_from_prefixes() -> None:
    paths = ["data/raw", "data/raw/one.tar", "data/raw2", "data", "reports"]
    related = {(a, b) for a, b in product(paths, paths) if overlap(a, b)}
    assert related == {(b, a) for a, b in related}
    assert ("data", "data/raw/one.tar") in related
    assert ("data/raw", "data/raw2") not in related


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("stage.py pretrain", "stage.py pretrain --fast", True),
        ("params: [pretrain]", "params: [pretrain, seed]", True),
        ("deps: [data/prepared]", "deps: [data/prepared, stage.py]", True),
        ("outs: [models/pretrained]", "outs: [models/encoder]", True),
        ("desc: Count letters.", "desc: Count all letters.", False),
        ("stage.py prepare", "stage.py prepare --fast", False),
    ],
)
def test_the_digest_depends_only_on_the_definition_of_the_stage(
    graph: Workspace, old: str, new: str, changes: bool
) -> None:
    before = load(graph.root).stages[1].digest
    assert old in GRAPH
    after = load(write_graph(graph, GRAPH.replace(old, new)).root).stages[1].digest
    assert (before != after) is changes


@pytest.mark.seconds
def test_the_lock_gives_the_hash_of_every_output(graph: Workspace) -> None:
    prepare, pretrain, *_ = load(graph.root).stages
    with pytest.raises(DvcError, match="has no result of stage prepare; run it with `simclr run --select prepare`"):
        read_outs(graph.root, prepare)
    repro(graph.root, "prepare")
    repro(graph.root, "pretrain")
    assert set(read_outs(graph.root, pretrain)) == {out.path for out in pretrain.outs}
    record = read_outs(graph.root, prepare)["data/prepared"]
    lock = yaml.safe_load((graph.root / "dvc.lock").read_text())["stages"]["prepare"]["outs"][0]
    assert (record.md5, record.size, record.files) == (lock["md5"], 3, 1)


@pytest.mark.parametrize("text", ["outs: [", "", "outs: 3", "outs: []", "outs: [{path: raw}]"])
def test_a_damaged_dvc_file_is_named_in_one_line(workspace: Workspace, text: str) -> None:
    (workspace.root / "data").mkdir()
    (workspace.root / "data" / "raw.dvc").write_text(text)
    with pytest.raises(DvcError, match=r"raw\.dvc: cannot be read as what `dvc add` writes; .*git checkout`$"):
        read_tracked(workspace.root, "data/raw")


def occupy_cache(root: Path) -> None:
    (root / ".dvc" / "cache").write_text("not a folder")


def occupy_lock(root: Path) -> None:
    (root / ".dvc" / "tmp" / "lock").mkdir(parents=True)


@pytest.mark.parametrize(("occupy", "cause"), [(occupy_cache, "Not a directory"), (occupy_lock, "Is a directory")])
def test_what_dvc_does_not_foresee_is_one_line_too(
    graph: Workspace, occupy: Callable[[Path], None], cause: str
) -> None:
    occupy(graph.root)
    with pytest.raises(DvcError, match=f"^`dvc add data/raw` failed: .*{cause}"):
        track(graph.root, "data/raw")
    assert not find_unchanged(graph.root)


def test_tracking_names_a_dvc_at_work_on_the_same_files(graph: Workspace) -> None:
    other = os.getppid()
    entry = {"pid": other, "cmd": "dvc pull"}
    lock = graph.root / ".dvc" / "tmp" / "rwlock"
    lock.write_text(json.dumps({"read": {}, "write": {str(graph.raw): entry}}))
    with pytest.raises(BusyError, match=rf"busy with process {other} \(dvc pull\); .*`kill -INT {other}`$"):
        track(graph.root, "data/raw")


@pytest.mark.parametrize(("config", "names"), [(None, 2), ("[cache]\n    type = copy\n", 1)])
def test_what_is_tracked_is_on_disk_once_where_the_configuration_allows_links(
    workspace: Workspace, config: str | None, names: int
) -> None:
    if config:
        (workspace.root / ".dvc" / "config").write_text(config)
    batch = workspace.raw / "0001"
    batch.mkdir(parents=True)
    (batch / "a.tar").write_bytes(b"images")
    track(workspace.root, "data/raw")
    with opened(workspace.root) as objects:
        (stored,) = [objects.path(md5) for md5 in objects.objects() if not md5.endswith(".dir")]
    assert stored.read_bytes() == b"images"
    assert ((batch / "a.tar").stat().st_nlink, stored.stat().st_nlink) == (names, names)
    assert stored.samefile(batch / "a.tar") == (names == 2)
    assert raw_is_linked(workspace) == (names == 2)


def test_a_tracked_folder_has_the_hash_in_its_dvc_file(workspace: Workspace) -> None:
    (workspace.root / "data").mkdir()
    (workspace.root / "data" / "raw.dvc").write_text("outs: [{md5: abc.dir, size: 7, nfiles: 2, path: raw}]\n")
    record = read_tracked(workspace.root, "data/raw")
    assert (record.md5, record.size, record.files) == ("abc.dir", 7, 2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stages: [", "YAML file structure is corrupted"),
        ("stages: {a: {cmd: ls, oust: [x]}}", "oust"),
        ("stages: {a: {cmd: 'ls ${nothing}'}}", "Could not find 'nothing'"),
        ("stages: {a: {cmd: ls, outs: [x]}, b: {cmd: ls, outs: [x]}}", "output 'x' is specified in"),
        (
            "stages: {a: {cmd: ls, deps: [y], outs: [x]}, b: {cmd: ls, deps: [x], outs: [y]}}",
            "both a dependency and an",
        ),
    ],
)
def test_a_fault_in_dvc_yaml_is_named_in_one_line(workspace: Workspace, text: str, fault: str) -> None:
    with pytest.raises(DvcError, match=fault) as raised:
        load(write_graph(workspace, text).root)
    assert str(workspace.root / "dvc.yaml") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stages: [", "YAML file structure is corrupted"),
        ("stages: [a]", r"a dictionary for dictionary value @ data\['stages'\]"),
        ("stages: {a: 3}", "expected a dictionary"),
        ("stages: {a: null}", "expected a dictionary"),
        ("stages: {a: {cmd: ls, params: 3}}", "expected a list"),
        ("<<<<<<< HEAD", "expected a dictionary"),
    ],
)
def test_the_definitions_of_a_faulty_graph_are_refused_in_the_words_of_dvc(
    workspace: Workspace, text: str, fault: str
) -> None:
    with pytest.raises(DvcError, match=fault) as raised:
        read_definitions(write_graph(workspace, text).root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "stages:", "artifacts: {}"])
def test_a_graph_may_have_no_stage(workspace: Workspace, text: str) -> None:
    assert read_definitions(write_graph(workspace, text).root) == {}


def test_a_folder_without_dvc_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(DvcError, match="not inside of a DVC repository"):
        load(tmp_path)


@pytest.mark.seconds
def test_a_workspace_that_lost_its_git_repository_says_what_to_do(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / ".git")

    def asks_the_cache() -> None:
        with opened(workspace.root):
            pass

    for asks in (lambda: load(workspace.root), asks_the_cache, lambda: changed_stages(workspace.root)):
        with pytest.raises(DvcError) as raised:
            asks()
        assert str(raised.value).startswith(f"{workspace.root}: is not a Git repository, and DVC works only in one; ")
        assert "`git init && git add --all && git commit`" in str(raised.value)


def test_an_unknown_stage_is_refused_with_the_list_of_stages(graph: Workspace) -> None:
    with pytest.raises(DvcError, match=r"no stage .train.; choose from: prepare, pretrain"):
        load(graph.root).select("train")


def test_a_lock_that_a_killed_process_left_is_passed_over_also_where_nothing_can_be_printed(graph: Workspace) -> None:
    """DVC warns of it, by a handler that keeps the output of the moment in which DVC was imported."""
    load(graph.root)
    (closed := LoggerHandler(io.StringIO())).stream.close()
    logging.getLogger("dvc").addHandler(closed)
    held = {str(graph.root / "data" / "prepared"): {"pid": 2**22 + 1, "cmd": "dvc repro"}}
    rwlock = graph.root / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(json.dumps({"read": {}, "write": held}), encoding="utf-8")
    assert find_unchanged(graph.root) == frozenset()
    assert json.loads(rwlock.read_text(encoding="utf-8"))["write"] == {}
