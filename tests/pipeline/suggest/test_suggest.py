"""The files of `simclr suggest`: a table that ingest reads when it is filled in, pictures, paths, and what is next."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import simclr
from pipeline.errors import ValidationError
from pipeline.ingest.ingest import ingest
from pipeline.suggest import suggest as module
from pipeline.suggest.suggest import suggest
from pipeline.workspace import Workspace
from simclr_core.data.shard_writing import write_shards
from simclr_core.data.shards import Sample, ShardedImages
from simclr_core.suggest import By
from simclr_core.suggest.choose import Suggestion, Suggestions
from tests.conftest import draw, encode
from tests.pipeline.conftest import put, read_files

PATHS = ("unlabeled/a, with a comma.png", 'unlabeled/"quoted".png', "unlabeled/käfer.png")


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    """Three unlabeled images and one with a label, ingested, and prepared as far as this needs."""
    paths = (*PATHS, "labeled/cat/1.png")
    for number, path in enumerate(paths):
        put(workspace, path, encode(draw(number, number)))
    ingest(workspace)
    known = {path: sha256 for sha256, path, *_ in read_files(workspace.raw / "0001")}
    samples = [Sample(known[path], "png", (workspace.inbox / path).read_bytes()) for path in paths]
    write_shards(workspace.prepared / "train", [samples], max_bytes=2**20)
    workspace.manifest.mkdir()
    table = {"sha256": [known[path] for path in paths], "path": list(paths)}
    pl.DataFrame(table).write_parquet(workspace.manifest / "accepted.parquet")
    return workspace


def choose_first(
    patch: pytest.MonkeyPatch, workspace: Workspace, by: By = "typical", multi_label: bool = False
) -> dict[str, int]:
    """Those without a label, or for mistakes the one with a label; returns where they are in the training split."""
    images = ShardedImages(workspace.prepared / "train")
    paths = {row["sha256"]: row["path"] for row in pl.read_parquet(workspace.manifest / "accepted.parquet").to_dicts()}
    positions = {paths[images.key(one)]: one for one in range(len(images))}
    chosen = ("labeled/cat/1.png",) if by == "mistakes" else PATHS
    label = "cat" if by == "mistakes" else ""
    found = tuple(Suggestion(images.key(positions[path]), positions[path], label, "dog", "=why") for path in chosen)
    made = Suggestions(by, found, 3, 1, multi_label, "there are no more")
    patch.setattr(module, "choose", lambda *_: made)
    return positions


def rows_of(workspace: Workspace, by: str = "typical") -> list[Mapping[str, str]]:
    with (workspace.reports / f"suggest-{by}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fill_in(workspace: Workspace, labels: Mapping[str, str], by: str = "typical", folder: str = "suggested") -> Path:
    """As a person does: the label of some rows, in the place that the command names."""
    rows = [{**row, "label": labels.get(row["path"], row["label"])} for row in rows_of(workspace, by)]
    target = workspace.inbox / folder / "labels.csv"
    target.parent.mkdir()
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


def test_the_table_filled_in_gives_labels(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    said = suggest(prepared, "typical", 5)
    assert [row["path"] for row in rows_of(prepared)] == list(PATHS)
    assert {row["label"] for row in rows_of(prepared)} == {""}
    assert "`mkdir -p inbox/suggested && cp reports/suggest-typical.csv inbox/suggested/labels.csv`" in said
    fill_in(prepared, {PATHS[0]: "cat", PATHS[2]: "beetle"})
    assert ingest(prepared).new_labels == 2
    assert sorted((path, label) for _, path, _, label in read_files(prepared.raw / "0002")) == sorted(
        [(PATHS[0], "cat"), (PATHS[2], "beetle")]
    )


def test_the_table_as_it_is_changes_nothing(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    suggest(prepared, "typical", 5)
    fill_in(prepared, {})
    assert ingest(prepared).batch is None


def test_a_table_that_was_filled_in_is_never_overwritten(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    assert "kept" not in suggest(prepared, "typical", 5) + suggest(prepared, "typical", 5)
    path = prepared.reports / "suggest-typical.csv"
    for number in (1, 2):
        edited = path.read_text().replace(",,dog,", f",cat {number},dog,")
        path.write_text(edited)
        assert suggest(prepared, "typical", 5).startswith(f"kept      reports/suggest-typical-{number}.csv, the table")
        assert (prepared.reports / f"suggest-typical-{number}.csv").read_text() == edited
        assert f"/suggest-typical-{number}.csv" in (prepared.reports / ".gitignore").read_text().splitlines()
    assert {row["label"] for row in rows_of(prepared)} == {""}
    (prepared.scratch / "suggest-typical.sha256").unlink()
    assert "kept" in suggest(prepared, "typical", 5), "it is not known who wrote it"


def test_the_labels_of_an_earlier_table_stay_in_the_inbox(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    suggest(prepared, "typical", 5)
    table = fill_in(prepared, {PATHS[0]: "cat"})
    assert "write the labels into inbox/suggested/labels.csv, which has rows" in suggest(prepared, "typical", 5)
    table.write_text("path,label\nlabeled/cat/1.png,cat\n")
    said = suggest(prepared, "typical", 5)
    assert "`mkdir -p inbox/suggested-2 && cp reports/suggest-typical.csv inbox/suggested-2/labels.csv`" in said
    fill_in(prepared, {PATHS[0]: "cat", PATHS[2]: "beetle"}, folder="suggested-2")
    ingest(prepared)
    assert sorted(label for *_, label in read_files(prepared.raw / "0002")) == ["beetle", "cat"]


def test_a_corrected_label_is_taken(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared, "mistakes")
    said = suggest(prepared, "mistakes", 5)
    assert "in reports/suggest-mistakes.csv correct the column label where it is wrong" in said
    [row] = rows_of(prepared, "mistakes")
    assert (row["label"], row["guess"]) == ("cat", "dog")
    table = fill_in(prepared, {}, "mistakes")
    assert ingest(prepared).batch is None
    table.write_text(table.read_text().replace(",cat,", ",dog,"))
    ingest(prepared)
    assert [label for *_, label in read_files(prepared.raw / "0002")] == ["dog"]


def test_a_table_that_names_the_images_already_is_the_place(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingest refuses a file that two tables name."""
    (prepared.inbox / "labels.csv").write_text("path,label\nunlabeled/käfer.png,\n")
    (prepared.inbox / "other").mkdir()
    (prepared.inbox / "other" / "labels.csv").write_text("not,a,table\n")
    choose_first(monkeypatch, prepared)
    assert "write the labels into inbox/labels.csv, which has rows" in suggest(prepared, "typical", 5)


def test_images_from_another_source(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    prepared.inbox.rename(prepared.root / "elsewhere")
    assert "into the folder that these images were ingested from" in suggest(prepared, "typical", 5)


def test_what_is_said_and_shown(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    lines = suggest(prepared, "typical", 5).splitlines()
    assert lines[0].startswith("3 of 3 unlabeled training images, by typical: the most typical image")
    assert lines[1] == "fewer than asked for: there are no more"
    assert lines[-1].endswith("then `simclr run`")
    assert (prepared.reports / "suggest-typical.txt").read_text() == "".join(f"{path}\n" for path in PATHS)
    with Image.open(prepared.reports / "suggest-typical.png") as sheet:
        assert np.asarray(sheet.convert("RGB")).std() > 10
    ignored = (prepared.reports / ".gitignore").read_text().splitlines()
    assert {f"/suggest-typical.{suffix}" for suffix in ("csv", "png", "txt")} <= set(ignored)
    suggest(prepared, "typical", 5)
    assert (prepared.reports / ".gitignore").read_text().splitlines() == ignored


def test_of_several_labels_the_column_is_labels(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared, multi_label=True)
    assert "fill in the column labels" in suggest(prepared, "typical", 5)
    assert list(rows_of(prepared)[0]) == ["path", "labels", "guess", "why"]


def test_images_that_the_manifest_does_not_list(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared)
    (prepared.manifest / "accepted.parquet").unlink()
    with pytest.raises(ValidationError, match="data/manifest does not list"):
        suggest(prepared, "typical", 5)


def test_the_command_says_what_was_chosen(prepared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_first(monkeypatch, prepared, "mistakes")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")  # as a user may: the command sets it for the process otherwise
    asked = ["--workspace", str(prepared.root), "suggest", "--by", "mistakes", "--budget", "5"]
    result = CliRunner().invoke(simclr, asked)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("1 of 3 labels, by mistakes: labels that probes which have not seen them")
    assert CliRunner().invoke(simclr, ["suggest", "--budget", "0"]).exit_code == 2
    assert CliRunner().invoke(simclr, ["suggest", "--by", "random"]).exit_code == 2
