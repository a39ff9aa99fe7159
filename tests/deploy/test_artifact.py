"""A published directory is complete or absent, and every changed byte is found."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import artifact
from deploy.errors import CorruptArtifactError, MissingArtifactError


def make(target: Path, text: str = "weights", replace: bool = False) -> Path:
    with artifact.publish(target, replace=replace) as folder:
        (folder / "golden").mkdir()
        (folder / "golden" / "a.txt").write_text(text)
        (folder / "model.bin").write_bytes(b"\0" * 1000)
    return target


def test_published_directory_verifies_and_holds_what_was_written(tmp_path: Path) -> None:
    target = make(tmp_path / "bundle")
    artifact.verify(target)
    assert (target / "golden" / "a.txt").read_text() == "weights"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    subprocess.run(["sha256sum", "--check", "--quiet", artifact.MANIFEST], cwd=target, check=True)


def test_identity_names_the_content(tmp_path: Path) -> None:
    first, same, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", "other")
    assert artifact.identity(first) == artifact.identity(same) != artifact.identity(other)


def test_an_error_in_the_block_leaves_no_files(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with artifact.publish(tmp_path / "bundle") as folder:
            (folder / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_kept_unless_replaced(tmp_path: Path) -> None:
    target = make(tmp_path / "bundle", "old")
    with pytest.raises(OSError, match="not empty"):
        make(target, "new")
    assert (target / "golden" / "a.txt").read_text() == "old"
    make(target, "new", replace=True)
    assert (target / "golden" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["model.bin", "golden/a.txt", artifact.MANIFEST])
def test_every_flipped_bit_is_found_and_the_file_named(tmp_path: Path, name: str) -> None:
    target = make(tmp_path / "bundle")
    data = bytearray((target / name).read_bytes())
    for position in range(0, len(data), max(1, len(data) // 50)):
        changed = data.copy()
        changed[position] ^= 1 << position % 8
        (target / name).write_bytes(changed)
        with pytest.raises(CorruptArtifactError):
            artifact.verify(target)
    (target / name).write_bytes(data)
    artifact.verify(target)


def test_missing_added_and_truncated_files_are_found(tmp_path: Path) -> None:
    target = make(tmp_path / "bundle")
    (target / "extra").write_text("?")
    with pytest.raises(CorruptArtifactError, match="extra: not listed"):
        artifact.verify(target)
    (target / "extra").unlink()
    (target / "model.bin").unlink()
    with pytest.raises(CorruptArtifactError, match=r"model\.bin: listed in MANIFEST\.sha256 but missing"):
        artifact.verify(target)


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    target = make(tmp_path / "bundle")
    (tmp_path / "secret").write_text("secret")
    with (target / artifact.MANIFEST).open("a") as manifest:
        manifest.write(f"{'0' * 64}  ../secret\n")
    with pytest.raises(CorruptArtifactError, match="is not '<sha256>  <path>'"):
        artifact.verify(target)


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no such directory"):
        artifact.verify(tmp_path / "none")
    with pytest.raises(MissingArtifactError, match=r"has no MANIFEST\.sha256"):
        artifact.verify(tmp_path)


@pytest.mark.parametrize("failpoint", ["artifact.rename", "artifact.renamed"])
def test_sigkill_at_the_rename_leaves_the_old_or_the_new_one(tmp_path: Path, failpoint: str) -> None:
    target = make(tmp_path / "bundle", "old")
    program = (
        "import sys; from pathlib import Path; from deploy import artifact\n"
        "with artifact.publish(Path(sys.argv[1]), replace=True) as folder: (folder / 'a').write_text('new')"
    )
    environment = os.environ | {"SIMCLR_FAILPOINT": f"{failpoint}:kill", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program, str(target)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    artifact.verify(target)
    assert (target / "a").exists() == (failpoint == "artifact.renamed")
    make(target, "after", replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "the files of the killed process are removed"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_sigkill_between_the_old_and_the_new_one_loses_neither(tmp_path: Path, exchange: bool) -> None:
    """Where two directories cannot change places in one step, the next writer puts the old one back."""
    target = make(tmp_path / "bundle [1]", "old")
    program = (
        "import sys; from pathlib import Path; from deploy import artifact\n"
        f"if not {exchange}: artifact._exchange = lambda one, other: False\n"
        "with artifact.publish(Path(sys.argv[1]), replace=True) as folder: (folder / 'a').write_text('new')"
    )
    environment = os.environ | {
        "SIMCLR_FAILPOINT": "artifact.retired:kill",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", program, str(target)], env=environment, check=False)
    assert done.returncode == (0 if exchange else -signal.SIGKILL)
    assert target.exists() == exchange
    with pytest.raises(RuntimeError, match="a fault"), artifact.publish(target, replace=True):
        raise RuntimeError("a fault")
    artifact.verify(target)
    assert (target / "a").exists() == exchange
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_write_atomically_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    artifact.write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        artifact.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
