"""An index opens as it was saved; damaged files and sources that do not match are refused."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from deploy.artifact import publish, verify
from deploy.encoder import Encoder
from deploy.errors import (
    ArgumentError,
    CorruptArtifactError,
    IndexFormatError,
    IndexMismatchError,
    MissingArtifactError,
)
from deploy.folders.folder import Options, embed_files
from deploy.search.card import FORMAT_VERSION
from deploy.search.index import Index
from tests.deploy.conftest import DIM, ENCODER, build, encoded, noise, random_vectors, rewrite, save_and_open


def test_saving_again_changes_no_byte(tmp_path: Path) -> None:
    save_and_open(build(random_vectors(500, 3)), tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one" / "MANIFEST.sha256").read_text() == (tmp_path / "two" / "MANIFEST.sha256").read_text()


def test_an_opened_index_is_the_saved_one(tmp_path: Path) -> None:
    ids = ["späte Ernte/c,\n.webp", "", "caf\udce9.jpg", "日本.png"]
    index = Index.build(random_vectors(4), ids, ENCODER)
    index.save(tmp_path / "index")
    opened = Index.open(tmp_path / "index", ENCODER)
    assert list(opened.ids) == list(index.ids) == ids
    assert np.array_equal(opened.vectors, index.vectors)
    expected = {"encoder": ENCODER, "name": None, "dim": 7, "metric": "cosine", "dtype": "float32", "count": 4}
    assert opened.info == index.info == expected | {"columns": {}, "approximate": False}
    assert len(opened) == 4
    with pytest.raises(IndexError):
        opened.ids[4]
    subprocess.run(["sha256sum", "--check", "--quiet", "MANIFEST.sha256"], cwd=tmp_path / "index", check=True)


def test_the_card_says_what_the_files_are(tmp_path: Path) -> None:
    build(random_vectors(6)).save(tmp_path / "index")
    card = json.loads((tmp_path / "index" / "index.json").read_text())
    assert card.pop("longest") == pytest.approx(1, abs=1e-6)
    assert card.pop("format_version") == FORMAT_VERSION
    assert (card.pop("columns"), card.pop("graph")) == ([], None)
    assert card == {"encoder": ENCODER, "name": None, "dim": 7, "metric": "cosine", "dtype": "float32", "count": 6}


def test_an_existing_index_is_replaced_only_when_asked(tmp_path: Path) -> None:
    old = save_and_open(build(random_vectors(3)), tmp_path / "index")
    with pytest.raises(ArgumentError, match="already exists"):
        build(random_vectors(4)).save(tmp_path / "index")
    new = save_and_open(build(random_vectors(4)), tmp_path / "index", replace=True)
    assert (len(old.search(random_vectors(1)).ids[0]), len(new)) == (3, 4), "an open index still searches the old files"
    (grown := Index.open(tmp_path / "index")).save(tmp_path / "index", replace=True)
    assert np.array_equal(Index.open(tmp_path / "index").vectors, grown.vectors)


def test_what_is_not_an_index_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.png", "photos/index.json", "a file"):
        (tmp_path / name).write_text("the only copy")
    for place in ("photos", "a file"):
        with pytest.raises(ArgumentError, match=f"{place}: is not an index and would be lost"):
            build(random_vectors(3)).save(tmp_path / place, replace=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a file", "a.png", "index.json", "photos"]


def test_the_first_part_says_how_long_the_vectors_of_an_id_are(tmp_path: Path) -> None:
    parts = [(["a"], random_vectors(1)), (["b"], random_vectors(1))]
    Index.write(tmp_path / "index", iter(parts), ENCODER, "inner_product")
    written = Index.open(tmp_path / "index", ENCODER)
    assert [written.ids[row] for row in range(len(written))] == ["a", "b"]
    assert np.array_equal(written.vectors, np.concatenate([vectors for _, vectors in parts]))
    with pytest.raises(ArgumentError, match="no vectors to index; give some, or the encoder itself"):
        Index.write(tmp_path / "empty", [], ENCODER)


def test_a_fault_while_writing_leaves_nothing(tmp_path: Path) -> None:
    parts = [(["a"], random_vectors(1)), (["a"], random_vectors(1))]
    with pytest.raises(ArgumentError, match="given twice"):
        Index.write(tmp_path / "index", parts, ENCODER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vectors.npy", "ids.npy", "id_offsets.npy", "index.json", "neighbours.usearch"])
def test_a_changed_byte_is_found_at_open(name: str, tmp_path: Path) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index", approximate=True)
    content = bytearray((tmp_path / "index" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "index" / name).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=name):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vectors.npy", b"", "build the index again"),
        ("vectors.npy", b"\x93NUMPY\x01\x00", "build the index again"),
        (
            "vectors.npy",
            np.ones((20, 8), np.float32),
            r"vectors\.npy has the header .*\(20, 8\).* not .*'<f4'.*\(20, 7\)",
        ),
        ("vectors.npy", np.ones((20, 7)), "<f8"),
        ("vectors.npy", np.asfortranarray(np.ones((20, 7), np.float32)), "vectors.npy"),
        ("vectors.npy", np.array(["object"] * 20, object), "build the index again"),
        ("id_offsets.npy", np.arange(20), r"id_offsets\.npy has the header .*\(20,\)"),
        ("id_offsets.npy", np.r_[np.arange(20)[::-1], 110], "do not ascend"),
        ("id_offsets.npy", np.r_[np.arange(20), -5], "do not ascend"),
        ("ids.npy", np.ones(5, np.uint8), r"ids\.npy has the header .*\(5,\)"),
        ("index.json", b"[]", "build the index again"),
        ("index.json", b"\xff", "build the index again"),
        ("index.json", b"{}", "format version None, this release reads 1 and 2"),
        ("index.json", b'{"format_version": 1, "encoder": "a"}', "build the index again"),
        ("index.json", b'{"format_version": 3}', "format version 3"),
    ],
)
def test_files_that_do_not_fit_are_refused_even_unverified(
    name: str, content: Any, message: str, tmp_path: Path
) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index")
    rewrite(tmp_path / "index", name, content)
    for check in (True, False):
        with pytest.raises(IndexFormatError, match=message):
            Index.open(tmp_path / "index", verify=check)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "encoder": ["", 3, None, "a" * 1001, ["a"]],
        "name": [3, "a" * 1001, {}],
        "dim": [0, -7, 7.0, "7", True, 10**30, None],
        "metric": ["euclid", None, ["cosine"], {}],
        "dtype": ["int8", 4, ["float32"]],
        "count": [-1, 20.0, "20", True, 10**4000, None],
        "longest": [-1, "1", None, 1e300, float("nan"), float("inf"), True],
        "columns": [
            None,
            {},
            [["a", "<i8"]],
            [["a", "<i8", 3], ["a", "<i8", 3]],
            [["a", "|O", 3]],
            [["", "<i8", 3]],
            [7],
        ],
        "graph": ["20", -1, 2.5, True, []],
        "unknown": [1],
    }.items(),
)
def test_every_wrong_field_of_the_card_is_named(field: str, values: list[Any], tmp_path: Path) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index")
    card = json.loads((tmp_path / "index" / "index.json").read_text())
    contents = [json.dumps(card | {field: value}) for value in values]
    contents.append(json.dumps({name: value for name, value in card.items() if name != field}))
    for content in contents[: -1 if field == "unknown" else None]:
        rewrite(tmp_path / "index", "index.json", content.encode())
        with pytest.raises(IndexFormatError, match=rf"index\.json.*{field}|is not JSON: Exceeds the limit"):
            Index.open(tmp_path / "index")


@pytest.mark.parametrize("content", [b"[" * 900_000, b'{"a":' * 180_000, b" " * 2_000_000, b"1" * 900_000, b"nan"])
def test_a_card_that_is_hard_to_parse_is_refused(content: bytes, tmp_path: Path) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index")
    rewrite(tmp_path / "index", "index.json", content)
    with pytest.raises(IndexFormatError, match=r"index\.json (is not JSON|has more than 1,000,000 bytes)"):
        Index.open(tmp_path / "index")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("column_0_codes.npy", np.full(20, 20, np.int32), "positions outside"),
        ("column_0_codes.npy", np.full(20, -2, np.int32), "positions outside"),
        ("column_0_values.npy", np.arange(20)[::-1].copy(), "do not ascend"),
        ("column_1_values.npy", np.full(20, np.nan), "not finite"),
        ("column_2_values.npy", np.full(20, 0x110000, np.uint32).view("<U1"), "characters that do not exist"),
        ("graph_rows.npy", np.zeros(20, np.int64), "does not name each of the 20 rows once"),
        ("graph_rows.npy", np.arange(20) - 1, "does not name each"),
        ("graph_rows.npy", np.arange(20) + 1, "does not name each"),
    ],
)
def test_metadata_and_graphs_that_do_not_fit_are_refused(name: str, content: Any, message: str, tmp_path: Path) -> None:
    metadata = {"a": list(range(20)), "b": np.arange(20) / 2, "c": list("abcdefghijklmnopqrst")}
    save_and_open(build(random_vectors(20), metadata=metadata), tmp_path / "index", approximate=True)
    rewrite(tmp_path / "index", name, content)
    with pytest.raises(IndexFormatError, match=message):
        Index.open(tmp_path / "index")


def test_directories_that_are_not_an_index_are_refused(tmp_path: Path) -> None:
    for check in (True, False):
        with pytest.raises(MissingArtifactError, match="no such directory"):
            Index.open(tmp_path / "none", verify=check)
        with pytest.raises(MissingArtifactError, match=r"has no MANIFEST\.sha256"):
            Index.open(tmp_path, verify=check)
    with publish(tmp_path / "other") as work:
        (work / "a.txt").write_text("a")
    with pytest.raises(IndexFormatError, match=r"index\.json"):
        Index.open(tmp_path / "other")
    with pytest.raises(IndexFormatError, match=r"has no embedding\.json; give a directory made by"):
        Index.merge([tmp_path / "other"], tmp_path / "out")


def test_an_unverified_index_reads_only_what_it_needs(tmp_path: Path) -> None:
    save_and_open(build(random_vectors(20)), tmp_path / "index")
    content = bytearray((tmp_path / "index" / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "index" / "vectors.npy").write_bytes(content)
    assert len(Index.open(tmp_path / "index", verify=False)) == 20


@pytest.fixture
def embedded(bundle: Path, tmp_path: Path) -> tuple[Encoder, list[Path]]:
    """Two directories of embeddings; the second has raw vectors."""
    encoder, folders = deploy.load(bundle, threads=1), []
    for number in range(2):
        photos = tmp_path / f"photos{number}"
        photos.mkdir()
        for seed in range(3):
            (photos / f"{seed},\n.png").write_bytes(encoded(noise(10 * number + seed)))
        (photos / "bad.png").write_bytes(b"")
        files = sorted(str(path) for path in photos.iterdir())
        embed_files(encoder, files, tmp_path / f"embeddings{number}", Options(normalize=number == 0))
        folders.append(tmp_path / f"embeddings{number}")
    return encoder, folders


def test_embeddings_and_indexes_are_merged(embedded: tuple[Encoder, list[Path]], tmp_path: Path) -> None:
    encoder, folders = embedded
    Index.merge(folders[0], tmp_path / "index", encoder)
    Index.merge([tmp_path / "index", folders[1]], tmp_path / "index", encoder, replace=True)
    index = Index.open(tmp_path / "index", encoder)
    verify(tmp_path / "index")
    expected = [str(tmp_path / f"photos{number}" / f"{seed},\n.png") for number in range(2) for seed in range(3)]
    assert list(index.ids) == expected
    for path in expected:
        found = index.search(encoder.embed(path).vectors, 1)
        assert found.ids == [[path]]
        assert found.scores[0, 0] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ArgumentError, match="is given twice"):
        Index.merge([tmp_path / "index", folders[1]], tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_sources_that_do_not_match_are_not_merged(embedded: tuple[Encoder, list[Path]], tmp_path: Path) -> None:
    encoder, folders = embedded
    with pytest.raises(IndexMismatchError, match="embeddings0: made by encoder"):
        Index.merge(folders, tmp_path / "index", "other")
    save_and_open(build(random_vectors(2, DIM)), tmp_path / "foreign")
    with pytest.raises(IndexMismatchError, match="foreign: made by encoder aaaaaaaaaaaa, not"):
        Index.merge([*folders, tmp_path / "foreign"], tmp_path / "index")
    Index.build(random_vectors(1, DIM), ["a"], encoder, "inner_product").save(tmp_path / "inner")
    with pytest.raises(IndexMismatchError, match="inner: inner_product of float32"):
        Index.merge([*folders, tmp_path / "inner"], tmp_path / "index")
    with pytest.raises(ArgumentError, match="nothing to index"):
        Index.merge([], tmp_path / "index")
    content = bytearray((folders[1] / "vectors.npy").read_bytes())
    content[-1] ^= 1
    (folders[1] / "vectors.npy").write_bytes(content)
    with pytest.raises(CorruptArtifactError):
        Index.merge(folders, tmp_path / "index")
    rewrite(folders[0], "ids.csv", b"row,path\n0,a\n")
    with pytest.raises(IndexFormatError, match=r"ids\.csv lists 1 of 3 rows"):
        Index.merge(folders[:1], tmp_path / "index")
