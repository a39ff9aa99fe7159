import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import ValidationError
from pipeline.ingest.raw import list_tar, read_bytes, read_rows, read_tar, tars
from pipeline.validation.probe import facts_cache
from pipeline.validation.probe import scan as scans
from pipeline.validation.probe.probe import probe
from pipeline.validation.probe.scan import CHANGED, MISSING, NONSENSE, Limits
from pipeline.validation.tables import FACTS, FILES
from tests.pipeline.validation.corpus import faults
from tests.pipeline.validation.corpus.corpus import bad_kinds, good_kinds, picture, scan, write_batch
from tests.pipeline.validation.corpus.encodings import encoded

LIMITS = Limits(max_megabytes=50.0, max_megapixels=80.0, memory_megabytes=2048, timeout_seconds=20.0)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "facts"


def images(first: int, count: int) -> dict[str, bytes]:
    return {f"{seed}.png": encoded(picture(seed), "PNG") for seed in range(first, first + count)}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spelled(path: str) -> str:
    return path.replace("\udcff", "\\udcff").replace("\udc80", "\\udc80")


def expected(contents: Mapping[str, bytes]) -> pl.DataFrame:
    """Their facts, from the probe in this process."""
    rows = [tuple(probe(data).values()) for data in set(contents.values())]
    return pl.DataFrame(rows, schema=FACTS, orient="row").sort("sha256")


def spoil(tar: Path) -> None:
    """Other bytes, as many as before: whichever process reads them finds nothing."""
    tar.write_bytes(bytes(tar.stat().st_size))


@pytest.mark.seconds
def test_every_file_and_every_content_has_a_row(raw: Path, cache: Path) -> None:
    first = {f"unlabeled/{kind.name}": kind.data for kind in good_kinds() + bad_kinds()}
    first |= {"labeled/cat/b.png": first["unlabeled/plain.png"], "unlabeled/no utf-8 \udcff.png": picture(99).tobytes()}
    second = {"test/dog \udc80/a.png": first["unlabeled/plain.png"], "a.png": encoded(picture(98), "PNG")}
    write_batch(raw, "0001", list(first.items()))
    write_batch(raw, "0002-new", list(second.items()))
    files, facts = scan(raw, cache, limits=LIMITS)
    assert files.schema == FILES
    assert set(files["path"]) == {spelled(path) for path in first | second}
    order = [path for name in ("0001", "0002-new") for _, path, *_ in read_rows(raw / name)]
    assert files["path"].to_list() == [spelled(path) for path in order]
    rows = {row["path"]: row for row in files.to_dicts()}
    assert rows["test/dog \\udc80/a.png"] == {
        "path": "test/dog \\udc80/a.png",
        "split": "test",
        "label": "dog \\udc80",
        "sha256": sha256(first["unlabeled/plain.png"]),
        "batch": "0001",
        "ingest_batch": "0002-new",
    }
    assert (rows["a.png"]["batch"], rows["a.png"]["label"]) == ("0002-new", None)
    assert facts.schema == FACTS
    assert facts.equals(expected(first | second))


@pytest.mark.seconds
def test_one_worker_or_more_give_the_same_rows(raw: Path, tmp_path: Path) -> None:
    write_batch(raw, "0001", list(images(0, 20).items()))
    one, more = (scan(raw, tmp_path / str(workers), limits=LIMITS, workers=workers) for workers in (1, 3))
    assert one[0].equals(more[0])
    assert one[1].equals(more[1])


@pytest.mark.seconds
def test_known_contents_are_not_read_again(raw: Path, cache: Path) -> None:
    old, new = images(0, 6), images(6, 2)
    write_batch(raw, "0001", list(old.items()))
    first = scan(raw, cache, limits=LIMITS)
    [tar] = tars(raw / "0001")
    spoil(tar)
    again = scan(raw, cache, limits=LIMITS)
    assert again[0].equals(first[0])
    assert again[1].equals(first[1])
    write_batch(raw, "0002", [*new.items(), ("labeled/cat/0.png", old["0.png"])])
    reported: list[tuple[int, int]] = []
    _, facts = scan(raw, cache, limits=LIMITS, progress=lambda *now: reported.append(now))
    assert facts.equals(expected(old | new))
    assert reported == [(7, 8), (8, 8)]


@pytest.mark.seconds
def test_known_contents_of_an_opened_tar_are_skipped(raw: Path, cache: Path) -> None:
    contents = images(0, 6)
    write_batch(raw, "0001", list(contents.items()))
    _, facts = scan(raw, cache, limits=LIMITS)
    chosen = sha256(contents["3.png"])
    facts_cache.forget(cache, [chosen])
    reported: list[tuple[int, int]] = []
    assert scan(raw, cache, limits=LIMITS, progress=lambda *now: reported.append(now))[1].equals(facts)
    assert reported == [(6, 6)]


@pytest.mark.seconds
def test_contents_are_forgotten_with_their_tar(raw: Path, cache: Path) -> None:
    lost, cut, kept = images(0, 3), images(3, 3), images(6, 3)
    for name, contents in (("0001", lost), ("0002", cut), ("0003", kept)):
        write_batch(raw, name, [*contents.items()])
    write_batch(raw, "0004", [("labeled/cat/0.png", lost["0.png"])])
    scan(raw, cache, limits=LIMITS)
    shutil.rmtree(raw / "0001")
    [tar] = tars(raw / "0002")
    members = list(list_tar(tar))
    tar.write_bytes(tar.read_bytes()[:700])  # in the first file
    files, facts = scan(raw, cache, limits=LIMITS)
    missing = facts.filter(pl.col("reason").is_not_null())
    assert set(missing["sha256"]) == {*members, sha256(lost["0.png"])}
    assert missing.select("reason", "message", "container", "size_bytes").unique().rows() == [
        ("io_error", MISSING, "missing", 0)
    ]
    assert files.filter(path="labeled/cat/0.png")["batch"].to_list() == ["0004"]
    assert facts.filter(pl.col("reason").is_null()).equals(expected(kept))


@pytest.mark.seconds
def test_a_damaged_tar_loses_only_the_files_after_the_damage(raw: Path, cache: Path) -> None:
    contents = images(0, 5)
    write_batch(raw, "0001", list(contents.items()))
    [tar] = tars(raw / "0001")
    order = [member for member, _ in read_tar(tar)]
    data = bytearray(tar.read_bytes())
    data[data.index(order[3].encode())] ^= 1
    tar.write_bytes(data)
    _, facts = scan(raw, cache, limits=LIMITS)
    reasons = dict(facts.select("sha256", "reason").iter_rows())
    assert [reasons[member] for member in order] == [None, None, None, "io_error", "io_error"]


@pytest.mark.seconds
def test_bytes_that_changed_are_reported_apart_from_bad_files(raw: Path, cache: Path) -> None:
    contents = images(0, 3)
    write_batch(raw, "0001", list(contents.items()))
    [tar] = tars(raw / "0001")
    intact = tar.read_bytes()
    tar.write_bytes(intact.replace(b"IDAT", b"IDAX"))
    _, facts = scan(raw, cache, limits=LIMITS)
    assert facts.select("reason", "message").unique().rows() == [("io_error", CHANGED)]
    tar.write_bytes(intact)
    assert scan(raw, cache, limits=LIMITS)[1].equals(expected(contents))


@pytest.mark.seconds
def test_a_crashing_decoder_costs_one_file_and_is_tried_again(
    raw: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))
    good = images(0, 10)
    spoiled = {f"{name}.png": good["0.png"] + name.encode() for name in ("killer", "hang", "liar")}
    write_batch(raw, "0001", [*good.items(), *spoiled.items()])
    with monkeypatch.context() as patch:
        patch.setattr(scans, "probe", faults.probe_that_dies_of_killers)
        _, facts = scan(raw, cache, limits=replace(LIMITS, timeout_seconds=1.0))
    found = {row["sha256"]: (row["reason"], row["message"], row["size_bytes"]) for row in facts.to_dicts()}
    size = len(good["0.png"])
    assert [found[sha256(data)] for data in spoiled.values()] == [
        ("worker_crash", "its worker was killed by SIGSEGV", size + 6),
        ("timeout", "not done after 1 s", size + 4),
        ("worker_crash", NONSENSE, size + 4),
    ]
    assert facts.filter(pl.col("reason").is_null()).equals(expected(good))
    reported: list[tuple[int, int]] = []
    _, facts = scan(raw, cache, limits=LIMITS, progress=lambda *now: reported.append(now))
    assert facts.equals(expected(good | spoiled))
    assert reported == [(11, 13), (12, 13), (13, 13)]


@pytest.mark.seconds
def test_a_killed_scan_continues_where_it_stopped(raw: Path, cache: Path) -> None:
    contents = images(0, 30)
    write_batch(raw, "0001", list(contents.items()))
    program = (
        "import sys; from pathlib import Path; from pipeline.validation import scan; scan.SAVED_CONTENTS = 5;"
        f"scan.scan(Path(sys.argv[1]), Path(sys.argv[2]), limits=scan.{LIMITS})"
    )
    environment = os.environ | {"SIMCLR_FAILPOINT": "scan.saved:kill@4"}
    killed = subprocess.run([sys.executable, "-c", program, str(raw), str(cache)], env=environment, check=False)
    assert killed.returncode == -9
    reported: list[tuple[int, int]] = []
    _, facts = scan(raw, cache, limits=LIMITS, progress=lambda *now: reported.append(now))
    assert reported == [(done, 30) for done in range(21, 31)]
    assert facts.equals(expected(contents))


@pytest.mark.seconds
def test_changed_limits_probe_every_file_again(raw: Path, cache: Path) -> None:
    contents = images(0, 3)
    write_batch(raw, "0001", list(contents.items()))
    scan(raw, cache, limits=LIMITS)
    _, facts = scan(raw, cache, limits=replace(LIMITS, max_megapixels=0.001))
    assert facts["reason"].to_list() == ["bomb"] * 3
    assert len(list(cache.iterdir())) == 1
    _, facts = scan(raw, cache, limits=replace(LIMITS, max_megabytes=0.001))
    assert facts["reason"].to_list() == ["too_large"] * 3


def test_nothing_ingested_is_an_error_that_says_what_to_do(raw: Path, cache: Path) -> None:
    with pytest.raises(ValidationError, match="simclr ingest"):
        scan(raw, cache, limits=LIMITS)
    (raw / "0001").mkdir(parents=True)
    (raw / "0001" / "occurrences.jsonl").touch()
    with pytest.raises(ValidationError, match="simclr ingest"):
        scan(raw, cache, limits=LIMITS)


@pytest.mark.seconds
def test_progress_is_reported_at_every_tenth(
    raw: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMCLR_EVENTS", str(tmp_path / "events"))
    write_batch(raw, "0001", list(images(0, 20).items()))
    scan(raw, cache, limits=LIMITS)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [event["images"] for event in events] == list(range(2, 21, 2))
    assert events[0] == {"event": "progress", "stage": "validate", "message": "2 of 20 images probed", "images": 2}
    assert capfd.readouterr() == ("", "")


def test_only_requested_bytes_are_read(raw: Path) -> None:
    contents = images(0, 4)
    write_batch(raw, "0001", list(contents.items())[:2])
    write_batch(raw, "0002", list(contents.items())[2:])
    names = {sha256(data): data for data in contents.values()}
    assert {name: data for _, name, data in read_bytes(raw)} == names
    one = sha256(contents["2.png"])
    assert list(read_bytes(raw, wanted={one})) == [("0002", one, contents["2.png"])]
    [tar] = tars(raw / "0001")
    assert list(list_tar(tar)) == [name for name, _ in read_tar(tar)]
