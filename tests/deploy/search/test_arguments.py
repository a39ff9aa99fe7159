"""Every public argument of deploy that has a wrong type is refused by an error of deploy, which names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploy
from deploy.candidate import check
from deploy.errors import DeployError
from deploy.folders.folder import Options, embed_files, image_files
from deploy.registry import resolve, version, versions
from deploy.search.export import export_index
from deploy.search.few_shot import FewShot
from deploy.search.index import Index
from deploy.triton import export_triton
from tests.deploy.conftest import encoded, noise, random_vectors

NAMES = ["a", "b", "c", "d"]
VECTORS = random_vectors(4)
NUMBERS = [1.5, -1, 0, 10**30, np.nan, True]
OTHERS = ["\0a", object(), ["a", 1], [None], {"a": 1}, {1, 2}, b"x", np.array(["a", "b"]), Ellipsis]
WRONG: dict[str, list[Any]] = {
    "path": [*NUMBERS, *OTHERS, None],
    "trust": [*NUMBERS, *OTHERS],
    "paths": [*NUMBERS, *OTHERS, None],
    "positive": ["a", *NUMBERS, *OTHERS],
    "threads": ["a", *NUMBERS, 100_000, *OTHERS],
    "number": ["a", None, np.nan, *OTHERS],
    "limit": ["a", None, -1, 0, 10**30, np.nan, *OTHERS],
    "name": [*NUMBERS, *OTHERS],
    "truth": ["no", None, 1, *OTHERS],
    "text": ["a", *NUMBERS, *OTHERS],
    "encoder": ["", "\ud800", *NUMBERS, *OTHERS[1:]],
    "parts": ["a", None, *NUMBERS, *OTHERS, [(["a"],)], [(["a"], "x")], [("a", VECTORS[:1])], [(["a"], None)]],
    "vectors": ["a", None, *OTHERS, [[1.0], [1.0, 2.0]], VECTORS.astype(complex)],
    "texts": ["a", None, *NUMBERS, *OTHERS, ["a", "b", "c", 1]],
    "ids": ["a", None, *NUMBERS, object(), ["a", 1], [None], {1, 2}, b"x", Ellipsis],
    "metadata": ["a", [], 0, "", [1, 2], {"\ud800": NAMES}, {"when": np.array(["2026-01-01"] * 4, "M8[ns]")}],
    "row": ["a", None, 1.5, -1, 4, 10**30, True, *OTHERS],
    "where": ["a", *NUMBERS, *OTHERS],
    "mask": ["a", *NUMBERS, *OTHERS],
    "providers": [None, "CPUExecutionProvider", *NUMBERS, *OTHERS],
}
ARGUMENTS = {
    "load": {"bundle": "path", "threads": "threads", "variant": "text", "trust": "trust", "providers": "providers"},
    "embed": {"batch_size": "positive", "normalize": "truth", "on_error": "text", "workers": "positive"},
    "embed_iter": {"batch_size": "positive", "normalize": "truth", "on_error": "text", "workers": "positive"},
    "classify": {"top_k": "positive", "on_error": "text", "batch_size": "positive"},
    "build": {"vectors": "vectors", "ids": "texts", "encoder": "encoder", "metric": "text", "dtype": "text"}
    | {"metadata": "metadata"},
    "open": {"directory": "path", "encoder": "encoder", "verify": "truth"},
    "write": {"directory": "path", "parts": "parts", "encoder": "encoder", "metric": "text", "dtype": "text"}
    | {"approximate": "truth", "replace": "truth"},
    "merge": {"sources": "paths", "directory": "path", "encoder": "encoder", "approximate": "truth"}
    | {"replace": "truth"},
    "add": {"directory": "path", "parts": "parts", "encoder": "encoder"},
    "update": {"directory": "path", "parts": "parts", "encoder": "encoder"},
    "delete": {"directory": "path", "ids": "ids", "encoder": "encoder"},
    "save": {"directory": "path", "approximate": "truth", "replace": "truth"},
    "metadata": {"row": "row"},
    "check_encoder": {"encoder": "encoder"},
    "search": {"queries": "vectors", "encoder": "encoder", "mask": "mask", "approximate": "truth", "where": "where"},
    "duplicates": {"threshold": "number"},
    "few_shot": {"vectors": "vectors", "labels": "texts", "method": "text"},
    "predict": {"vectors": "vectors"},
    "resolve": {"path": "path"},
    "version": {"path": "path"},
    "versions": {"path": "path"},
    "export_index": {"index": "parts", "store": "text", "file": "path"},
    "export_triton": {"bundle": "path", "repository": "path", "variant": "text", "trust": "trust"},
    "check": {"directory": "path", "memory_mb": "positive", "seconds": "limit", "variant": "name", "trust": "trust"},
    "image_files": {"paths": "paths"},
    "embed_files": {"encoder": "parts", "files": "paths", "out": "path", "format": "text", "normalize": "truth"}
    | {"batch_size": "positive", "threads": "threads"},
}


@pytest.fixture
def calls(bundle: Path, tmp_path: Path) -> dict[str, Callable[..., Any]]:
    """Each function with arguments that it accepts, of which the test replaces one."""
    encoder, index = deploy.load(bundle, threads=1), Index.build(VECTORS, NAMES, "e")
    index.save(tmp_path / "saved")
    saved, new, picture = tmp_path / "saved", tmp_path / "new", encoded(noise(0))
    part = {"parts": [(["z"], VECTORS[:1])], "encoder": "e"}

    def embed(files: Any, encoder: Any = encoder, out: Any = new, **given: Any) -> int:
        return embed_files(encoder, files, out, Options(**given))

    functions: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "load": (deploy.load, {"bundle": bundle}),
        "embed": (encoder.embed, {"images": picture}),
        "embed_iter": (encoder.embed_iter, {"images": picture}),
        "classify": (encoder.classify, {"images": picture}),
        "build": (Index.build, {"vectors": VECTORS, "ids": NAMES, "encoder": "e"}),
        "open": (Index.open, {"directory": saved}),
        "write": (Index.write, {"directory": new, **part}),
        "merge": (Index.merge, {"sources": [saved], "directory": new}),
        "add": (Index.add, {"directory": saved, **part}),
        "update": (Index.update, {"directory": saved, **part}),
        "delete": (Index.delete, {"directory": saved, "ids": ["a"]}),
        "save": (index.save, {"directory": new}),
        "metadata": (index.metadata, {}),
        "check_encoder": (index.check_encoder, {}),
        "search": (index.search, {"queries": VECTORS}),
        "duplicates": (lambda **given: list(index.duplicates(**given)), {}),
        "few_shot": (FewShot, {"vectors": VECTORS, "labels": ["x", "x", "y", "y"]}),
        "predict": (FewShot(VECTORS, ["x", "x", "y", "y"]).predict, {}),
        "resolve": (resolve, {"path": bundle}),
        "version": (version, {"path": bundle}),
        "versions": (versions, {"path": bundle}),
        "export_index": (export_index, {"index": index, "store": "qdrant", "file": new}),
        "export_triton": (export_triton, {"bundle": bundle, "repository": new}),
        "check": (check, {"directory": bundle}),
        "image_files": (image_files, {}),
        "embed_files": (embed, {"files": [str(tmp_path / "picture")]}),
    }
    return {name: lambda f=function, d=usual, **given: f(**d | given) for name, (function, usual) in functions.items()}


def is_refused(function: Callable[..., Any], **given: Any) -> bool:
    try:
        function(**given)
    except DeployError:
        return True
    return False


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_type_is_refused_by_name(name: str, calls: dict[str, Callable[..., Any]], tmp_path: Path) -> None:
    for argument, kind in ARGUMENTS[name].items():
        for wrong in WRONG[kind]:
            assert is_refused(calls[name], **{argument: wrong}), f"{name}({argument}={wrong!r:.40})"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["bundle", "saved"]
    assert list(Index.open(tmp_path / "saved").ids) == NAMES


def test_the_message_names_the_argument(calls: dict[str, Callable[..., Any]]) -> None:
    for name, argument, wrong, message in (
        ("duplicates", "threshold", "a", "threshold='a'; give a number above -1, up to 1"),
        ("embed", "workers", 10**30, "workers=1000000000000000000000000000000, and the least is 1; give an integer"),
        ("embed", "normalize", "no", "normalize='no'; give True or False"),
        ("open", "directory", None, "directory=None; give a path"),
        ("add", "parts", [(["z"],)], r"a part is \(\['z'\],\); give an iterable of \(ids, vectors\)"),
    ):
        with pytest.raises(deploy.DeployError, match=message):
            calls[name](**{argument: wrong})


def test_a_path_may_be_a_string(calls: dict[str, Callable[..., Any]], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(0)))
    assert calls["resolve"](path=str(bundle)) == bundle
    assert calls["image_files"](paths=str(tmp_path / "a.png")) == [str(tmp_path / "a.png")]
    assert calls["embed_files"](files=[tmp_path / "a.png"], out=str(tmp_path / "embedded")) == 0
    assert calls["export_triton"](bundle=str(bundle), repository=str(tmp_path / "triton")).is_dir()
    calls["export_index"](file=str(tmp_path / "points"))
    assert (tmp_path / "points").is_file()


def test_integers_and_truths_of_numpy_are_accepted(calls: dict[str, Callable[..., Any]]) -> None:
    assert len(calls["embed"](batch_size=np.int64(2), normalize=np.True_, workers=np.int32(1)).vectors) == 1
