"""Batch after batch, with whatever happens to what is kept in between: the bytes of one validation of everything."""

import random
import shutil
from pathlib import Path

import pytest

from pipeline.validation import manifest
from pipeline.validation.__main__ import run
from pipeline.validation.probe import facts_cache, scan
from pipeline.validation.verdict.overrides import write
from pipeline.workspace import Workspace, find
from tests.pipeline.validation.corpus.corpus import bad_kinds, encoded, good_kinds, picture, write_batch
from tests.pipeline.validation.test_stage import outputs, params
from tests.repetitions import repeated, repetitions

PLACES = (*("unlabeled", "labeled/cat", "labeled/dog", "test/cat") * 3, "labeled/caf\udce9")


def contents(chance: random.Random) -> list[tuple[str, bytes]]:
    """Sound images, each in three forms that show the same or nearly the same, and files of every other kind."""
    sound = [picture(seed, 90, 70) for seed in range(4)]
    forms = [
        (f"{seed}.{form}", encoded(image, form.upper(), **({"quality": 90} if form == "jpeg" else {})))
        for seed, image in enumerate(sound)
        for form in ("png", "bmp", "jpeg")
    ]
    return forms + [(kind.name, kind.data) for kind in chance.sample(good_kinds() + bad_kinds(), 6)]


def damage(folder: Path, chance: random.Random) -> None:
    """What may happen to a cache."""
    parts = sorted(path for path in folder.rglob("*") if path.is_file())
    if parts and chance.random() < 0.8:
        part = chance.choice(parts)
        data = bytearray(part.read_bytes())
        data[chance.randrange(len(data))] ^= 1
        part.write_bytes(data[: chance.choice([len(data), len(data) // 2])])
    elif chance.random() < 0.5:
        shutil.rmtree(folder, ignore_errors=True)


def check(workspace: Workspace, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    params(workspace.root, min_images=2, max_quarantine_rate=0.9, drift={"min_images": 10})
    monkeypatch.setattr(manifest, "PART_ROWS", 5)
    pool = contents(chance)
    numbers = chance.sample([9998, 9999, 10000, 10001, 7, 12], 3)
    write(workspace.overrides, ())
    for number in sorted(numbers):
        files = [
            (f"{chance.choice(PLACES)}/{chance.randrange(99)} {name}", data) for name, data in chance.choices(pool, k=9)
        ]
        write_batch(workspace.raw, f"{number:04d}", files)
        for size, where in ((chance.randrange(2, 9), (facts_cache, "MERGED_ROWS")), (3, (scan, "SAVED_CONTENTS"))):
            monkeypatch.setattr(*where, size)
        monkeypatch.setattr(scan, "BYTES_AT_ONCE", chance.choice([1, 500, 10**6]))
        monkeypatch.setattr(facts_cache, "MANY_PARTS", chance.choice([0, 16]))
        run(workspace)
        damage(workspace.facts, chance)
    run(workspace)
    found = outputs(workspace.root)
    shutil.rmtree(workspace.scratch)
    for name in ("data/manifest", "reports"):
        shutil.rmtree(workspace.root / name)
    run(find(workspace.root))
    assert outputs(workspace.root) == found, seed


@pytest.mark.slow
@repeated
def test_batch_after_batch_gives_the_bytes_of_everything_at_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(repetitions(1, all=20)):
        shutil.copytree(workspace.root, tmp_path / str(seed))
        check(find(tmp_path / str(seed)), seed, monkeypatch)
