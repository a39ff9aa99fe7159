"""Remove contents for good: ``simclr purge HASH... --why TEXT``, for what may not be kept, such as withdrawn consent.

1. overrides.csv denies them                    2. raw batches are written again without them, under the same names
3. DVC tracks that                              4. derived data and pictures go; the next run makes them again
5. objects that hold them, in any version, are looked up in the cache and in every remote
6. these are removed                            7. data/purged.jsonl says who, when, why, and what was removed

Each step does nothing when it has been done: killed anywhere, the same command completes it, and nothing else changes
the workspace before. Versions keep their models; which of them have seen the contents is part of the record. A release
keeps its bundle, too, which may show a small copy: it is named until ``simclr release withdraw`` has removed it.
"""

import json
import shutil
import sqlite3
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from deploy.artifact import publish, sha256
from deploy.failpoint import failpoint
from deploy.plural import counted
from pipeline import waiting
from pipeline.dvc import cache, client, purged
from pipeline.dvc.cache import Cache
from pipeline.dvc.project import CHAMPION
from pipeline.dvc.purged import Purge
from pipeline.dvc.versions import WORKSPACE
from pipeline.errors import DvcError, ParamsError, ReleaseError, WorkspaceError
from pipeline.ingest.raw import OCCURRENCES, UNDONE, batches, list_tar, read_records, tars
from pipeline.ingest.relisting.store import LISTINGS
from pipeline.ingest.stamps import STAMPS
from pipeline.maintenance.state import keep
from pipeline.params import read
from pipeline.purge import holders
from pipeline.purge.holders import TRAINED
from pipeline.release.facts import branch
from pipeline.release.releases import open_releases
from pipeline.validation.probe import facts_cache
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Override
from pipeline.workspace import Workspace
from simclr_core.champion import Champion
from simclr_core.data.shard_writing import write_tar
from simclr_core.reports import known

REWRITTEN = ".{}.purged"  # a batch without the contents, complete, next to the one that it replaces
DERIVED = (
    *("data/manifest", "data/prepared", "data/explore", "storage/pages"),
    *(".simclr/prepared", ".simclr/tensorboard", ".simclr/candidates"),
)


def purge(workspace: Workspace, hashes: Sequence[str], who: str, why: str) -> list[Purge]:
    """Remove these contents from everything that this workspace holds on to; first complete what was interrupted.

    Args:
        hashes: SHA-256, 64 digits each; none: only complete what was interrupted.

    Returns:
        What was completed now. A remote that cannot be cleaned is in ``unreached``; the same command tries it again.

    Raises:
        WorkspaceError: the raw batches are not here.
        BusyError: another process holds the workspace.
    """
    done = []
    with client.exclusive(workspace.root, purged.PURPOSE):
        if not batches(workspace.raw) and workspace.raw.with_suffix(".dvc").exists():
            raise WorkspaceError(f"{workspace.raw}: is not here; bring it first, with `dvc pull data/raw.dvc`")
        if begun := purged.find_interrupted_purge(workspace.root):
            done.append(_complete(workspace, begun))
        if hashes and not (begun and set(hashes) <= set(begun.hashes)):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            done.append(_complete(workspace, Purge(tuple(sorted(set(hashes))), who, now, why)))
    if done:
        keep(workspace, str(uuid4()))
    return done


def _complete(workspace: Workspace, begun: Purge) -> Purge:
    root, hashes = workspace.root, set(begun.hashes)
    if not begun.batches:
        begun = replace(
            begun, batches=tuple(batch.name for batch in batches(workspace.raw) if _mentions(batch, hashes))
        )
        purged.write_journal(root, begun)
        failpoint("purge.planned")
    today = date.fromisoformat(begun.when[:10])
    overrides.decide(workspace.overrides, [Override(one, "deny", begun.who, begun.why, today) for one in begun.hashes])
    failpoint("purge.denied")
    _rewrite_batches(workspace, begun)
    if workspace.raw.exists():
        client.add(root, workspace.raw)
    failpoint("purge.tracked")
    _remove_derived(workspace, hashes)
    _remove_withdrawn_champion(workspace)
    failpoint("purge.cleared")
    with cache.opened(root) as objects:
        if begun.objects is None:
            begun = _look_up(objects, begun)
            purged.write_journal(root, begun)
            failpoint("purge.found")
        begun = _remove(objects, begun)
    failpoint("purge.removed")
    purged.record(root, begun)
    failpoint("purge.recorded")
    (root / purged.JOURNAL).unlink()
    return begun


def _mentions(batch: Path, hashes: Collection[str]) -> bool:
    """Whether a batch holds the bytes of one of the contents, or says where it was seen."""
    said = any(one["sha256"] in hashes and (one["occurrences"] or one.get(UNDONE)) for one in read_records(batch))
    return said or any(one in hashes for tar in tars(batch) for one in list_tar(tar))


def _rewrite_batches(workspace: Workspace, begun: Purge) -> None:
    for name in begun.batches:
        batch = workspace.raw / name
        work = batch.with_name(REWRITTEN.format(name))
        if not work.exists() and _mentions(batch, begun.hashes):
            _write_without(batch, work, begun)
            failpoint("purge.written")
        if work.exists():  # complete, so that the batch is not needed any more
            shutil.rmtree(batch, ignore_errors=True)
            failpoint("purge.batch_removed")
            work.rename(batch)
            failpoint("purge.batch_replaced")


def _write_without(batch: Path, work: Path, begun: Purge) -> None:
    """The batch without the bytes; of each content it keeps the hash, and that it was purged."""
    hashes, note = set(begun.hashes), {"who": begun.who, "when": begun.when, "why": begun.why}
    with publish(work) as folder:
        for tar in tars(batch):
            if hashes.intersection(list_tar(tar)):
                if kept := list(_members(tar, without=hashes)):
                    write_tar(folder, kept)
            else:
                cache.link(tar, folder / tar.name)
        lines = [
            _without_places(record, note) if record["sha256"] in hashes else record for record in read_records(batch)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / OCCURRENCES).write_text(text, encoding="utf-8")


def _without_places(record: dict[str, Any], note: dict[str, str]) -> dict[str, Any]:
    return {"sha256": record["sha256"], "occurrences": [], "purged": note}


def _members(path: Path, without: Collection[str]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, mode="r:") as tar:
        for member in tar:
            if member.name.partition(".")[0] not in without:
                file = tar.extractfile(member)
                assert file is not None, f"{path}: {member.name} is not a file"
                yield member.name, file.read()


def _remove_derived(workspace: Workspace, hashes: Collection[str]) -> None:
    """Everything that shows them, or was made from them, and is made again by the next run."""
    for name in DERIVED:
        shutil.rmtree(workspace.root / name, ignore_errors=True)
    for path in workspace.reports.glob("*"):
        if path.suffix in (*holders.SHOWING["reports/"], ".parquet"):
            path.unlink()
    for path in (workspace.scratch / "damaged").glob("*"):
        with path.open("rb") as file:
            held = holders.holds(file, hashes)
        if held:
            path.unlink()
    (workspace.scratch / LISTINGS).unlink(missing_ok=True)
    facts_cache.forget(workspace.facts, hashes)


def _remove_withdrawn_champion(workspace: Workspace) -> None:
    """The champion that the next run is compared with is the version that serves then, and pinned again."""
    pinned, target = known(workspace.root, Champion), workspace.root / CHAMPION
    try:
        withdrawn = open_releases(workspace).history.withdrawn
    except (ReleaseError, ParamsError):  # without Git, nothing was released
        return
    if pinned and pinned.version in withdrawn:
        target.with_name(f"{target.name}.dvc").unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)


def _look_up(objects: Cache, begun: Purge) -> Purge:
    """Which objects hold them, and which models have seen them: known before anything is removed."""
    uses = objects.uses(beyond="refs/simclr/")
    copies = holders.golden_copies(
        objects, uses, {use.version for places in uses.values() for use in places}, begun.hashes
    )
    kept = holders.needed(uses, copies)
    here = holders.find_in_cache(objects, uses, begun.hashes)
    here |= {md5 for md5s in copies.values() for md5 in md5s} - {md5 for md5s in kept.values() for md5 in md5s}
    found, unreached, all_found = {"cache": sorted(here)}, {}, set(here)
    for name in objects.remotes():
        try:
            there = holders.find_in_remote(objects, name, uses, begun.hashes, here)
            found[name] = sorted(there)
            all_found |= there
        except DvcError as error:
            unreached[name] = str(error)
    seen = holders.models(objects, uses, {*all_found, *(md5 for md5s in kept.values() for md5 in md5s)}, begun.hashes)
    return replace(begun, objects=found, unreached=unreached, models=seen, golden=kept)


def _remove(objects: Cache, begun: Purge) -> Purge:
    unreached = dict(begun.unreached or {})
    for place, md5s in (begun.objects or {}).items():
        if place == "cache":
            objects.remove(md5s)
            failpoint("purge.cache_cleaned")
            continue
        try:
            objects.remove_from_remote(place, md5s)
        except DvcError as error:
            unreached[place] = str(error)
    return replace(begun, unreached=unreached)


def still_held(workspace: Workspace, hashes: Collection[str]) -> list[str]:
    """The files of the sources that still hold the bytes; they belong to the user, and are only named."""
    memory = workspace.scratch / STAMPS
    if not memory.exists():
        return []
    with closing(sqlite3.connect(memory, timeout=60)) as database:
        rows = database.execute("SELECT base, path, sha256 FROM ingested").fetchall()
    names = [f"{base}/{path}" for base, path, found in rows if found in hashes]
    return [name for name in names if _still_there(name, hashes)]


def describe(workspace: Workspace, done: Purge) -> str:
    """What was removed, which models have seen it, and what still holds it, for a person."""
    removed = [f"{counted(len(md5s), 'object')} of {place}" for place, md5s in (done.objects or {}).items() if md5s]
    images = counted(len(done.hashes), "image")
    rewritten = f"rewrote {', '.join(done.batches)}" if done.batches else "no batch has them"
    lines = [f"purged {images}: {rewritten}; removed {', '.join(removed) or 'nothing from cache and remotes'}"]
    lines += [f"{version}: {role}" for version, role in (done.models or {}).items()]
    lines += [
        f"remote {name} may still hold them: {reason}; repeat the command when it answers, or remove there: "
        f"{', '.join((done.objects or {}).get(name) or ['every object that it has of data/raw'])}"
        for name, reason in (done.unreached or {}).items()
    ]
    lines += [_describe_copy(name) for name in done.golden or {}]
    lines += _describe_waiting(workspace, done.models or {})
    lines += [f"still holds the bytes, remove it yourself: {name}" for name in still_held(workspace, done.hashes)]
    return "\n".join(
        [*lines, "`simclr run` makes the derived data again; backups and copies elsewhere are yours to clean"]
    )


def _describe_waiting(workspace: Workspace, models: Mapping[str, str]) -> list[str]:
    """The candidates on which a person has not decided, and that were trained on a purged image."""
    trained = {name for version, role in models.items() if role.startswith(TRAINED) for name in version.split(",")}
    asked = waiting.waiting(workspace.root / read(workspace).release.registry) if trained else []
    return [
        f"candidate {one.name} waits for a person, and was trained on it; reject it: "
        f"`simclr release reject {one.name} --why …`"
        for one in asked
        if branch(one.bundle) in trained
    ]


def _describe_copy(name: str) -> str:
    """What to do about a small copy that is left."""
    where = "among its golden images, and so in the cache and the remotes"
    if name == WORKSPACE:
        return (
            f"INCOMPLETE: models/bundle or models/champion shows a small copy {where}; `simclr run` makes them again, "
            "once no release shows one; then repeat this command"
        )
    return (
        f"INCOMPLETE: the release {name} shows a small copy {where} and in the registry; let another version serve, "
        f"then `simclr release withdraw {name} --why …`, and repeat this command"
    )


def _still_there(name: str, hashes: Collection[str]) -> bool:
    """Whether a file on this disk still has the bytes; of one elsewhere, that is assumed."""
    path = Path(name.removeprefix("file://"))
    return not name.startswith("file://") or (path.is_file() and sha256(path) in hashes)
