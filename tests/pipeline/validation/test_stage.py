import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from deploy.artifact import verify
from pipeline.config import ValidateConfig
from pipeline.errors import ValidationError
from pipeline.validation import __main__ as stage
from pipeline.validation import manifest
from pipeline.validation.__main__ import run
from pipeline.workspace import Workspace, find
from simclr_core.compute.settings import Probing
from tests.pipeline.validation.corpus.corpus import bad_kinds, encoded, good_kinds, picture, write_batch

REPORTS = ("validation.json", "validation.html", "data_docs.html", "quarantine.png")
OUTPUTS = ("data/manifest", *(f"reports/{name}" for name in REPORTS))


def params(root: Path, **values: object) -> None:
    given = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    given["validate"] = values
    (root / "params.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")


@pytest.fixture
def raw(workspace: Workspace) -> Path:
    params(workspace.root, min_images=20, max_quarantine_rate=0.9)
    return workspace.raw


@pytest.fixture
def mixed(workspace: Workspace, raw: Path) -> Workspace:
    """Every kind of file, copies within and across batches and splits, and a name that is not UTF-8."""
    first = [(f"unlabeled/{kind.name}", kind.data) for kind in good_kinds() + bad_kinds()]
    shared, leaked, doubtful = (encoded(picture(number), "PNG") for number in (100, 101, 102))
    first += [
        ("unlabeled/shared.png", shared),
        ("unlabeled/again.png", shared),
        ("unlabeled/same pixels.bmp", encoded(picture(100), "BMP")),
        ("unlabeled/leaked.png", leaked),
        ("unlabeled/doubtful.png", doubtful),
        ("../escaped.png", encoded(picture(103), "PNG")),
        ("unlabeled/no utf-8 \udcff.png", encoded(picture(104), "PNG")),
    ]
    second = [
        ("labeled/cat/shared.png", shared),
        ("labeled/cat/doubtful.png", doubtful),
        ("labeled/dog/doubtful.png", doubtful),
        ("labeled/cat/new.png", encoded(picture(105), "PNG")),
        ("test/cat/leaked.png", leaked),
    ]
    write_batch(raw, "0001", first)
    write_batch(raw, "0002", second)
    return workspace


def outputs(root: Path) -> dict[str, bytes]:
    files = [path for name in OUTPUTS for path in [root / name, *(root / name).rglob("*")] if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def command(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.validation"],
        cwd=root,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.seconds
def test_every_file_gets_its_expected_reasons(mixed: Workspace) -> None:
    run(mixed)
    verify(mixed.manifest)
    expected = {f"unlabeled/{kind.name}": list(kind.reasons) for kind in good_kinds() + bad_kinds()} | {
        "unlabeled/shared.png": ["exact_duplicate"],
        "unlabeled/again.png": ["exact_duplicate"],
        "unlabeled/same pixels.bmp": ["pixel_duplicate"],
        "labeled/cat/shared.png": [],
        "unlabeled/leaked.png": ["test_leak"],
        "test/cat/leaked.png": [],
        "unlabeled/doubtful.png": ["label_conflict"],
        "labeled/cat/doubtful.png": ["label_conflict"],
        "labeled/dog/doubtful.png": ["label_conflict"],
        "labeled/cat/new.png": [],
        "../escaped.png": ["unsafe_path"],
        "unlabeled/no utf-8 \\udcff.png": [],
    }
    rows = manifest.read(mixed.manifest).to_dicts()
    assert {row["path"]: row["reasons"] for row in rows} == expected
    refused = pq.read_table(mixed.manifest / "quarantine.parquet").to_pylist()
    assert {row["path"]: row["reasons"] for row in refused} == {
        path: given for path, given in expected.items() if given
    }
    accepted = {row["path"]: row for row in pq.read_table(mixed.manifest / "accepted.parquet").to_pylist()}
    assert set(accepted) == {path for path, given in expected.items() if not given}
    relabeled = accepted["labeled/cat/shared.png"]
    assert (relabeled["label"], relabeled["batch"]) == ("cat", "0001")  # the batch that holds its bytes
    kinds = {f"unlabeled/{kind.name}": kind for kind in good_kinds()}
    assert all(tuple(accepted[path]["operations"]) == kind.operations for path, kind in kinds.items())
    result = json.loads((mixed.reports / "validation.json").read_text())
    assert result["passed"], [rule for rule in result["expectations"] if not rule["success"]]
    assert result["images"]["ingested"] == len(expected)
    assert result["images"]["ingested"] == result["images"]["accepted"] + sum(result["images"]["quarantined"].values())
    against = {rule["name"]: rule["unexpected_count"] for rule in result["expectations"]}
    contents = {row["sha256"]: row for row in rows}.values()
    for name, reason in (("short_side", "too_small"), ("aspect", "extreme_aspect")):
        assert against[name] == sum(reason in row["reasons"] for row in contents)
    assert against["decodes"] == sum(not row["decodes"] for row in contents)
    timing = json.loads((mixed.scratch / "timings" / "validate.json").read_text())
    assert timing["images_per_second"] > 0


@pytest.mark.slow
def test_running_twice_or_elsewhere_changes_no_byte(mixed: Workspace, tmp_path: Path) -> None:
    run(mixed)
    first = outputs(mixed.root)
    assert len(first) == 9
    assert not [name for name, data in first.items() if os.fsencode(tmp_path) in data]
    elsewhere = mixed.root.rename(tmp_path / "elsewhere")
    done = command(elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert outputs(elsewhere) == first


def drifting(raw: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    """Two batches, the second one changed: of 30 and 15 images, with names that are hostile."""
    for name, seeds in (("0001", range(30)), ("0002-<b>&", range(30, 45))):
        seen = [warm(seed) if name == "0001" else change(warm(seed)) for seed in seeds]
        write_batch(raw, name, [(f"{name}/{each}.png", encoded(image, "PNG")) for each, image in enumerate(seen)])


def warm(seed: int) -> Image.Image:
    red, green, blue = picture(seed, 64 + seed, 48).split()
    return Image.merge("RGB", (red.point(lambda value: value // 2 + 120), green, blue.point(lambda value: value // 2)))


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value * 5 // 4))


def with_swapped_channels(image: Image.Image) -> Image.Image:
    return Image.merge("RGB", image.split()[::-1])


def result(workspace: Workspace) -> dict[str, Any]:
    run(workspace)
    found: dict[str, Any] = json.loads((workspace.reports / "validation.json").read_text())
    return found


@pytest.mark.slow
def test_drift_is_a_warning(workspace: Workspace, raw: Path, tmp_path: Path) -> None:
    params(workspace.root, min_images=20, drift={"min_images": 15})
    drifting(raw, brighter)
    found = result(workspace)
    assert found["passed"]
    assert (found["drift"]["verdict"], found["drift"]["batch"]) == ("drift", "0002-<b>&")
    assert (found["drift"]["reference_images"], found["drift"]["batch_images"]) == (30, 15)
    rules = {rule["name"]: rule for rule in found["expectations"] if rule["suite"] == "drift"}
    assert not rules["no_drift"]["success"]
    drifted = [one["name"] for one in found["drift"]["statistics"] if one["drifted"]]
    assert rules["no_drift"]["sample_ids"] == drifted[:10]
    assert rules["no_drift"]["unexpected_count"] == len(drifted)
    html = (workspace.reports / "validation.html").read_text()
    assert html.partition('id="drift"')[2].partition("<h2")[0].count("<path") == 6
    assert "0002-<b>" not in html
    first = outputs(workspace.root)
    run(find(workspace.root.rename(tmp_path / "elsewhere")))
    assert outputs(tmp_path / "elsewhere") == first


@pytest.mark.slow
def test_a_suspected_data_bug_breaks_the_contract_until_a_person_accepts_it(workspace: Workspace, raw: Path) -> None:
    params(workspace.root, min_images=20, drift={"min_images": 15})
    drifting(raw, with_swapped_channels)
    found = result(workspace)
    assert (found["passed"], found["drift"]["verdict"]) == (False, "broken")
    assert found["drift"]["shapes"] == [{"batch": "0002-<b>&", "shape": "swapped_channels"}]
    [broken] = [rule for rule in found["expectations"] if rule["severity"] == "critical" and not rule["success"]]
    assert (broken["name"], broken["sample_ids"]) == ("not_broken", ["swapped_channels in 0002-<b>&"])
    params(workspace.root, min_images=20, drift={"min_images": 15, "accepted": ["0002-<b>&"]})
    found = result(workspace)
    assert (found["passed"], found["drift"]["verdict"]) == (True, "drift")


@pytest.mark.slow
def test_drift_is_not_judged_with_one_batch(mixed: Workspace) -> None:
    found = result(mixed)
    assert found["drift"]["verdict"] == "not judged"
    assert all(rule["success"] for rule in found["expectations"] if rule["suite"] == "drift")


@pytest.mark.slow
def test_the_quarantine_is_drawn_as_a_picture(mixed: Workspace) -> None:
    run(mixed)
    with Image.open(mixed.reports / "quarantine.png") as image:
        shown = image.copy()
    for path in mixed.raw.glob("*"):
        shutil.rmtree(path)
    write_batch(mixed.raw, "0001", [(f"{seed}.png", encoded(picture(seed), "PNG")) for seed in range(25)])
    run(mixed)
    with Image.open(mixed.reports / "quarantine.png") as image:
        assert image.height < shown.height


@pytest.mark.seconds
def test_a_broken_contract_is_reported_and_not_an_error(
    workspace: Workspace, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params(workspace.root, min_images=20)
    write_batch(raw, "0001", [(f"{number}.png", encoded(picture(number), "PNG")) for number in range(19)])
    run(workspace)
    assert "BROKEN" in capsys.readouterr().out
    result = json.loads((workspace.reports / "validation.json").read_text())
    assert not result["passed"]
    assert [
        rule["name"] for rule in result["expectations"] if rule["severity"] == "critical" and not rule["success"]
    ] == ["enough_training_images"]
    assert set(outputs(workspace.root)) > {"data/manifest/accepted.parquet", "reports/validation.html"}


@pytest.mark.seconds
def test_nothing_ingested_is_an_error_that_says_what_to_do(workspace: Workspace) -> None:
    done = command(workspace.root)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "simclr ingest" in done.stderr
    with pytest.raises(ValidationError):
        run(workspace)


@pytest.mark.seconds
def test_bytes_that_changed_or_vanished_are_quarantined(workspace: Workspace, raw: Path) -> None:
    kept = [(f"{number}.png", encoded(picture(number), "PNG")) for number in range(3)]
    write_batch(raw, "0001", kept)
    write_batch(raw, "0002", [("labeled/cat/0.png", kept[0][1]), ("3.png", encoded(picture(3), "PNG"))])
    tar = raw / "0002" / "images.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAX"))
    for path in (raw / "0001").iterdir():
        path.unlink()
    (raw / "0001").rmdir()
    run(workspace)
    rows = pq.read_table(workspace.manifest / "quarantine.parquet").to_pylist()
    assert {row["path"]: row["reasons"] for row in rows} == {"labeled/cat/0.png": ["io_error"], "3.png": ["io_error"]}
    assert all("dvc checkout" in row["message"] for row in rows)


@pytest.mark.seconds
def test_a_crashing_decoder_costs_one_file(workspace: Workspace, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.validation.probe import scan
    from tests.pipeline.validation.corpus import faults

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(scan, "probe", faults.probe_that_dies_of_killers)
    files = [(f"{number}.png", encoded(picture(number), "PNG")) for number in range(30)]
    spoiled = [(f"{name}.png", files[0][1] + name.encode()) for name in ("killer", "hang", "liar")]
    write_batch(raw, "0001", [*files, *spoiled])
    params(workspace.root, min_images=20, max_quarantine_rate=0.9, timeout_seconds=1.0)
    run(workspace)
    rows = pq.read_table(workspace.manifest / "quarantine.parquet").to_pylist()
    assert {row["path"]: row["reasons"] for row in rows} == {
        "killer.png": ["worker_crash"],
        "hang.png": ["timeout"],
        "liar.png": ["worker_crash"],
    }
    result = json.loads((workspace.reports / "validation.json").read_text())
    assert not result["passed"]  # three of 33: more than a healthy decoder loses


@pytest.mark.slow
def test_a_kill_while_publishing_leaves_the_earlier_results(workspace: Workspace, raw: Path) -> None:
    write_batch(raw, "0001", [(f"{number}.png", encoded(picture(number), "PNG")) for number in range(30)])
    run(workspace)
    before = outputs(workspace.root)
    write_batch(raw, "0002", [("new.png", encoded(picture(30), "PNG"))])
    assert command(workspace.root, SIMCLR_FAILPOINT="artifact.rename:kill").returncode == -9
    assert outputs(workspace.root) == before
    run(workspace)
    verify(workspace.manifest)
    assert pq.read_metadata(workspace.manifest / "accepted.parquet").num_rows == 31
    assert not list(workspace.manifest.parent.glob(".manifest*"))


def test_where_images_are_probed_has_moved_and_the_old_key_still_holds(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    local, ray = ValidateConfig(), ValidateConfig(engine="ray")
    assert stage._probing(workspace, local).engine == "local"
    assert stage._probing(workspace, ray) == Probing(engine="ray")
    assert "has moved to .simclr/compute.yaml, as validate: {engine: ray}" in capsys.readouterr().out
    (workspace.scratch).mkdir(exist_ok=True)
    (workspace.scratch / "compute.yaml").write_text("validate: {engine: ray, address: 'a:1'}\n")
    assert stage._probing(workspace, local) == stage._probing(workspace, ray) == Probing(engine="ray", address="a:1")
    assert capsys.readouterr().out == ""
