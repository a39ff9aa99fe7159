"""What is in quarantine, and what people decide about it: the work behind ``simclr quarantine``.

Nothing is moved or deleted: a decision is a line of overrides.csv (``validation.overrides``), and what follows from it
is for the next run to work out.
"""

import getpass
import hashlib
import json
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.artifact import write_atomically
from deploy.failure import printable
from deploy.plural import counted
from pipeline.errors import OverridesError, WorkspaceError
from pipeline.ingest.raw import batches, read_bytes, read_records
from pipeline.validation.reasons import REASONS, RELEASABLE
from pipeline.validation.verdict import overrides
from pipeline.validation.verdict.overrides import Action, Override
from pipeline.workspace import Workspace
from simclr_core.data import label_sets

if TYPE_CHECKING:
    import polars as pl

VALIDATE = "validate"
LEAST_PREFIX = 6  # hexadecimal digits of a hash, as Git asks for 4
NEXT_RUN = "takes effect with the next `simclr run`"


@dataclass(frozen=True)
class Content:
    """One content as the last validation saw it: all of its files, as rows of the manifest."""

    sha256: str
    files: list[dict[str, Any]]

    @property
    def reasons(self) -> list[str]:
        """What keeps all of its files out; empty when one of them is used."""
        if any(not row["reasons"] for row in self.files):
            return []
        return list(dict.fromkeys(reason for row in self.files for reason in row["reasons"]))


@dataclass(frozen=True)
class Quarantined:
    """How many files are quarantined for which primary reason, the ``first`` of those in question, how many ``more``
    there are of them, and what people have decided."""

    counts: dict[str, int]
    first: list[dict[str, str]]
    more: int
    decided: tuple[Override, ...]
    without_effect: dict[str, str]  # by SHA-256, why

    def __str__(self) -> str:
        """Some lines for a person."""
        known = {name: meaning for name, meaning in REASONS.items() if name in self.counts}
        lines = [f"{self.counts[name]:>9,}  {name:<18} {meaning}" for name, meaning in known.items()]
        lines = lines or ["nothing is quarantined"]
        lines += ["", *(f"{one['sha256'][:12]}  {one['reason']:<18} {printable(one['path'])}" for one in self.first)]
        if self.more:
            lines.append(f"… and {self.more:,} more; all of them: data/manifest/quarantine.parquet")
        lines += ["", "decided by people:"] if self.decided else []
        for one in self.decided:
            idle = self.without_effect.get(one.sha256)
            lines.append(f"{one.sha256[:12]}  {_described(one)}{f'; no effect: {idle}' if idle else ''}")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=str)


def list_files(workspace: Workspace, reason: str | None = None, limit: int = 20) -> Quarantined:
    """All of them, or only those with this primary reason; at most ``limit`` by name.

    Raises:
        OverridesError: there is no such reason, or overrides.csv has a fault.
    """
    import polars as pl

    if reason is not None and reason not in REASONS:
        raise OverridesError(f"unknown reason {reason!r}; choose one of: {', '.join(REASONS)}")
    rows = _manifest(workspace, ["sha256", "path", "reasons"])
    rows = rows.filter(pl.col("reasons").list.len() > 0)
    rows = rows.select("sha256", "path", reason=pl.col("reasons").list.first())
    chosen = rows if reason is None else rows.filter(pl.col("reason") == reason)
    decided = overrides.read(workspace.overrides)
    return Quarantined(
        dict(rows["reason"].value_counts().iter_rows()),
        chosen.head(limit).to_dicts(),
        max(0, chosen.height - limit),
        decided,
        overrides.without_effect(decided, _manifest(workspace, ["sha256", "reasons"])),
    )


def details(workspace: Workspace, name: str, save: Path | None = None) -> str:
    """Everything known of one content; with ``save``, its bytes are written there as they were ingested."""
    content = find(workspace, name)
    first = content.files[0]
    lines = [f"{content.sha256}  {first['size_bytes']:,} bytes"]
    for row in content.files:
        label = "no label" if row["label"] is None else f"label {printable(label_sets.describe(row['label']))}"
        lines.append(
            f"  {row['verdict']:<10}  {printable(row['path'])} ({row['split']}, {label}, {row['ingest_batch']})"
        )
        lines += [f"              {reason}: {REASONS[reason]}" for reason in row["reasons"]]
        lines += [f"              {printable(row['message'])}"] if row["message"] else []
        lines += [f"              warning {warning}" for warning in row["warnings"]]
        lines += [f"              see {row['copy_of'][:12]}"] if row["copy_of"] else []
    known = {key: value for key, value in first.items() if key not in _SHOWN_APART and value not in (None, [])}
    lines += ["", *(f"  {key:<16} {printable(_rounded(value))}" for key, value in known.items())]
    decided = {one.sha256: one for one in overrides.read(workspace.overrides)}.get(content.sha256)
    if decided:
        lines += ["", f"  decided: {_described(decided)}"]
    elif content.reasons and set(content.reasons) <= RELEASABLE:
        lines += ["", f'  to use it anyway: simclr quarantine release {content.sha256[:12]} --why "…"']
    if save is not None:
        write_atomically(save, _bytes(workspace, content.sha256))
        lines += ["", f"  its bytes are in {save}"]
    return "\n".join(lines)


def release(workspace: Workspace, names: Sequence[str], who: str, why: str, expires: date | None = None) -> str:
    """Accept contents in spite of their reasons.

    Raises:
        OverridesError: one of them has no pixels, or is needed out of the training set; nothing is written then.
    """
    contents = [find(workspace, name) for name in names]
    for content in contents:
        _require_releasable(workspace, content)
    return _decide(workspace, [content.sha256 for content in contents], "allow", who, why, expires)


def deny(workspace: Workspace, names: Sequence[str], who: str, why: str, expires: date | None = None) -> str:
    """Refuse contents, by hash, by path in the manifest, or by a file on this disk that was never ingested."""
    return _decide(workspace, [resolve(workspace, name) for name in names], "deny", who, why, expires)


def rescan(workspace: Workspace, names: Sequence[str], everything: bool, on_output: Callable[[str], None]) -> str:
    """Forget what is known of contents, all quarantined ones if none is named, and validate again.

    Raises:
        StageFailedError: validation failed.
        BusyError: another process holds the workspace.
    """
    import polars as pl

    from pipeline.dvc.client import repro
    from pipeline.validation.probe.facts_cache import forget

    rows = _manifest(workspace, ["sha256", "verdict"])
    chosen = {find(workspace, name).sha256 for name in names}
    if not names:
        rows = rows if everything else rows.filter(pl.col("verdict") == "quarantine")
        chosen = set(rows["sha256"].unique())
    forget(workspace.facts, chosen)
    repro(workspace.root, VALIDATE, on_output=on_output, force=True)
    return f"{counted(len(chosen), 'content')} {'was' if len(chosen) == 1 else 'were'} probed again"


def find(workspace: Workspace, name: str) -> Content:
    """The content that a hash, the beginning of one, a path, or the end of a path names.

    Raises:
        OverridesError: none does, or more than one.
    """
    import polars as pl

    rows = _manifest(workspace, ["sha256", "path"])
    is_hash = len(name) >= LEAST_PREFIX and not set(name) - set("0123456789abcdef")
    found = rows.filter(pl.col("sha256").str.starts_with(name)) if is_hash else rows.clear()
    found = found if found.height else rows.filter(pl.col("path") == name)
    found = found if found.height else rows.filter(pl.col("path").str.ends_with(f"/{name}"))
    hashes = found["sha256"].unique().sort().to_list()
    if not hashes:
        raise OverridesError(
            f"{name!r}: no ingested file has this hash or path; `simclr quarantine list` shows hashes, and "
            f"at least {LEAST_PREFIX} of their digits are needed"
        )
    if len(hashes) > 1:
        raise OverridesError(f"{name!r}: names {len(hashes)} contents, such as {' and '.join(hashes[:2])}; give more")
    matching = _manifest(workspace, None).filter(pl.col("sha256") == hashes[0])
    return Content(hashes[0], matching.to_dicts())


def person() -> str:
    """Who decides, by default: the name that Git knows, else the account's."""
    asked = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or getpass.getuser()


def _decide(
    workspace: Workspace, contents: Sequence[str], action: Action, who: str, why: str, expires: date | None
) -> str:
    today = date.today()
    if expires is not None and expires < today:
        raise OverridesError(f"--expires {expires}: has passed; give a day from {today} on")
    decisions = [Override(sha256, action, who, why, today, expires) for sha256 in dict.fromkeys(contents)]
    overrides.decide(workspace.overrides, decisions)
    done = {"allow": "accepted", "deny": "refused"}[action]
    until = f" until {expires}" if expires else ""
    return f"{_count(len(decisions))} {done}{until}, in {overrides.OVERRIDES}; commit it. It {NEXT_RUN}"


def _require_releasable(workspace: Workspace, content: Content) -> None:
    name = content.sha256[:12]
    if not content.reasons:
        raise OverridesError(f"{name}: is not quarantined; nothing to release")
    firm = [reason for reason in content.reasons if reason not in RELEASABLE]
    if firm == ["denied"]:
        _require_own_decision(workspace, content)
        return
    if firm:
        raise OverridesError(
            f"{name}: {', '.join(firm)} ({'; '.join(REASONS[reason] for reason in firm)}) cannot be released; "
            f"what can be: {', '.join(sorted(RELEASABLE))}"
        )
    if "test_leak" in content.reasons and _same_pixels(workspace, content):
        raise OverridesError(f"{name}: has exactly the pixels of a test image; take that out of the test set")


def _require_own_decision(workspace: Workspace, content: Content) -> None:
    if content.sha256 not in {one.sha256 for one in overrides.read(workspace.overrides)}:
        message = next(row["message"] for row in content.files if "denied" in row["reasons"])
        raise OverridesError(
            f"{content.sha256[:12]}: has exactly the pixels of another file that was {printable(message)}; release that"
        )


def _same_pixels(workspace: Workspace, content: Content) -> bool:
    import polars as pl

    others = {row["copy_of"] for row in content.files if row["copy_of"]}
    rows = _manifest(workspace, ["sha256", "pixel_hash"])
    hashes = rows.filter(pl.col("sha256").is_in(sorted({content.sha256, *others})))["pixel_hash"]
    return content.sha256 in others or hashes.n_unique() < len(others) + 1


def resolve(workspace: Workspace, name: str) -> str:
    """The SHA-256 that is given, or of the content that a prefix or path names, or of a file on this disk."""
    if len(name) == 64 and not set(name) - set("0123456789abcdef"):
        return name
    try:
        return find(workspace, name).sha256
    except (OverridesError, WorkspaceError):
        if recorded := _recorded(workspace, name):
            return recorded
        if not Path(name).is_file():
            raise
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def _recorded(workspace: Workspace, name: str) -> str | None:
    """The one content that raw batches name so, also if it was purged, which removes the manifest as well."""
    is_hash = len(name) >= LEAST_PREFIX and not set(name) - set("0123456789abcdef")
    found = {
        record["sha256"]
        for batch in batches(workspace.raw)
        for record in read_records(batch)
        if (is_hash and record["sha256"].startswith(name))
        or any(f"/{seen['path']}".endswith(f"/{name}") for seen in record["occurrences"])
    }
    return found.pop() if len(found) == 1 else None


def _bytes(workspace: Workspace, sha256: str) -> bytes:
    for _, _, data in read_bytes(workspace.raw, {sha256}):
        return data
    raise WorkspaceError(f"{sha256[:12]}: no raw batch holds its bytes; restore data/raw with `dvc checkout data/raw`")


def _manifest(workspace: Workspace, columns: Sequence[str] | None) -> "pl.DataFrame":
    from pipeline.validation.manifest import read

    if not workspace.manifest.is_dir():
        nothing, advice = "ingested", "put images into inbox/unlabeled, then `simclr run`"
        if workspace.raw.is_dir():
            nothing, advice = "validated", "run `simclr run --select validate`"
        raise WorkspaceError(f"{workspace.root}: nothing was {nothing} yet; {advice}")
    return read(workspace.manifest, columns)


def _described(override: Override) -> str:
    until = f", until {override.expires}" if override.expires else ""
    return f"{override.action}, by {override.who} on {override.added}{until}: {printable(override.why)}"


def _count(number: int) -> str:
    return f"{counted(number, 'content')} {'is' if number == 1 else 'are'}"


def _rounded(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_SHOWN_APART: Collection[str] = (
    "file_id", "path", "split", "label", "sha256", "batch", "ingest_batch",
    "verdict", "reasons", "message", "warnings", "copy_of", "size_bytes", "sketch",
)  # fmt: skip
