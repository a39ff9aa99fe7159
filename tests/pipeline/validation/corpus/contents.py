"""Files and facts made by hand, of which a test says only what it is about, and the verdicts on them."""

import base64
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from pipeline.validation.probe.facts import SKETCH_BYTES, Facts
from pipeline.validation.tables import FACTS, FILES
from pipeline.validation.verdict.verdict import Policy, judge

POLICY = {
    "min_side": 8,
    "max_aspect": 10.0,
    "min_standard_deviation": 2.0,
    "allow_animated": False,
    "keep_suspect_streams": False,
    "near_distance": 3,
    "quarantine_near_copies": False,
    "placeholder_copies": 20,
}

SKETCH = base64.b64encode(bytes(SKETCH_BYTES)).decode()

File = dict[str, str | None]


def seen(path: str, sha256: str = "0", split: str = "train", label: str | None = None, batch: str = "0001") -> File:
    where = {"path": path, "split": split, "label": label}
    return where | {"sha256": sha256, "batch": "0001", "ingest_batch": batch}


def image(sha256: str = "0", pixels: str = "p", width: int = 50, height: int = 50, **known: Any) -> Facts:
    """An image without fault. Its perceptual hashes are not trusted unless the test gives one."""
    channels = {f"{channel}_{name}": 40.0 for channel in ("red", "green", "blue") for name in ("mean", "std")}
    sides = {"width": width, "height": height, "trailing_bytes": 0, "frames": 1, "flat_tail": 0.0}
    hashes = {"phash": 0, "dhash": 0, "sketch": SKETCH, "hash_trusted": "phash" in known, "pixel_hash": pixels}
    luma = {"luma_p05": 20, "luma_p99": 200, "entropy": 7.0}
    return Facts(sha256, 100, "png", True, **{"format": "PNG", **channels, **sides, **hashes, **luma, **known})


def tables(files: Sequence[File], contents: Sequence[Facts]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """FILES and FACTS."""
    return pl.DataFrame(files, FILES), pl.DataFrame([vars(one) for one in contents], FACTS)


def verdicts(
    files: Sequence[File],
    contents: Sequence[Facts],
    *,
    allowed: Collection[str] = (),
    denied: Mapping[str, str] | None = None,
    **policy: Any,
) -> list[dict[str, Any]]:
    """JUDGED, file by file."""
    known = Policy(**(POLICY | policy))
    return judge(*tables(files, contents), known, allowed=allowed, denied=denied or {}).to_dicts()


def reasons(files: Sequence[File], contents: Sequence[Facts], **given: Any) -> list[tuple[str, ...]]:
    return [tuple(one["reasons"]) for one in verdicts(files, contents, **given)]


def crowd(seed: int, files: int = 40, pictures: int = 16, batches: int = 2) -> tuple[list[File], list[Facts]]:
    """Many copies of a few pictures, of which some look nearly alike: exact, in other bytes, in both splits."""
    chance = random.Random(seed)
    motifs = [chance.getrandbits(64) for _ in range(pictures // 4)]
    shown = [
        {
            "phash": chance.choice(motifs) ^ sum(1 << bit for bit in chance.sample(range(64), chance.randrange(4))),
            "entropy": chance.choice([1.0, 3.9, 4.0, 7.0]),
            "hash_trusted": chance.random() < 0.9,
        }
        for _ in range(pictures)
    ]
    contents = []
    for number in range(2 * pictures):
        picture = chance.randrange(pictures)
        contents.append(image(f"{chance.getrandbits(32):08x}-{number}", f"p{picture}", **shown[picture]))
    homes = {one.sha256: chance.choice(["0001", "0002"]) for one in contents}
    labels = chance.choice([[None], [None, None, "cat"], [None, None, None, "cat", "dog"]])
    found = [
        seen(
            chance.choice(["../", *["a/", "b/"] * 4]) + f"{number}.png",
            chance.choice(contents).sha256,
            chance.choice(["train", "train", "train", "test"]),
            chance.choice(labels),
            f"{chance.randint(1, batches):04d}",
        )
        for number in range(files)
    ]
    return [file | {"batch": homes[str(file["sha256"])]} for file in found], contents
