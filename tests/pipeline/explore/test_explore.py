"""The stage: a row for each ingested file, what is said of it, and its picture."""

import io
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import deploy
from deploy.artifact import verify
from deploy.errors import CorruptArtifactError
from deploy.explore.sprites import ACROSS, ON_SHEET, SIDE, sheet, sheet_name, write_sprites
from deploy.search.index import Index
from pipeline.errors import ValidationError
from pipeline.explore.explore import choose, folder_of, run
from pipeline.explore.table import IMAGES
from pipeline.workspace import Workspace
from tests.deploy.conftest import make_bundle
from tests.pipeline.explore.conftest import COLORS, color, files, make, put_champion


def read(workspace: Workspace) -> pl.DataFrame:
    return pl.read_parquet(folder_of(workspace) / "images.parquet")


def test_every_file_has_a_row_with_what_is_said_of_it(explored: Workspace) -> None:
    found = read(explored)
    given = files()
    assert found.schema == IMAGES
    assert sorted(found["path"]) == sorted(one["path"] for one in given)
    rows = {row["path"]: row for row in found.iter_rows(named=True)}
    for one in given:
        row = rows[one["path"]]
        assert (row["sha256"], row["split"], row["label"]) == (one["sha256"], one["split"], one["label"])
        assert (row["state"] == "quarantined") == bool(one["reasons"])
        if not one["reasons"]:
            truth = next(name for name in COLORS if color_of(one["data"]) == name)
            assert row["prediction"] == truth
            assert row["confidence"] > 0.9
            assert (row["label_confidence"] is None) == (one["label"] is None)
            assert None not in (row["x"], row["y"], row["novelty"], row["row"])
            others = [rows[other["path"]] for other in given if other["sha256"] in row["neighbors"]]
            assert len(others) == 5
            assert {(other["split"], other["label"] is None) for other in others} == {("train", False)}
            assert row["sha256"] not in row["neighbors"]
            assert row["neighbor_cosines"] == sorted(row["neighbor_cosines"], reverse=True)
            assert next(other["label"] for other in others if other["sha256"] == row["neighbors"][0]) == truth
    wrong = rows["test/red/really blue.png"]
    assert (wrong["label"], wrong["prediction"]) == ("red", "blue")
    assert wrong["label_confidence"] < 0.1
    assert wrong["champion"] == "blue"
    assert rows["test/red/0.png"]["champion"] == "green"
    assert rows["labeled/red/0.png"]["champion"] is None


def color_of(data: bytes) -> str:
    mean = np.asarray(Image.open(io.BytesIO(data))).mean(axis=(0, 1))
    return ("red", "green", "blue")[int(mean.argmax())]


def test_a_copy_is_where_its_original_is_and_what_has_no_picture_is_nowhere(explored: Workspace) -> None:
    rows = {row["path"]: row for row in read(explored).iter_rows(named=True)}
    copy, original, damaged = (rows[f"unlabeled/{name}"] for name in ("copy.png", "0001/00.png", "cut off.jpg"))
    assert [copy[name] for name in ("x", "y", "sprite", "cell")] == [
        original[name] for name in ("x", "y", "sprite", "cell")
    ]
    assert (copy["reason"], copy["row"], copy["prediction"]) == ("exact_duplicate", None, None)
    assert [damaged[name] for name in ("reason", "x", "sprite", "novelty", "prediction")] == ["truncated", *[None] * 4]
    assert rows["unlabeled/0001/01.png"]["near_group"] == rows["unlabeled/0001/04.png"]["near_group"] is not None


def test_a_row_leads_to_its_vector_and_its_picture(explored: Workspace) -> None:
    folder = folder_of(explored)
    verify(folder)
    encoder = deploy.load(explored.root / "models" / "bundle")
    index = Index.open(folder / "index", encoder)
    by_hash = {one["sha256"]: one["data"] for one in files()}
    for row in read(explored).filter(pl.col("row").is_not_null()).head(20).iter_rows(named=True):
        assert index.ids[row["row"]] == row["sha256"]
        data = by_hash[row["sha256"]]
        np.testing.assert_allclose(index.vectors[row["row"]], encoder.embed(data).vectors[0], atol=2e-3)
        with Image.open(folder / "sprites" / sheet_name(row["sprite"])) as sheet_of_row:
            left, top = row["cell"] % ACROSS * SIDE, row["cell"] // ACROSS * SIDE
            cut = sheet_of_row.crop((left + 16, top + 16, left + 48, top + 48))
            seen = np.asarray(cut.convert("RGB")).mean(axis=(0, 1))
        np.testing.assert_allclose(seen, np.asarray(Image.open(io.BytesIO(data))).mean(axis=(0, 1)), atol=12)


def test_the_same_inputs_give_the_same_bytes(explored: Workspace) -> None:
    def contents() -> dict[str, bytes]:
        folder = folder_of(explored)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = contents()
    run(explored)
    assert contents() == before


def test_answers_out_of_fold_take_the_place_of_those_of_a_classifier_that_knows_the_label(explored: Workspace) -> None:
    known = next(one for one in files() if one["path"] == "labeled/red/0.png")
    columns = {"sha256": [known["sha256"]], "split": ["out_of_fold"], "probe": ["blue"]}
    numbers = {"probe_answer": [0.75], "probe_label": [0.2]}
    pq.write_table(pa.table(columns | numbers), explored.reports / "predictions.parquet")
    run(explored)
    rows = {row["path"]: row for row in read(explored).iter_rows(named=True)}
    found = rows["labeled/red/0.png"]
    assert (found["prediction"], found["confidence"], round(found["label_confidence"], 4)) == ("blue", 0.75, 0.2)
    assert rows["labeled/red/3.png"]["prediction"] == "red"


def test_without_a_classifier_and_a_release_nothing_is_predicted(workspace: Workspace) -> None:
    make(workspace, files()[:12], make_bundle(labels=False))
    run(workspace)
    found = read(workspace)
    assert found.select("prediction", "confidence", "champion").null_count().row(0) == (12, 12, 12)
    assert found["x"].null_count() == 0


@pytest.mark.parametrize("count", [0, 3])
def test_few_images_are_listed_without_a_map(workspace: Workspace, count: int) -> None:
    make(workspace, files()[:count])
    run(workspace)
    assert (len(read(workspace)), read(workspace)["x"].null_count()) == (count, count)
    assert read(workspace)["row"].null_count() == 0


def test_images_of_another_manifest_are_refused(explored: Workspace) -> None:
    make(explored, files()[:5])
    kept = explored.prepared.rename(explored.root / "kept")
    make(explored, files())
    shutil.rmtree(explored.prepared)
    kept.rename(explored.prepared)
    with pytest.raises(ValidationError, match="not of this data/manifest"):
        run(explored)


def test_a_damaged_champion_is_refused_and_the_old_map_stays(explored: Workspace) -> None:
    put_champion(explored, make_bundle())
    model = explored.root / "models" / "champion" / "bundle" / "encoder.fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    before = (folder_of(explored) / "images.parquet").read_bytes()
    with pytest.raises(CorruptArtifactError):
        run(explored)
    assert (folder_of(explored) / "images.parquet").read_bytes() == before


def test_of_too_many_images_the_newest_are_shown() -> None:
    accepted = pl.DataFrame({"sha256": [str(number) for number in range(20)]})
    assert choose(accepted, landmarks=4, most=7)["sha256"].to_list() == ["0", "1", "2", "3", "17", "18", "19"]
    assert choose(accepted, landmarks=4, most=100).height == 20


def test_a_new_batch_fills_the_last_sheet_and_leaves_the_others(tmp_path: Path) -> None:
    pictures = [np.asarray(Image.open(io.BytesIO(color("red", seed))).resize((9, 7))) for seed in range(ON_SHEET + 20)]
    write_sprites(tmp_path / "old", pictures[: ON_SHEET + 3])
    write_sprites(tmp_path / "new", pictures)
    old, new = ([(tmp_path / name / sheet_name(number)).read_bytes() for number in range(2)] for name in ("old", "new"))
    assert old[0] == new[0] != new[1]
    assert old[1] != new[1]
    with Image.open(io.BytesIO(old[1])) as last:
        assert last.size == (ACROSS * SIDE, SIDE)


def test_thumbnails_show_whole_images_at_full_depth_too() -> None:
    deep = np.zeros((40, 80, 2), np.uint16)
    deep[:, 40:] = 60_000
    with Image.open(io.BytesIO(sheet([deep]))) as drawn:
        row = np.asarray(drawn.convert("L"))[SIDE // 2, :SIDE]
    assert row[4] < 20
    assert row[SIDE - 4] > 235
