import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from deploy.errors import ClusterError
from pipeline.errors import ValidationError
from pipeline.ingest.raw import tars
from pipeline.validation.probe import facts_cache
from pipeline.validation.probe import scan as scans
from pipeline.validation.probe.ray_engine import flat_map
from pipeline.validation.probe.scan import Limits
from tests.pipeline.validation.corpus import faults
from tests.pipeline.validation.corpus.corpus import bad_kinds, good_kinds, picture, scan, write_batch
from tests.pipeline.validation.corpus.encodings import encoded

LIMITS = Limits(max_megabytes=50.0, max_megapixels=80.0, memory_megabytes=2048, timeout_seconds=2.0)
ROOT = str(Path(__file__).parents[4])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three tars of every kind of file, one of which kills its decoder, and one hangs it."""
    good, bad = [[(kind.name, kind.data) for kind in kinds] for kinds in (good_kinds(), bad_kinds())]
    spoiled = [(f"{name}.png", good[2][1] + name.encode()) for name in ("killer", "hang", "liar")]
    write_batch(tmp_path / "raw", "0001", good)
    write_batch(tmp_path / "raw", "0002", bad)
    write_batch(tmp_path / "raw", "0003", [*spoiled, ("last.png", encoded(picture(99), "PNG")), *good])
    return tmp_path / "raw"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_rows_are_those_of_the_local_engine(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setattr(scans, "probe", faults.probe_that_dies_of_killers)
    reported: list[tuple[int, int]] = []
    local = scan(raw, tmp_path / "local", limits=LIMITS)
    on_ray = scan(raw, tmp_path / "ray", limits=LIMITS, engine="ray", progress=lambda *now: reported.append(now))
    assert on_ray[0].equals(local[0])
    assert on_ray[1].equals(local[1])
    assert on_ray[1]["reason"].value_counts().filter(pl.col("reason").is_in(["worker_crash", "timeout"])).height == 2
    total = local[1].height
    assert reported == [(done, total) for done in range(1, total + 1)]
    cached = [
        facts_cache.read(folder).sort("sha256") for name in ("local", "ray") for folder in (tmp_path / name).iterdir()
    ]
    assert cached[0].equals(cached[1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_known_contents_are_not_read_again(raw: Path, tmp_path: Path) -> None:
    shutil.rmtree(raw / "0002")  # with a file whose reason may be chance
    _, known = scan(raw, tmp_path / "facts", limits=LIMITS)
    for name in ("0001", "0003"):
        [tar] = tars(raw / name)
        tar.write_bytes(bytes(tar.stat().st_size))
    write_batch(raw, "0004", [("new.png", encoded(picture(98), "PNG"))])
    reported: list[tuple[int, int]] = []
    _, facts = scan(raw, tmp_path / "facts", limits=LIMITS, engine="ray", progress=lambda *now: reported.append(now))
    assert reported == [(facts.height, facts.height)]
    assert facts.join(known, on="sha256", how="semi").equals(known)
    assert facts["reason"].to_list().count("io_error") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_nodes_with_other_versions_are_refused(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_cache, "PROBE_VERSION", -1)
    with pytest.raises(ValidationError, match="install the same versions"):
        scan(raw, tmp_path / "facts", limits=LIMITS, engine="ray")


def stop(item: str) -> Iterator[str]:
    yield item
    raise ValidationError(f"cannot continue with {item}")


def fail(item: str) -> Iterator[str]:
    yield item
    raise ZeroDivisionError


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_fails_reports_the_reason() -> None:
    with pytest.raises(ValidationError, match=r"^cannot continue with 🙂$"):
        list(flat_map(stop, ["🙂"]))
    with pytest.raises(ValidationError, match="ZeroDivisionError"):
        list(flat_map(fail, ["a", "b"]))
    assert list(flat_map(reversed, [[1, None, "\udcff"], [2**70]])) == ["\udcff", None, 1, 2**70]


def test_without_rows_no_cluster_is_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(flat_map(fail, [])) == []


def test_without_ray_the_knob_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"^validate.engine is ray, .*engine to local"):
        list(flat_map(fail, ["a"]))
