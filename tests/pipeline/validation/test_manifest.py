import hashlib
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.validation import manifest
from pipeline.validation.probe.facts import Facts
from pipeline.validation.probe.probe import PROBE_VERSION, probe
from pipeline.validation.tables import ACCEPTED, FACTS, MANIFEST, QUARANTINE
from pipeline.validation.verdict.verdict import Policy, judge
from tests.pipeline.validation.corpus.contents import POLICY, File, crowd, image, seen, tables
from tests.pipeline.validation.corpus.corpus import encoded, picture
from tests.pipeline.validation.corpus.manifests import build

ROOT = Path(__file__).parents[3]


def built(files: list[File], contents: list[Facts], **policy: object) -> pl.DataFrame:
    known, facts = tables(files, contents)
    return build(judge(known, facts, Policy(**(POLICY | policy)), allowed=[], denied={}), facts)


def five() -> pl.DataFrame:
    """Five files: two images in two batches, one of them twice, one that is not an image, one in other colors."""
    files, contents = [], {}
    for path, data, batch in (
        ("b.png", encoded(picture(1), "PNG"), "0002"),
        ("a.png", encoded(picture(2, 40, 10), "PNG"), "0001"),
        ("c.png", encoded(picture(2, 40, 10), "PNG"), "0001"),
        ("d.png", b"", "0001"),
        ("e.png", encoded(picture(3).convert("CMYK"), "JPEG"), "0001"),
    ):
        facts = Facts(**probe(data))
        contents[facts.sha256] = facts
        files.append(seen(path, facts.sha256, batch=batch))
    return built(files, list(contents.values()))


def written(folder: Path, table: pl.DataFrame) -> dict[str, bytes]:
    folder.mkdir()
    manifest.write(folder, [table])
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_one_row_per_file_in_order() -> None:
    table = five()
    assert table.schema == MANIFEST
    assert table["path"].to_list() == ["a.png", "c.png", "d.png", "e.png", "b.png"]
    assert table["file_id"].n_unique() == 5
    rows = {row["path"]: row for row in table.to_dicts()}
    assert all(row["file_id"].startswith(row["sha256"][:16]) for row in rows.values())
    assert (rows["a.png"]["short_side"], rows["a.png"]["aspect"]) == (10, 4.0)
    assert (rows["d.png"]["short_side"], rows["d.png"]["aspect"], rows["d.png"]["decodes"]) == (None, None, False)
    assert [rows[name]["verdict"] for name in ("a.png", "d.png", "e.png")] == ["accept", "quarantine", "convert"]


def test_everything_the_probe_measured_is_in_the_row() -> None:
    facts = Facts(**probe(encoded(picture(1, 40, 30), "JPEG")))
    [row] = built([seen("a.jpg", facts.sha256)], [facts]).to_dicts()
    assert {name: row[name] for name in FACTS if name in row} | {"reason": None, "message": ""} == vars(facts)


def test_file_ids_name_the_place_of_a_file() -> None:
    files = [
        seen("a/ü\n.png", "0" * 64),
        seen("a/ü\n.png", "0" * 64, batch="0002"),
        seen("a/ü\n.png", "0" * 64, label="cat"),
        seen("a/ü\n.png", "0" * 64, split="test"),
        seen("b.png", "0" * 64),
        seen("b.png", "1" * 64),
    ]
    table = built(files, [image("0" * 64), image("1" * 64, "q")])
    assert table["file_id"].n_unique() == len(files)
    assert table.equals(built(files[::-1], [image("1" * 64, "q"), image("0" * 64)]))
    assert table.rows() == sorted(table.rows(), key=lambda row: (row[6], row[1], row[0]))
    for row in table.to_dicts():
        identity = "\0".join([row["ingest_batch"], row["path"], row["split"], row["label"] or ""])
        assert row["file_id"] == f"{row['sha256'][:16]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


@pytest.mark.parametrize(
    ("width", "height", "sides"),
    [(30, 60, (30, 2.0)), (0, 9, (None, None)), (None, None, (None, None))],
)
def test_sides(width: int | None, height: int | None, sides: tuple[int | None, float | None]) -> None:
    facts = Facts("0", 9, "png", False, "corrupt", "damaged", width=width, height=height)
    [row] = built([seen("a.png")], [facts]).to_dicts()
    assert (row["short_side"], row["aspect"]) == sides


def test_accepted_and_quarantined_share_the_files_between_them(tmp_path: Path) -> None:
    table = five()
    written(tmp_path / "one", table)
    used, refused = (
        pq.read_table(tmp_path / "one" / f"{name}.parquet").to_pylist() for name in ("accepted", "quarantine")
    )
    assert [row["path"] for row in refused] == ["c.png", "d.png"]
    assert refused[1]["reasons"] == ["empty_file"]
    assert refused[0]["copy_of"] == refused[0]["sha256"]
    assert sorted(row["path"] for row in used + refused) == sorted(table["path"])
    assert used == sorted(used, key=lambda row: (row["batch"], row["sha256"]))
    assert (tuple(used[0]), tuple(refused[0])) == (ACCEPTED, QUARANTINE)


@pytest.mark.parametrize("seed", range(5))
def test_the_quarantine_is_complete_and_every_content_is_accepted_once(tmp_path: Path, seed: int) -> None:
    table = built(*crowd(seed, files=2000, pictures=300))
    written(tmp_path / "one", table)
    used, refused = (pl.read_parquet(tmp_path / "one" / f"{name}.parquet") for name in ("accepted", "quarantine"))
    assert refused.height == table.filter(table["reasons"].list.len() > 0).height > 1000
    assert used.height + refused.height == 2000
    assert used["sha256"].is_unique().all()
    assert used.equals(used.sort("batch", "sha256"))


def test_written_rows_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PART_ROWS", 7)
    table = built(*crowd(0, files=100, batches=12))
    parts = [name for name in written(tmp_path / "one", table) if name.startswith("manifest/")]
    assert parts[:3] == ["manifest/0001-0000.parquet", "manifest/0001-0001.parquet", "manifest/0002-0000.parquet"]
    assert max(pq.read_metadata(tmp_path / "one" / part).num_rows for part in parts) == 7
    assert manifest.read(tmp_path / "one").equals(table)
    some = ["reasons", "path"]
    assert manifest.read(tmp_path / "one", some).equals(table.select(some))
    versions = pq.read_metadata(tmp_path / "one" / parts[0]).metadata
    assert versions[b"probe_version"] == str(PROBE_VERSION).encode()


def test_batches_keep_user_given_names(tmp_path: Path) -> None:
    names = ["a", "a-", "a-0000", "a-0000-", "[a]*", "<b>&", "ü \n", "0002-<b>"]
    table = built([seen("a.png", name, batch=name) for name in names], [image(name, name) for name in names])
    written(tmp_path / "one", table)
    assert manifest.read(tmp_path / "one").equals(table)


def test_a_new_batch_leaves_the_parts_of_earlier_ones_as_they_are(tmp_path: Path) -> None:
    files, contents = crowd(1, files=300, pictures=60, batches=3)
    new, others = crowd(2, files=50, pictures=20)
    new = [file | {"ingest_batch": "0004", "label": None, "split": "train"} for file in new]
    others = [Facts(**vars(one) | {"pixel_hash": f"new {one.pixel_hash}"}) for one in others]
    before = written(tmp_path / "before", built(files, contents))
    after = written(tmp_path / "after", built(files + new, contents + others))
    earlier = {name: data for name, data in before.items() if name.startswith("manifest/")}
    assert len(earlier) == 3
    assert {name: after[name] for name in earlier} == earlier
    assert "manifest/0004-0000.parquet" in after


def test_the_order_of_the_files_changes_no_byte(tmp_path: Path) -> None:
    files, contents = crowd(3, files=500, pictures=90)
    one = written(tmp_path / "one", built(files, contents))
    assert one == written(tmp_path / "two", built(files[::-1], contents[::-1]))


CROWD = """
import sys
from pathlib import Path
from tests.pipeline.validation.corpus.contents import crowd
from tests.pipeline.validation.test_manifest import built, written
files, contents = crowd(4, files=8000, pictures=2000, batches=5)
written(Path(sys.argv[1]), built(files, contents, quarantine_near_copies=True))
"""


@pytest.mark.slow
def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    found = []
    for threads in ("1", "2", "7"):
        folder = tmp_path / threads
        environment = os.environ | {"POLARS_MAX_THREADS": threads}
        subprocess.run([sys.executable, "-c", CROWD, folder], cwd=ROOT, env=environment, check=True, timeout=60)
        found.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.parquet")})
    assert len(found[0]) == 7
    assert found[0] == found[1] == found[2]


def test_a_set_without_one_accepted_file(tmp_path: Path) -> None:
    empty = five().filter(pl.col("path") == "d.png")
    written(tmp_path / "one", empty)
    assert pl.read_parquet(tmp_path / "one" / "accepted.parquet").is_empty()
    assert manifest.read(tmp_path / "one").equals(empty)


def test_a_part_of_an_earlier_version_without_a_column_is_read_with_nulls(tmp_path: Path) -> None:
    files, contents = crowd(3, files=50, pictures=9)
    table = built(files, contents)
    written(tmp_path / "one", table)
    oldest = min((tmp_path / "one" / "manifest").iterdir())
    pl.read_parquet(oldest).drop("sketch").write_parquet(oldest)
    found = manifest.read(tmp_path / "one")
    assert found.drop("sketch").equals(table.drop("sketch"))
    assert 0 < found["sketch"].null_count() < table.height
    assert manifest.read(tmp_path / "one", ["sketch", "path"]).columns == ["sketch", "path"]


def test_a_set_without_files(tmp_path: Path) -> None:
    nothing = built([], [])
    written(tmp_path / "one", nothing)
    assert nothing.schema == manifest.read(tmp_path / "one").schema == MANIFEST
    assert manifest.read(tmp_path / "one", ["path"]).columns == ["path"]
