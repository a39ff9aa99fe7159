"""A batch, and the processes that are to share it."""

import subprocess
import sys
from pathlib import Path

import pytest

from simclr_core.__main__ import main
from simclr_core.data.shares import require_shares
from simclr_core.errors import BatchSizeError
from tests.sentences import assert_plain


@pytest.mark.parametrize(("batch_size", "images", "processes"), [(16, 96, 1), (16, 16, 8), (2, 2, 1)])
def test_equal_shares_are_accepted(batch_size: int, images: int, processes: int) -> None:
    require_shares(batch_size, images, processes)


@pytest.mark.parametrize(
    ("batch_size", "images", "processes", "said"),
    [
        (16, 8, 16, "16 processes for 8 training images, .* set SIMCLR_PROCESSES to at most 4"),
        (16, 1, 2, "set SIMCLR_PROCESSES to at most 1"),
        (256, 96, 2, "batch_size is 256, but there are 96 training images"),
        (15, 96, 2, "batch_size is 15, which 2 processes cannot share equally; give a multiple of 2"),
        (8, 96, 8, "leaves each of 8 processes one image and nothing to compare it with; give 16 or more"),
    ],
)
def test_other_shares_are_refused(batch_size: int, images: int, processes: int, said: str) -> None:
    with pytest.raises(BatchSizeError, match=said) as caught:
        require_shares(batch_size, images, processes)
    assert_plain(str(caught.value))


@pytest.mark.parametrize("stage", [["pretrain"], ["replay", "3"]])
def test_too_many_processes_are_refused_before_any_starts(
    stage: list[str], prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMCLR_PROCESSES", "64")
    assert main(["--workspace", str(prepared), *stage]) == 2
    assert "64 processes for 96 training images" in capsys.readouterr().err


@pytest.mark.seconds
def test_that_loads_no_torch(prepared: Path) -> None:
    code = (
        "import os, sys; os.environ['SIMCLR_PROCESSES'] = '64'\n"
        "from simclr_core.__main__ import main\n"
        f"assert main(['--workspace', {str(prepared)!r}, 'pretrain']) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0
