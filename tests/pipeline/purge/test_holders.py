"""What holds a content, and what the models of a version had of it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deploy.artifact import MANIFEST
from pipeline.dvc.cache import Cache, Use
from pipeline.dvc.purged import Purge
from pipeline.dvc.versions import WORKSPACE
from pipeline.purge.holders import golden_copies, holds, models, needed, pictures
from pipeline.purge.purge import _look_up
from simclr_core.data.shard_writing import write_tar

ONE, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"one", b"other"))


def table(**columns: list[str]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


def tar(folder: Path, *names: str) -> bytes:
    return (folder / write_tar(folder, [(name, b"bytes") for name in names])[0]).read_bytes()


def test_a_tar_a_table_and_a_record_hold_what_they_name(tmp_path: Path) -> None:
    line = '{"sha256": "%s", "occurrences": [%s]}\n'
    for data, expected in (
        (tar(tmp_path, f"{OTHER}.png", f"{ONE}.jpg"), True),
        (tar(tmp_path, f"{OTHER}.png"), False),
        (table(sha256=[OTHER, ONE]), True),
        (table(sha256=[OTHER]), False),
        (table(other=[ONE]), False),
        ((line % (OTHER, '{"path": "a"}') + line % (ONE, '{"path": "b"}')).encode(), True),
        ((line % (OTHER, '{"path": "a"}') + line % (ONE, "")).encode(), False),
        (b"", False),
        (b"PAR1 but damaged", False),
        (tar(tmp_path, f"{ONE}.jpg")[:700], True),
    ):
        assert holds(io.BytesIO(data), {ONE}) is expected, data[:80]


class Folder(Cache):
    """A cache that is a folder of files."""

    def __init__(self, folder: Path, uses: dict[str, set[Use]] | None = None) -> None:
        self.folder, self.used = folder, uses or {}

    def uses(self, beyond: str | None = None) -> dict[str, set[Use]]:
        return self.used

    def objects(self) -> list[str]:
        return []

    def remotes(self) -> list[str]:
        return []

    def path(self, md5: str) -> Path:
        return self.folder / md5


def write_keys(path: Path, keys: str) -> None:
    """``keys`` are hashes, one after the other."""
    with path.open("wb") as file:
        np.save(file, np.frombuffer(bytes.fromhex(keys), np.uint8).reshape(-1, 32))


def test_the_golden_images_made_of_a_content_are_found_and_kept_for_releases_alone(tmp_path: Path) -> None:
    """Of 16 test images, 64 at most and the first 8 of these are golden, evenly spread: here the first 8."""
    write_keys(tmp_path / "keys", OTHER * 3 + ONE + OTHER * 12)
    write_keys(tmp_path / "others", OTHER * 16)
    versions = ("encoder@v0.0.2,runs/b", "encoder@v0.0.1,encoder@v0.0.1!", "runs/c", WORKSPACE)
    uses: dict[str, set[Use]] = {"keys": set(), "champion": {Use(WORKSPACE, "models/champion/bundle/golden/03.png")}}
    for version in versions[:3]:
        uses["keys"].add(Use(version, "data/prepared/test/keys.npy"))
        for number in range(8):
            uses[f"{version[-1]} {number}"] = {Use(version, f"models/bundle/golden/{number:02d}.png")}
    uses["! 3"].add(Use(WORKSPACE, "models/champion/bundle/golden/03.png"))
    uses["others"] = {Use(WORKSPACE, "data/prepared/test/keys.npy")}
    copies = golden_copies(Folder(tmp_path), uses, versions, {ONE})
    assert copies == {versions[0]: ["b 3"], versions[1]: ["! 3"], versions[2]: ["c 3"]}
    assert needed(uses, copies) == {"v0.0.2": ["b 3"], WORKSPACE: ["! 3"]}
    assert golden_copies(Folder(tmp_path), uses, versions, {OTHER}).keys() == set(versions[:3])
    done = _look_up(Folder(tmp_path, uses), Purge((ONE,), "ada", "2026-11-30", "consent"))
    assert done.objects == {"cache": ["c 3"]}  # what no one can serve goes
    assert done.golden == {"v0.0.2": ["b 3"], WORKSPACE: ["! 3"]}
    assert done.models is not None
    assert done.models.keys() == set(versions)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (ONE + OTHER, OTHER, "was trained on it, and its bundle shows a small copy"),  # one test image is too few
        (OTHER * 9 + ONE, OTHER * 8, "was trained on it"),
        (OTHER, ONE, "was tested with it, and its bundle shows a small copy among the golden images"),
        (OTHER, OTHER * 63 + ONE, "was tested with it"),
        (OTHER, OTHER, "had it in its data, and did not use it"),
        (None, None, "had it in its data, and may have used it"),
    ],
)
def test_each_version_says_what_its_models_had(
    tmp_path: Path, train: str | None, test: str | None, expected: str
) -> None:
    uses = {"tar": {Use("v1", "data/raw/0001/a.tar")}, "picture": {Use("v1", "reports/quarantine.png")}}
    for name, keys in (("train", train), ("test", test)):
        if keys is not None:
            write_keys(tmp_path / name, keys)
            uses[name] = {Use("v1", f"data/prepared/{name}/keys.npy"), Use("v2", f"data/prepared/{name}/keys.npy")}
    (tmp_path / "manifest").write_bytes(b"a manifest")
    uses["manifest"] = {Use("v1", f"models/pretrained/{MANIFEST}")}
    uses |= {f"golden {one}": {Use("v1", f"models/bundle/golden/{one:02d}.png")} for one in range(8)}
    candidate = hashlib.sha256(b"a manifest").hexdigest()[:12]
    (found,) = models(Folder(tmp_path), uses, {"tar"}, {ONE}).items()
    assert found[0] == "v1"
    assert found[1].startswith(expected)
    assert found[1].endswith(f"(candidate {candidate})")
    assert ("shows a small copy" in found[1]) == ("shows" in expected)
    uses |= {name: {Use("v1", f"data/explore/{name}")} for name in ("sprites/00000.jpg", "index/vectors.npy")}
    uses["other"] = {Use("v2", "data/explore/sprites/00000.jpg")}
    assert pictures(uses, {"v1"}) == {"picture", "sprites/00000.jpg", "index/vectors.npy"}
