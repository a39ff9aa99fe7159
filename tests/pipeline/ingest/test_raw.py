"""Tars of raw batches, read header by header, held against what tarfile makes of them."""

import io
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.ingest.raw import list_tar, read_placed
from tests.repetitions import repeated, repetitions

Found = list[tuple[str, int, bytes]]


def tar_of(path: Path, chance: random.Random, form: int) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for number in range(chance.randrange(6)):
            length = chance.choice([10, 64, 64, 64, 64 if form == tarfile.USTAR_FORMAT else 140])
            member = tarfile.TarInfo(f"{chance.randbytes(length // 2).hex()}.png")
            data = chance.randbytes(chance.choice([0, 1, 511, 512, 513, 2000]))
            member.size, member.mtime = len(data), number
            tar.addfile(member, io.BytesIO(data))
    return path


def of_tarfile(path: Path) -> Found | None:
    """What the library reads; None where it stops with an error, which ours has to do as well."""
    found: Found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is None:
                    return None
                found.append((member.name.partition(".")[0], member.offset_data, file.read()))
    except tarfile.TarError:
        return None
    return found


def ours(path: Path) -> Found | None:
    try:
        return list(read_placed(path))
    except (tarfile.TarError, AssertionError):
        return None


@repeated
def test_tars_are_read_as_by_the_library_whole_or_damaged(tmp_path: Path) -> None:
    for seed in range(repetitions(60, all=2000)):
        chance = random.Random(seed)
        form = chance.choice([tarfile.USTAR_FORMAT, tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        path = tar_of(tmp_path / "a.tar", chance, form)
        assert ours(path) == of_tarfile(path), seed
        data = path.read_bytes()
        for _ in range(8):
            spoiled = bytearray(data)
            if chance.random() < 0.5:
                del spoiled[chance.randrange(len(spoiled)) :]
            else:
                spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
            path.write_bytes(spoiled)
            assert ours(path) == of_tarfile(path), seed


def test_no_header_of_a_sound_tar_is_left_to_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"{number:064x}.jpeg")
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(700)))
    monkeypatch.setattr(tarfile, "open", None)
    assert list(list_tar(path)) == [f"{number:064x}" for number in range(3)]
