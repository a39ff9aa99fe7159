import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from pipeline.validation.probe import facts_cache
from pipeline.validation.probe.facts import Facts
from pipeline.validation.probe.facts_cache import CACHED, append, forget, place, read, tidy
from pipeline.validation.probe.probe import probe
from pipeline.validation.probe.scan import Limits
from tests.pipeline.validation.corpus.corpus import picture
from tests.pipeline.validation.corpus.encodings import encoded

FULL = probe(encoded(picture(1), "PNG"))


def rows(*names: str, **values: object) -> pl.DataFrame:
    """One row for each name, its SHA-256; all else as of an image."""
    facts = [(*(FULL | {"sha256": name, **values}).values(), "0001/a.tar:1") for name in names]
    return pl.DataFrame(facts, schema=CACHED, orient="row")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return place(tmp_path, {"max_megabytes": 50.0, "max_megapixels": 80.0})


def names(folder: Path) -> list[str]:
    return sorted(read(folder)["sha256"])


def test_stored_facts_are_read_back_in_every_column(folder: Path) -> None:
    assert read(folder).equals(pl.DataFrame(schema=CACHED))
    facts = Facts("b", 3, "png", False, "corrupt", "日本語", stream_fault="x", trailing_bytes=2**40)
    other = pl.DataFrame([(*vars(facts).values(), "")], schema=CACHED, orient="row")
    append(folder, rows("a", phash=2**64 - 1))
    append(folder, other)
    assert read(folder).sort("sha256").equals(pl.concat([rows("a", phash=2**64 - 1), other]))


def test_the_key_covers_everything_that_changes_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(50, 80), (50.5, 80), (50, 80.5), (50, 80, "black")]
    folders = {place(tmp_path, Limits(one, two, 0, 0, *rest).probed) for one, two, *rest in limits}
    given = Limits(50.0, 80.0, 0, 0, "white").probed
    assert place(tmp_path, given) in folders
    monkeypatch.setattr(facts_cache, "PROBE_VERSION", -1)
    folders.add(place(tmp_path, given))
    for package in ("pillow", "simplejpeg", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(facts_cache, "version", lambda name, changed=package: "9" if name == changed else "1")
            folders.add(place(tmp_path, given))
    assert len(folders) == 8


def test_a_new_way_to_read_channels_probes_only_images_with_channels_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Limits(50.0, 80.0, 0, 0, "white").probed
    given = (plain, plain | {"channels": 5})
    before = [place(tmp_path, one) for one in given]
    monkeypatch.setattr(facts_cache, "FULL_DEPTH_VERSION", -1)
    after = [place(tmp_path, one) for one in given]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_results_that_may_be_accidental_are_not_stored(folder: Path) -> None:
    for reason in ("worker_crash", "timeout", "io_error"):
        append(folder, rows(reason, decodes=False, reason=reason))
    assert not folder.exists()
    append(folder, pl.concat([rows("a"), rows("b", decodes=False, reason="timeout"), rows("c", reason="bomb")]))
    assert names(folder) == ["a", "c"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_part_is_dropped_with_a_warning(
    folder: Path, damage: str, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    append(folder, rows(*(f"a{number}" for number in range(100))))
    [part] = folder.glob("*.parquet")
    append(folder, rows("b"))
    data = part.read_bytes()
    position = int(share * len(data))
    flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
    part.write_bytes(flipped if damage == "flip" else data[:position])
    assert names(folder) == ["b"]
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert part.name in warning
    assert names(folder) == ["b"]
    assert capsys.readouterr().err == ""


def test_a_foreign_file_under_the_right_name_is_dropped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(folder, rows("a"))
    for data in (b"", b"no parquet", b"PAR1" + bytes(100) + b"PAR1"):
        (folder / f"{facts_cache._digest(data)}.parquet").write_bytes(data)
    row = rows("b")
    fewer, another_type, another_order = (
        row.drop("phash"),
        row.cast({"decodes": pl.Int8}),
        row.select(row.columns[::-1]),
    )
    for foreign in (fewer, another_type, another_order):
        facts_cache._write(folder, foreign)
    (folder / "folder.parquet").mkdir()
    assert names(folder) == ["a"]
    assert len(capsys.readouterr().err.splitlines()) == 7


def test_forgotten_contents_are_forgotten_for_every_key(tmp_path: Path) -> None:
    folders = [place(tmp_path, {"max_megabytes": limit}) for limit in (1, 2)]
    for folder in folders:
        append(folder, rows("a", "b"))
        append(folder, rows("c"))
        append(folder, rows("d", "e"))
    forget(tmp_path, {"a", "c", "unknown"})
    assert [names(folder) for folder in folders] == [["b", "d", "e"]] * 2
    forget(folders[0], [])
    forget(tmp_path / "nowhere", ["d"])
    forget(folders[0], ["d"])
    assert [names(folder) for folder in folders] == [["b", "e"], ["b", "d", "e"]]


def test_many_parts_become_one_and_other_keys_go(tmp_path: Path, folder: Path) -> None:
    for number in range(facts_cache.MANY_PARTS + 1):
        append(folder, rows(f"{number:02}", "twice"))
    append(place(tmp_path, {}), rows("old"))
    (tmp_path / "something else").mkdir()
    before = read(folder).unique("sha256").sort("sha256")
    tidy(tmp_path, folder)
    assert len(list(folder.iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "something else"}
    assert read(folder).sort("sha256").equals(before)
    [part] = folder.iterdir()
    tidy(tmp_path, folder)
    assert list(folder.iterdir()) == [part]


def test_merged_parts_are_bounded(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_cache, "MERGED_ROWS", 10)
    for number in range(25):
        append(folder, rows(f"{number:02}"))
    tidy(tmp_path, folder)
    assert sorted(len(facts_cache._load(path)) for path in folder.iterdir()) == [5, 10, 10]
    assert names(folder) == [f"{number:02}" for number in range(25)]


def test_a_kill_while_merging_loses_nothing(tmp_path: Path, folder: Path) -> None:
    for number in range(20):
        append(folder, rows(f"{number:02}"))
    kept = {path: path.read_bytes() for path in sorted(folder.iterdir())[10:]}
    tidy(tmp_path, folder)
    for path, data in kept.items():  # as if it had not come to removing these
        path.write_bytes(data)
    assert sorted(set(names(folder))) == [f"{number:02}" for number in range(20)]


def test_what_is_merged_while_it_is_read_is_not_missed(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        append(folder, rows(f"{number:02}"))
    load = facts_cache._load

    def merge_first(path: Path, columns: Sequence[str]) -> pl.DataFrame | None:
        monkeypatch.setattr(facts_cache, "_load", load)
        tidy(tmp_path, folder)
        return load(path, columns)

    monkeypatch.setattr(facts_cache, "_load", merge_first)
    assert names(folder) == [f"{number:02}" for number in range(20)]


WRITER = """
import sys
from pathlib import Path
import polars as pl
from pipeline.validation.probe.facts_cache import append, read, tidy
cache, folder = Path(sys.argv[1]), Path(sys.argv[2])
[row] = read(folder).filter(sha256="seed").partition_by("sha256")
for number in range(40):
    append(folder, row.with_columns(sha256=pl.lit(f"{sys.argv[3]}{number:02}")))
    tidy(cache, folder)
    read(folder)
"""


@pytest.mark.seconds
def test_two_processes_may_share_it(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    append(folder, rows("seed"))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, folder, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert set(names(folder)) >= {"seed"} | {f"{name}{number:02}" for name in "ab" for number in range(40)}
    assert not [path for path in folder.iterdir() if path.suffix != ".parquet"]
    assert capfd.readouterr().err == ""
