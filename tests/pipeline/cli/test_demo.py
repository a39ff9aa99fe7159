"""The demo's inbox: the sample as promised, and among it files that validation must tell apart."""

import csv
import io
import tarfile
from collections import Counter

import pytest
from PIL import Image

from deploy.errors import ImageError
from deploy.images.preprocess import canonicalize, open_image
from pipeline.cli.demo import fill_inbox, found_in_the_wild
from pipeline.sample.make import ARCHIVE, CLASSES
from pipeline.workspace import Workspace
from tests.conftest import draw, encode


@pytest.mark.seconds
def test_the_sample_is_balanced_small_and_free_of_duplicates() -> None:
    assert ARCHIVE.stat().st_size < 6e6
    with tarfile.open(ARCHIVE) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}
    rows = list(csv.DictReader(io.StringIO(contents.pop("labels.csv").decode())))
    assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, 800)
    assert {row["path"] for row in rows} == {name for name in contents if name.startswith("unlabeled/")}
    assert Counter(name.split("/")[1] for name in contents if name.startswith("test/")) == dict.fromkeys(CLASSES, 200)
    assert len({Image.open(io.BytesIO(data)).tobytes() for data in contents.values()}) == 10_000


@pytest.mark.seconds
def test_the_inbox_holds_the_sample_and_the_hard_cases(workspace: Workspace) -> None:
    fill_inbox(workspace)
    files = [path for path in workspace.inbox.rglob("*") if path.is_file()]
    assert len(files) == 10_001 + len(found_in_the_wild(encode(draw(0, 1))))


def test_each_hard_case_is_refused_or_converted_as_its_name_says() -> None:
    files = found_in_the_wild(encode(draw(0, 1)))
    verdicts = {}
    for path, data in files.items():
        try:
            verdicts[path.rpartition("/")[2]] = tuple(canonicalize(open_image(data))[1])
        except ImageError as error:
            verdicts[path.rpartition("/")[2]] = error.reason
    refused = {
        "empty.jpg",
        "error-page.jpg",
        "truncated.jpg",
        "truncated.png",
        "flipped-byte.png",
        "decompression-bomb.png",
    }
    refused |= {"invisible.png", "document.pdf"}
    assert {name for name, verdict in verdicts.items() if isinstance(verdict, str)} == refused
    assert verdicts["empty.jpg"] == "empty_file"
    assert verdicts["decompression-bomb.png"] == "bomb"
    assert verdicts["invisible.png"] == "fully_transparent"
    assert "exif_transpose" in verdicts["phone-rotated.jpg"]
    assert "cmyk_to_rgb" in verdicts["press-cmyk.jpg"]
    assert "uint16_to_uint8" in verdicts["microscope-16bit.png"]
    assert "alpha_on_white" in verdicts["logo-with-alpha.png"]
    assert "first_frame" in verdicts["animated.gif"]
