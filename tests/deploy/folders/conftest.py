"""A folder of photographs, some of which cannot be read."""

from pathlib import Path

import pytest

from tests.deploy.conftest import encoded, noise

FILES, BAD, BATCH = 23, (3, 4, 17), 2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:02d}.png").write_bytes(b"bad" if number in BAD else encoded(noise(number)))
    return folder
