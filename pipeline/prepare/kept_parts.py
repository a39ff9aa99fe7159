"""The parts of raw batches that were prepared before: what did not change is linked, not decoded and encoded again.

    .simclr/prepared/<key>/        where the images of a part are in its shards, and what was summed up

A part is what one raw batch gives one split. Its key is of all that decides its bytes: the raw tars, what was accepted
of them, the parameters and the versions of the decoders. Labels and groups are not among that; they are in the index.
The shards are those in DVC's cache. Where it lacks one, or the folder was deleted, the part is made again, to the same
bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy.artifact import publish, read_files, sha256
from deploy.errors import CorruptArtifactError, MissingArtifactError
from pipeline.dvc import cache
from pipeline.ingest.raw import tars
from pipeline.prepare.pixel_sums import PixelSums
from pipeline.validation.probe.facts_cache import versions
from simclr_core.data.shard_writing import Shard
from simclr_core.data.shards import PLACED
from simclr_core.reporter import emit

LAYOUT = 1  # of a part; another one does not find the parts of this one
MOST_BYTES = 4_000_000_000  # of the files that describe a part


class Original(NamedTuple):
    """Where a file that came in is: in which tar of its batch, and its bytes there."""

    sha256: str
    tar: str
    offset: int
    size: int


class KeptShard(NamedTuple):
    """A shard, how many images it holds, the name of its object, and the stamp of that when its bytes were compared."""

    name: str
    images: int
    md5: str
    stamp: str | None = None


@dataclass(frozen=True)
class Part:
    """The shards of a part, the sums over its pixels, and the files of the least hashes in the order of the batch;
    whether an ``earlier`` run made it."""

    shards: Sequence[Shard]
    sums: PixelSums
    originals: Sequence[Original]
    earlier: bool = False

    @property
    def images(self) -> int:
        return sum(len(shard.placed) for shard in self.shards)


class KeptParts:
    """The parts in ``folder``, whose shards are among DVC's ``objects``; one process uses it at a time."""

    def __init__(self, folder: Path, objects: Path) -> None:
        self._folder = folder
        self._objects = objects
        self._used: set[str] = set()

    def take(self, key: str, folder: Path) -> Part | None:
        """The part of this key with its shards in ``folder``, if it is whole and they are."""
        try:
            files = read_files(self._folder / key, most=lambda _: MOST_BYTES)[1]
        except MissingArtifactError:
            return None
        except CorruptArtifactError as error:
            self._drop(key, error)
            return None
        described = json.loads(files["part.json"])
        kept = [KeptShard(*one) for one in described["shards"]]
        if lacking := [one.name for one in kept if not self._is_whole(one)]:
            self._drop(key, f"DVC's cache lacks {lacking[0]}, or has it with other bytes")
            return None
        for one in kept:
            cache.link(self._place(one), folder / one.name)
        placed = np.split(
            np.load(BytesIO(files["placed.npy"]), allow_pickle=False), np.cumsum([one.images for one in kept])
        )
        shards = [Shard(one.name, rows) for one, rows in zip(kept, placed, strict=False)]
        sums = PixelSums(**described["sums"] | {name: tuple(described["sums"][name]) for name in ("total", "squares")})
        part = Part(shards, sums, [Original(*one) for one in described["originals"]], earlier=True)
        looked = [one._replace(stamp=_stamp(self._place(one))) for one in kept]
        if looked != kept:
            self._write(key, part, looked)
        self._used.add(key)
        return part

    def keep(self, key: str, part: Part, folder: Path) -> None:
        """Keep a part whose shards are in ``folder``, from where DVC takes them into its cache."""
        paths = [folder / shard.name for shard in part.shards]
        md5s = [cache.digest(cache.read(path)) for path in paths]
        self._write(
            key, part, [KeptShard(one.name, len(one.placed), md5) for one, md5 in zip(part.shards, md5s, strict=True)]
        )
        self._used.add(key)

    def drop_unused(self) -> None:
        """Remove every part that was neither taken nor kept by this object."""
        for path in self._folder.glob("*"):
            if path.name not in self._used:
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, key: str, part: Part, kept: Sequence[KeptShard]) -> None:
        described = {"shards": kept, "sums": asdict(part.sums), "originals": part.originals}
        with publish(self._folder / key, replace=True) as work:
            (work / "part.json").write_text(json.dumps(described) + "\n", encoding="utf-8")
            np.save(work / "placed.npy", np.concatenate([np.empty(0, PLACED), *(one.placed for one in part.shards)]))

    def _place(self, shard: KeptShard) -> Path:
        return self._objects / shard.md5[:2] / shard.md5[2:]

    def _is_whole(self, shard: KeptShard) -> bool:
        """Whether the object is what it was when it was read last, or its bytes are those that name the shard."""
        try:
            place = self._place(shard)
            return _stamp(place) == shard.stamp or sha256(place).startswith(Path(shard.name).stem)
        except FileNotFoundError:
            return False

    def _drop(self, key: str, why: object) -> None:
        emit("progress", stage="prepare", message=f"images that were prepared earlier are prepared again: {why}")
        shutil.rmtree(self._folder / key, ignore_errors=True)


def key_of(batch: Path, split: str, operations: Mapping[str, Sequence[str]], settings: Mapping[str, object]) -> str:
    """What names the part of this batch.

    Args:
        operations: SHA-256 → what is done to it, of each content of the batch that is accepted.
        settings: what else decides the stored bytes.
    """
    accepted = hashlib.sha256()
    for name in sorted(operations):
        accepted.update(f"{name} {json.dumps(list(operations[name]))}\n".encode())
    facts = {
        "layout": LAYOUT,
        "split": split,
        "tars": [path.name for path in tars(batch)],
        "accepted": accepted.hexdigest(),
        "settings": dict(settings),
        "versions": versions(("channels",) if settings["channels"] else ()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _stamp(path: Path) -> str:
    """What changes when the file does."""
    status = path.stat()
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
