"""What a browser gets to see of a stage's pictures and reports."""

import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from PIL import Image

from pipeline.defs.pages import LARGEST_BYTES, WIDTH, show
from pipeline.maintenance import records
from pipeline.workspace import Workspace
from tests.conftest import draw, encode

STORED = Path("storage", "pages", "compute_logs")


@pytest.fixture
def instance(workspace: Workspace) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(workspace.root)) as instance:
        yield instance


def served(workspace: Workspace, shown: dg.MetadataValue) -> list[bytes]:
    """What is behind the addresses in it, as Dagster's web server finds it: the inner one first."""
    found = re.findall(r"\((/logs/[^)]+)\)", str(shown.value))
    files = []
    for address in found:
        *folders, name, extension = address.removeprefix("/logs/").split("/")
        files.append((workspace.root.joinpath("storage", *folders) / f"{name}.{extension}").read_bytes())
    return files


@pytest.mark.seconds
def test_a_wide_picture_is_reduced_with_a_link_to_the_full_one(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    file = workspace.root / "curves.png"
    file.write_bytes(encode(draw(0, 0, side=2 * WIDTH)))
    shown = show(instance, file)
    assert isinstance(shown, dg.MarkdownMetadataValue)
    assert len(str(shown.value)) < 1000  # what is longer, the UI hides behind "[Show Markdown]"
    small, whole = served(workspace, shown)
    assert Image.open(io.BytesIO(small)).size == (WIDTH, WIDTH)
    assert len(small) < len(whole)
    assert whole == file.read_bytes()


@pytest.mark.parametrize("data", [encode(draw(0, 0)), b"not a real picture"])
def test_a_small_picture_is_shown_unchanged(workspace: Workspace, instance: dg.DagsterInstance, data: bytes) -> None:
    file = workspace.root / "map.png"
    file.write_bytes(data)
    assert served(workspace, show(instance, file)) == [data, data]
    assert len(list((workspace.root / STORED).iterdir())) == 1


def test_a_report_is_a_link(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    file = workspace.root / "validation.html"
    file.write_text("<p>fine</p>")
    shown = show(instance, file)
    assert str(shown.value).startswith("[validation.html](/logs/")
    assert served(workspace, shown) == [b"<p>fine</p>"]


def test_a_file_that_is_too_large_is_only_named(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    file = workspace.root / "huge.png"
    file.write_bytes(bytes(LARGEST_BYTES + 1))
    assert show(instance, file) == dg.MetadataValue.path(file)
    assert not (workspace.root / STORED).exists()


def test_copies_are_removed_with_old_logs_unless_shown_again(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    old = time.time() - (records.LOG_DAYS + 1) * 24 * 3600
    for name in ("kept", "gone"):
        (workspace.root / f"{name}.html").write_text(name)
        show(instance, workspace.root / f"{name}.html")
    for copy in (workspace.root / STORED).iterdir():
        os.utime(copy, (old, old))
    show(instance, workspace.root / "kept.html")
    assert [path.read_text() for path in records.old_logs(workspace)] == ["gone"]
