"""Whether to train again, now: one pure function for the sensor, the schedule and the UI, which shows the reason."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from deploy.plural import counted


@dataclass(frozen=True)
class Inbox:
    """What a run would find.

    ``digest`` names the data that a run would train on, in 16 hex digits: everything ingested, and the stamps of what
    is new. It is the same for every listing of the same files, and changes with each new or changed one.
    """

    digest: str
    new_files: int
    untrained: int = 0  # ingested, and no encoder has been trained on them
    unsettled: int = 0  # changed a moment ago: still being written
    relabeled: bool = False  # a labels.csv is new or has changed
    last_change: datetime | None = None  # of what is new or unsettled, as far as the sources say
    drift: bool = False  # the last validation saw images unlike those before
    files: int = 0  # images and tables of labels that the sources have, known ones included

    @property
    def new_images(self) -> int:
        return self.new_files + self.untrained


@dataclass(frozen=True)
class LastRun:
    """The run in progress; else the latest run that trained, or tried to train, on the images of the inbox."""

    run_id: str
    status: Literal["in_progress", "succeeded", "failed", "canceled"]
    digest: str | None = None  # of the inbox that it was started for or has ingested
    failed_at: str = ""  # "stage pretrain", "gate data_contract"
    busy: bool = False  # it failed because another process held the workspace: whatever the images are


@dataclass(frozen=True)
class Policy:
    """The block ``retraining`` of params.yaml, as far as it decides."""

    min_new_images: int
    min_new_images_after_drift: int
    quiet_minutes: float


@dataclass(frozen=True)
class Run:
    """Start a run on the images of this ``digest``; one with the same key is never started twice.

    ``after`` is the run that did not get the workspace, if there was one.
    """

    digest: str
    reason: str
    after: str = ""

    @property
    def run_key(self) -> str:
        return f"{self.digest}-{self.after}" if self.after else self.digest


@dataclass(frozen=True)
class Skip:
    """Start nothing, for a reason that a person understands."""

    reason: str


def decide(inbox: Inbox, last_run: LastRun | None, released: str | None, clock: datetime, policy: Policy) -> Run | Skip:
    """Decide from what is in the inbox and what was done about it.

    Args:
        last_run: see ``LastRun``; None when there is no such run.
        released: the version that serves, if there is one.
        clock: the present time, with a time zone, as ``inbox.last_change`` has one.
    """
    since = f" since {released}" if released else ""
    same = last_run is not None and last_run.digest == inbox.digest
    if last_run is not None and last_run.status == "in_progress":
        which = "with these images " if same else ""
        return Skip(f"a run {which}is in progress ({last_run.run_id[:8]})")
    if last_run is not None and same and not last_run.busy:
        return Skip(_done(last_run, since))
    if not inbox.new_images and not inbox.relabeled:
        writing = f"; {_files(inbox.unsettled)} still being written" if inbox.unsettled else ""
        return Skip(f"nothing new{since}{writing}")
    wanted = policy.min_new_images
    if inbox.drift:
        wanted = min(wanted, policy.min_new_images_after_drift)
    if inbox.new_images < wanted and not (inbox.relabeled and wanted == 1):
        drift = " after drift" if wanted < policy.min_new_images else ""
        return Skip(f"{_new(inbox)}{since}, the sensor waits for {wanted:,}{drift}")
    quiet = timedelta(minutes=policy.quiet_minutes)
    if inbox.last_change is not None and clock - inbox.last_change < quiet:
        return Skip(f"the last file arrived {_ago(clock - inbox.last_change)}; waiting for {_quiet(quiet)}")
    return Run(inbox.digest, f"{_new(inbox)}{since}", last_run.run_id[:8] if last_run and same else "")


def _done(run: LastRun, since: str) -> str:
    advice = "start `retrain` in the UI, or add images"
    where = f" at {run.failed_at}" if run.failed_at else ""
    if run.status == "failed":
        return f"the last run with these images failed{where} ({run.run_id[:8]}); fix the cause and {advice}"
    if run.status == "canceled":
        return f"the last run with these images was canceled ({run.run_id[:8]}); {advice}"
    return f"nothing new{since}"


def _new(inbox: Inbox) -> str:
    if not inbox.new_images:
        return "new labels"
    images = counted(inbox.new_images, "new image")
    return f"{images} and new labels" if inbox.relabeled else images


def _files(count: int) -> str:
    return f"{counted(count, 'file')} {'is' if count == 1 else 'are'}"


def _ago(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    if minutes < 1:
        return "a moment ago"
    return "1 minute ago" if minutes == 1 else f"{minutes} minutes ago"


def _quiet(quiet: timedelta) -> str:
    minutes = quiet.total_seconds() / 60
    return "1 quiet minute" if minutes == 1 else f"{minutes:g} quiet minutes"
