"""What holds a content, and what the models of a version had of it."""

import hashlib
import io
from pathlib import Path

import polars as pl
import pytest

from deploy.artifact import MANIFEST
from pipeline.dvc.cache import Cache, Use
from pipeline.purge.holders import holds, models, pictures
from simclr_core.data.shards import write_tar

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

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, md5: str) -> Path:
        return self.folder / md5


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (ONE + OTHER, OTHER, "was trained on it"),
        (OTHER, ONE, "was tested with it, and its bundle may show a small copy"),
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
            (tmp_path / name).write_bytes(bytes.fromhex(keys))
            uses[name] = {Use("v1", f"data/prepared/{name}/keys.npy"), Use("v2", f"data/prepared/{name}/keys.npy")}
    (tmp_path / "manifest").write_bytes(b"a manifest")
    uses["manifest"] = {Use("v1", f"models/pretrained/{MANIFEST}")}
    candidate = hashlib.sha256(b"a manifest").hexdigest()[:12]
    (found,) = models(Folder(tmp_path), uses, {"tar"}, {ONE}).items()
    assert found[0] == "v1"
    assert found[1].startswith(expected)
    assert found[1].endswith(f"(candidate {candidate})")
    assert pictures(uses, {"v1"}) == {"picture"}
