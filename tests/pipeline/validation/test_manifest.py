import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.validation.facts import Facts
from pipeline.validation.manifest import SCHEMA, accepted, manifest, read_facts, write_tables
from pipeline.validation.probe import probe
from pipeline.validation.verdict import File, Verdict
from tests.pipeline.validation.corpus import Kind, bad_kinds, encoded, good_kinds, picture


def verdicts() -> list[Verdict]:
    """Five files: two images in two batches, one of them twice, and one that is no image."""
    found = []
    for path, data, batch, reasons in (
        ("b.png", encoded(picture(1), "PNG"), "0002", ()),
        ("a.png", encoded(picture(2, 40, 10), "PNG"), "0001", ()),
        ("c.png", encoded(picture(2, 40, 10), "PNG"), "0001", ("exact_duplicate",)),
        ("d.png", b"", "0001", ("empty_file",)),
        ("e.png", encoded(picture(3).convert("CMYK"), "JPEG"), "0001", ()),
    ):
        facts = Facts(**probe(data))
        found.append(
            Verdict(File(path, "train", None, facts.sha256, batch, batch), facts, reasons, (), "".join(reasons))
        )
    return found


def test_one_row_per_file_in_order() -> None:
    table = manifest(verdicts())
    assert table.schema == SCHEMA
    table.validate(full=True)
    assert table["path"].to_pylist() == ["a.png", "c.png", "d.png", "e.png", "b.png"]
    assert len(set(table["file_id"].to_pylist())) == 5
    rows = {row["path"]: row for row in table.to_pylist()}
    assert all(row["file_id"].startswith(row["sha256"][:16]) for row in rows.values())
    assert (rows["a.png"]["short_side"], rows["a.png"]["aspect"]) == (10, 4.0)
    assert (rows["d.png"]["short_side"], rows["d.png"]["aspect"], rows["d.png"]["decodes"]) == (None, None, False)
    assert [rows[name]["verdict"] for name in ("a.png", "d.png", "e.png")] == ["accept", "quarantine", "convert"]


def test_accepted_and_quarantined_share_the_files_between_them(tmp_path: Path) -> None:
    table = manifest(verdicts())
    write_tables(tmp_path, table)
    used, refused = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("accepted", "quarantine"))
    assert [row["path"] for row in refused] == ["c.png", "d.png"]
    assert refused[1]["reasons"] == ["empty_file"]
    assert sorted(row["path"] for row in used + refused) == sorted(table["path"].to_pylist())
    assert used == sorted(used, key=lambda row: (row["batch"], row["sha256"]))
    assert set(used[0]) == {"sha256", "batch", "path", "split", "label", "operations", "width", "height"}
    assert pq.read_table(tmp_path / "manifest.parquet").equals(table)


def test_the_order_of_the_verdicts_changes_no_byte(tmp_path: Path) -> None:
    written = []
    for name, found in (("one", verdicts()), ("two", verdicts()[::-1])):
        (tmp_path / name).mkdir()
        write_tables(tmp_path / name, manifest(found))
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize("kind", good_kinds() + bad_kinds(), ids=lambda kind: kind.name)
def test_what_the_probe_says_is_believed(kind: Kind) -> None:
    answer = json.loads(json.dumps(probe(kind.data)))
    assert read_facts(answer) == Facts(**answer)


@pytest.mark.parametrize(
    "lie",
    [
        {"unknown": 1},
        {"sha256": None},
        {"message": "\ud800"},
        {"container": 3},
        {"width": "64"},
        {"width": 1 << 31},
        {"size_bytes": 1 << 64},
        {"luma_p01": "6"},
        {"luma_mean": None},
        {"luma_mean": float("nan")},
        {"pixel_hash": None},
        {"operations": None},
        {"operations": [1]},
        {"decodes": 1},
        {"decodes": False},
        {"reason": "corrupt"},
        {"decodes": False, "reason": "because"},
        {"decodes": False, "reason": []},
    ],
    ids=str,
)
def test_what_no_manifest_can_hold_is_refused(lie: dict[str, object]) -> None:
    answer = probe(encoded(picture(1), "PNG"))
    with pytest.raises(ValueError):  # noqa: PT011  # whatever its text, the caller blames the file
        read_facts(answer | lie)


@pytest.mark.parametrize("answer", [None, 3, "text", [], {}, [1], {1: 2}], ids=str)
def test_what_is_no_record_is_refused(answer: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_facts(answer)


def test_a_set_without_one_accepted_file() -> None:
    empty = manifest(verdicts()[3:4])
    assert accepted(empty).num_rows == 0
    assert manifest([]).num_rows == 0
