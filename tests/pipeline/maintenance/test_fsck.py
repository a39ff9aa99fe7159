"""Every planted damage is found, and repaired when the same bytes are sound anywhere else."""

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from deploy.artifact import publish, verify
from pipeline.dvc import cache
from pipeline.dvc.client import add, exclusive, execute
from pipeline.errors import DvcError
from pipeline.ingest.ingest import ingest
from pipeline.maintenance.fsck import MEMORY, Report, check
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put

TAG = "simclr-encoder@v0.0.1"


@pytest.fixture(scope="module")
def made(empty_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One raw batch, a released bundle with its copy in the registry, and a newer bundle that is not released."""
    workspace = Workspace(tmp_path_factory.mktemp("fsck") / "workspace")
    shutil.copytree(empty_workspace, workspace.root)
    (workspace.root / "dvc.yaml").write_text("stages: {}")
    for number in range(6):
        put(workspace, f"unlabeled/{number}.png", encode(draw(number % 4, number)))
    ingest(workspace)
    write_bundle(workspace, "one")
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    for command in (["add", "--all"], ["commit", "--quiet", "--message", "one"], ["tag", TAG]):
        subprocess.run(["git", *identity, *command], cwd=workspace.root, check=True)
    shutil.copytree(workspace.root / "models" / "bundle", workspace.root / "registry" / "v0.0.1")
    write_bundle(workspace, "two")
    return workspace.root


def write_bundle(workspace: Workspace, content: str) -> None:
    with publish(workspace.root / "models" / "bundle", replace=True) as folder:
        (folder / "encoder.onnx").write_bytes(content.encode() * 10_000)
        (folder / "golden").mkdir()
        (folder / "golden" / "a.txt").write_text(content)
        (folder / "empty").touch()
    add(workspace.root, workspace.root / "models" / "bundle")


@pytest.fixture
def sound(made: Path, tmp_path: Path) -> Workspace:
    """A copy of it that is linked as DVC links: the workspace's files are the objects of the cache."""
    workspace = Workspace(tmp_path / "my workspace")
    shutil.copytree(made, workspace.root, symlinks=True)
    with cache.opened(workspace.root) as objects:
        by_content = {objects.path(md5).read_bytes(): objects.path(md5) for md5 in objects.objects()}
    for folder in ("data", "models"):
        for path in (workspace.root / folder).rglob("*"):
            if path.is_file() and path.read_bytes() in by_content:
                cache.link(by_content[path.read_bytes()], path)
    return workspace


def with_remote(workspace: Workspace, folder: Path) -> Workspace:
    execute(workspace.root, "remote", "add", "--quiet", "--default", "store", str(folder))
    with cache.opened(workspace.root) as objects:
        for md5 in objects.objects():
            objects.send(md5)
    return workspace


def versioned(workspace: Workspace) -> dict[Path, bytes]:
    folders = [workspace.root / name for name in (".dvc/cache/files", "data", "models", "registry")]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def objects_of(workspace: Workspace) -> list[Path]:
    return [path for path in versioned(workspace) if ".dvc/cache" in str(path)]


def read_all(workspace: Workspace, remote: bool = False) -> Report:
    return check(workspace, older_than_days=0, remote=remote, on_progress=lambda _: None)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    position = random.Random(str(path)).randrange(len(data) * 8) if data else 0
    if data:
        data[position // 8] ^= 1 << position % 8
    rewrite(path, bytes(data) or b"\0")


def truncate(path: Path) -> None:
    rewrite(path, path.read_bytes()[:-1] or b"not empty")


def blank(path: Path) -> None:
    rewrite(path, b"\0" * (path.stat().st_size or 1))


def remove(path: Path) -> None:
    path.unlink()


def rewrite(path: Path, data: bytes) -> None:
    """In place, read-only before and after, and with the time of change it had: as a bad disk does it."""
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


FAULTS: list[Callable[[Path], None]] = [flip, truncate, blank, remove]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_damaged_file_is_found(sound: Workspace, fault: Callable[[Path], None]) -> None:
    listings = [path for path in objects_of(sound) if path.suffix == ".dir"]
    planted = [path for path in objects_of(sound) if path not in listings]
    planted += [path for path in versioned(sound) if "registry" in str(path) and path.name != "MANIFEST.sha256"]
    for path in planted:
        fault(path)
    report = read_all(sound)
    found = {sound.root / damage.path for damage in report.damages}
    assert set(planted) <= found
    assert report.lost
    assert not set(listings) & found


@pytest.mark.seconds
@pytest.mark.parametrize("fault", FAULTS)
def test_damage_is_repaired_from_intact_copies(sound: Workspace, tmp_path: Path, fault: Callable[[Path], None]) -> None:
    with_remote(sound, tmp_path / "remote")
    before = versioned(sound)
    planted = random.Random(fault.__name__).sample(sorted(objects_of(sound)), 8)
    planted += [path for path in before if "registry" in str(path)]
    for path in planted:
        fault(path)
    report = read_all(sound)
    assert {path.relative_to(sound.root).as_posix() for path in planted} <= {damage.path for damage in report.damages}
    assert report.lost == []
    assert versioned(sound) == before
    assert not read_all(sound).damages
    assert execute(sound.root, "status").startswith("Data and pipelines are up to date")
    kept = list((sound.scratch / "damaged").iterdir()) if fault is not remove else planted
    assert len(kept) == len(planted)


def test_each_kind_of_copy_is_used_for_repair(sound: Workspace) -> None:
    """Without a remote: a listing from its folder, an object from the registry, the registry from the cache."""
    with cache.opened(sound.root) as objects:
        uses = objects.uses()
    of = {str(use): md5 for md5, found in uses.items() for use in found}
    encoder = next(md5 for text, md5 in of.items() if text.startswith("models/bundle/encoder.onnx") and TAG in text)
    listing = of["models/bundle of workspace"]
    with cache.opened(sound.root) as objects:
        flip(objects.path(encoder))
        flip(objects.path(listing))
    flip(sound.root / "registry" / "v0.0.1" / "golden" / "a.txt")
    report = read_all(sound)
    assert sorted(damage.repaired for damage in report.damages) == [
        "rebuilt from models/bundle",
        "restored from registry/v0.0.1/encoder.onnx",
        "restored from the cache",
    ]
    verify(sound.root / "registry" / "v0.0.1")
    assert str(report).splitlines()[-1].endswith("3 damaged, 3 of them repaired")


def test_lost_files_are_named_with_the_versions_that_need_them(sound: Workspace) -> None:
    shutil.rmtree(sound.root / "registry")
    with cache.opened(sound.root) as objects:
        uses = objects.uses()
        lost = next(
            md5 for md5, found in uses.items() if any(TAG in str(use) and "encoder.onnx" in str(use) for use in found)
        )
        flip(objects.path(lost))
    report = read_all(sound)
    (damage,) = report.lost
    assert damage.path == f".dvc/cache/files/md5/{lost[:2]}/{lost[2:]}"
    assert len(damage.needed_by) == 1
    assert TAG in damage.needed_by[0]
    assert str(damage).startswith(
        f"LOST    {damage.path}: differs from its name; needed by: models/bundle/encoder.onnx of"
    )
    assert not (sound.root / damage.path).exists()  # nothing is served from it any more
    assert [damage.problem for damage in read_all(sound).lost] == ["missing from the cache"]


@pytest.mark.seconds
def test_a_manifest_and_a_stray_file_are_found(sound: Workspace) -> None:
    folder = sound.root / "registry" / "v0.0.1"
    (folder / "stray").touch()
    flip(folder / "MANIFEST.sha256")
    (batch,) = (path for path in sound.raw.iterdir() if path.is_dir())
    (batch / "MANIFEST.sha256").unlink()
    problems = {damage.path: (damage.problem, bool(damage.repaired)) for damage in read_all(sound).damages}
    assert problems == {
        "registry/v0.0.1/MANIFEST.sha256": ("cannot be relied on", True),
        "registry/v0.0.1/stray": ("not listed in MANIFEST.sha256; remove it if it is not needed", False),
        batch.relative_to(sound.root).joinpath("MANIFEST.sha256").as_posix(): (
            "listed in MANIFEST.sha256 but missing",
            True,
        ),
    }
    verify(batch)


@pytest.mark.seconds
def test_a_check_continues_where_it_stopped_and_reads_changed_files_again(sound: Workspace) -> None:
    total = check(sound).files
    memory = sound.scratch / MEMORY
    memory.unlink()
    first = check(sound, seconds=0)
    assert (first.files, first.left) == (0, total)
    whole = check(sound)
    assert (whole.files, whole.left, whole.recent) == (total, 0, 0)
    assert (check(sound).files, check(sound).recent) == (0, total)
    changed = sound.root / "registry" / "v0.0.1" / "encoder.onnx"
    changed.unlink()
    changed.write_bytes(b"of another size")
    assert [damage.path for damage in check(sound).damages] == ["registry/v0.0.1/encoder.onnx"]
    with sqlite3.connect(memory) as database:
        database.execute("UPDATE sound SET at = at + 3e9")  # the clock has been set back since
    database.close()
    assert check(sound).files == total


def test_what_is_there_no_more_is_forgotten(sound: Workspace) -> None:
    """Every version that gc removes would leave its objects in the memory of what was read, forever."""
    total = check(sound).files
    with closing(sqlite3.connect(sound.scratch / MEMORY)) as database:
        for key in ("/gone/from/the/cache", "remote:store:abc"):
            database.execute("INSERT INTO sound VALUES (?, 1, 1, 1)", (key,))
        database.commit()
        check(sound)
        keys = {key for (key,) in database.execute("SELECT key FROM sound")}
    assert len(keys) == total + 1
    assert "remote:store:abc" in keys, "the remote was not listed"


@pytest.mark.seconds
def test_a_time_budget_reaches_every_file_over_several_runs(sound: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    total = check(sound).files
    assert str(check(sound)).startswith("no file had to be read, ")
    (sound.scratch / MEMORY).unlink()
    none = str(check(sound, seconds=0))
    assert none.startswith("the time was over before the first file was read, the next `simclr fsck` reads the rem")
    assert none.endswith(f"remaining {total} files, no damage was found")
    left, shown = [total], list[str]()
    while left[-1]:
        ticks: Iterable[float] = iter(range(10_000))
        monkeypatch.setattr("pipeline.maintenance.fsck.time.monotonic", lambda ticks=ticks: float(next(ticks)))
        left.append(check(sound, seconds=5, on_progress=shown.append).left)
        assert left[-1] < left[-2]
    assert len(left) > 3
    assert all("/s, " in line for line in shown)


def test_nothing_is_repaired_while_another_process_holds_the_workspace(sound: Workspace) -> None:
    target = sound.root / "registry" / "v0.0.1" / "encoder.onnx"
    flip(target)
    before = target.read_bytes()
    with exclusive(sound.root, "a run"):
        report = read_all(sound)
    assert (report.postponed, report.damages) == (1, [])
    assert target.read_bytes() == before
    assert "1 seem damaged and wait until the workspace is free" in str(report)
    assert len(read_all(sound).damages) == 1


@pytest.mark.seconds
def test_copies_of_released_versions_in_the_remote_are_read_too(sound: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DvcError, match="has no DVC remote"):
        read_all(sound, remote=True)
    with_remote(sound, tmp_path / "remote")
    released = read_all(sound, remote=True)
    assert released.damages == []
    with cache.opened(sound.root) as objects:
        needed = sorted(md5 for md5, uses in objects.uses().items() if any(TAG in use.version for use in uses))
    stored = {md5: tmp_path / "remote" / "files" / "md5" / md5[:2] / md5[2:] for md5 in needed}
    before = {md5: path.read_bytes() for md5, path in stored.items()}
    for number, path in enumerate(stored.values()):
        path.chmod(0o644)
        (flip, truncate, remove)[number % 3](path)
    report = read_all(sound, remote=True)
    assert sorted(damage.path for damage in report.damages) == sorted(f"store/{md5}" for md5 in needed)
    assert report.lost == []
    assert {md5: path.read_bytes() for md5, path in stored.items()} == before
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(DvcError, match=r"remote store cannot be read \(.*does not exist\)"):
        read_all(sound, remote=True)
