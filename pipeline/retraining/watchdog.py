"""What is wrong though nothing fails: a vanished mount looks like "nothing new", and a dead sensor is silent."""

import json
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta

from deploy.plural import counted

SHRUNK = 0.5  # share of the files seen before that must still be there
FEW = 10  # files; of fewer, only the loss of all is a problem
SILENT = timedelta(minutes=15)  # how late a tick may come, of a sensor that ticks every minute or of a schedule
FAILURES = 3  # ticks in a row
REPEAT = timedelta(days=1)


@dataclass(frozen=True)
class Trigger:
    """A sensor or schedule that is switched on.

    Attributes:
        due: when it must have ticked last, ``SILENT`` before now or earlier.
        errors: those of its latest ticks, "" for one without.
        rhythm: when it ticks, such as the cron expression of a schedule.
        since: when it was switched on, where Dagster says so.
    """

    name: str
    last_tick: datetime | None
    due: datetime
    errors: Sequence[str]
    rhythm: str = ""
    since: datetime | None = None

    @property
    def key(self) -> str:
        """With another rhythm, the ticks of the old one are not missed."""
        return f"{self.name} {self.rhythm}"


@dataclass(frozen=True)
class Confirmed:
    """A person said at ``at``, in seconds since the epoch, that a source rightly holds ``files``."""

    files: int
    at: float


@dataclass(frozen=True)
class Look:
    """What there is now.

    Attributes:
        sources: name → number of files, or why it cannot be listed.
        released: when the encoder that serves was released; None without one.
        ingested: source → how many contents the last ingest saw there, for a source that is looked at for the first
            time.
        confirmed: source → what a person last said about it.
        emptied: sources that are emptied on purpose.
    """

    sources: Mapping[str, int | str]
    triggers: Sequence[Trigger]
    released: datetime | None
    max_age: timedelta
    ingested: Mapping[str, int] = field(default_factory=dict)
    confirmed: Mapping[str, Confirmed] = field(default_factory=dict)
    emptied: Collection[str] = ()


@dataclass(frozen=True)
class Memory:
    """Between two looks; times are in seconds since the epoch.

    Attributes:
        files: source → the most files that it had since a person last confirmed it.
        reported: problem → when it was last reported.
        confirmed: source → the time of the confirmation that ``files`` begin with.
        on: trigger and rhythm → since when it is seen to be on.
        looked: the look before; 0 if there was none.
        resumed: since when there has been a look every few minutes.
    """

    files: Mapping[str, int] = field(default_factory=dict)
    reported: Mapping[str, float] = field(default_factory=dict)
    confirmed: Mapping[str, float] = field(default_factory=dict)
    on: Mapping[str, float] = field(default_factory=dict)
    looked: float = 0.0
    resumed: float = 0.0

    def dump(self) -> str:
        return json.dumps(asdict(self))


def load(text: str | None) -> Memory:
    """The memory of the look before, of an earlier version too; a damaged one counts as none."""
    try:
        stored = json.loads(text or "")
        return Memory(
            {str(name): int(count) for name, count in stored["files"].items()},
            _times(stored["reported"]),
            _times(stored.get("confirmed", {})),
            _times(stored.get("on", {})),
            float(stored.get("looked", 0.0)),
            float(stored.get("resumed", 0.0)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return Memory()


def _times(stored: Mapping[str, float]) -> dict[str, float]:
    return {str(name): float(time) for name, time in stored.items()}


def judge(look: Look, memory: Memory, now: datetime) -> tuple[dict[str, str], dict[str, str], Memory]:
    """The problems there are, those of them to report now (new, or a day old), and the memory for the next look.

    No problem ends by waiting: a source has too few files until they are back or a person confirms what is there.
    """
    after = _remember(look, memory, now)
    problems = dict([*_sources(look, after.files), *_triggers(look.triggers, after, now), *_encoder(look, now)])
    due = (now - REPEAT).timestamp()
    fresh = {
        name: text
        for name, text in problems.items()
        if not due < memory.reported.get(name, 0.0) <= now.timestamp()  # later: the clock was set back since
    }
    reported = {name: memory.reported.get(name, 0.0) for name in problems} | dict.fromkeys(fresh, now.timestamp())
    return problems, fresh, replace(after, reported=reported)


def _remember(look: Look, memory: Memory, now: datetime) -> Memory:
    time = now.timestamp()
    paused = time - memory.looked > SILENT.total_seconds()  # the machine or the daemon was off
    on = {trigger.key: min(memory.on.get(trigger.key, time), time) for trigger in look.triggers}
    return Memory(
        {**memory.files, **{name: _most(name, look, memory) for name in look.sources}},
        memory.reported,
        {name: said.at for name, said in look.confirmed.items()},
        on,
        time,
        time if paused else min(memory.resumed, time),
    )


def _most(name: str, look: Look, memory: Memory) -> int:
    """How many files a source had at most since a person last said how many it should have."""
    found = look.sources[name]
    before = memory.files.get(name, look.ingested.get(name, 0))
    said = look.confirmed.get(name)
    if said and memory.confirmed.get(name) != said.at:
        before = said.files
    return before if isinstance(found, str) else max(before, found)


def _sources(look: Look, most: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    for name, found in look.sources.items():
        if isinstance(found, str):
            yield name, f"the source {name} cannot be listed: {found}; is it mounted?"
        elif name not in look.emptied and _has_shrunk(found, most[name]):
            yield (
                name,
                f"the source {name} has {counted(found, 'file')}, and had {most[name]:,}; check whether it is mounted. "
                f"If you removed them, say so with `simclr confirm-source {shlex.quote(name)}`",
            )


def _has_shrunk(found: int, most: int) -> bool:
    return found < SHRUNK * most if most >= FEW else found == 0 < most


def _triggers(triggers: Sequence[Trigger], memory: Memory, now: datetime) -> Iterable[tuple[str, str]]:
    for trigger in triggers:
        failed = [error for error in trigger.errors[:FAILURES] if error]
        if len(failed) == FAILURES:
            yield trigger.name, f"{trigger.name} failed {FAILURES} times in a row: {failed[0]}"
        elif now.timestamp() - memory.resumed > SILENT.total_seconds() and _missed(trigger, memory.on[trigger.key]):
            yield trigger.name, f"{trigger.name} {_since(trigger, now)}; restart `simclr ui`"


def _missed(trigger: Trigger, on: float) -> bool:
    """Whether it has not ticked since it was due, and was on then."""
    since = max(on, trigger.since.timestamp() if trigger.since else 0.0)
    return since <= trigger.due.timestamp() and (trigger.last_tick is None or trigger.last_tick < trigger.due)


def _since(trigger: Trigger, now: datetime) -> str:
    if trigger.rhythm:
        return f"did not tick at {trigger.due:%Y-%m-%d %H:%M %Z}, as `{trigger.rhythm}` says"
    if trigger.last_tick is None:
        return "has never ticked since it was switched on"
    return f"has not ticked for {counted(int((now - trigger.last_tick).total_seconds() // 60), 'minute')}"


def _encoder(look: Look, now: datetime) -> Iterable[tuple[str, str]]:
    if look.released is not None and now - look.released > look.max_age:
        days = (now - look.released).days
        yield (
            "encoder",
            f"the encoder that serves was released {counted(days, 'day')} ago, and retraining.max_age_days is "
            f"{look.max_age.days}; `simclr status` says why no newer one was released",
        )
