"""What is wrong though nothing fails: a vanished mount looks like "nothing new", and a dead sensor is silent."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

SHRUNK = 0.5  # share of the files seen before that must still be there
FEW = 10  # files; of fewer, a loss means little
SILENT = timedelta(minutes=15)  # for a sensor that ticks every minute
FAILURES = 3  # ticks in a row
REPEAT = timedelta(days=1)


@dataclass(frozen=True)
class Trigger:
    """A sensor or schedule that is switched on; ``errors`` are those of its latest ticks, "" for one without."""

    name: str
    last_tick: datetime | None
    every_minute: bool
    errors: Sequence[str]


@dataclass(frozen=True)
class Look:
    """What there is now.

    Attributes:
        sources: name → number of files, or why it cannot be listed.
        released: when the encoder that serves was released; None without one.
    """

    sources: Mapping[str, int | str]
    triggers: Sequence[Trigger]
    released: datetime | None
    max_age: timedelta


@dataclass(frozen=True)
class Memory:
    """Between two looks: source → number of files, problem → when it was last reported, in seconds since the epoch."""

    files: Mapping[str, int] = field(default_factory=dict)
    reported: Mapping[str, float] = field(default_factory=dict)

    def dump(self) -> str:
        return json.dumps(asdict(self))


def load(text: str | None) -> Memory:
    """The memory of the look before; a damaged one counts as none."""
    try:
        stored = json.loads(text or "")
        return Memory(
            {str(name): int(count) for name, count in stored["files"].items()},
            {str(name): float(time) for name, time in stored["reported"].items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return Memory()


def judge(look: Look, memory: Memory, now: datetime) -> tuple[dict[str, str], dict[str, str], Memory]:
    """The problems there are, those of them to report now (new, or a day old), and the memory for the next look."""
    problems = dict([*_sources(look.sources, memory.files), *_triggers(look.triggers, now), *_encoder(look, now)])
    due = (now - REPEAT).timestamp()
    fresh = {
        name: text
        for name, text in problems.items()
        if not due < memory.reported.get(name, 0.0) <= now.timestamp()  # later: the clock was set back since
    }
    reported = {name: memory.reported.get(name, 0.0) for name in problems} | dict.fromkeys(fresh, now.timestamp())
    # A source that has shrunk is compared with what it had until that was reported twice.
    counted = {name: files for name, files in look.sources.items() if isinstance(files, int)}
    kept = {name: memory.files[name] for name in problems if name in memory.files and name not in fresh}
    first = {name: memory.files[name] for name in fresh if name in memory.files and name not in memory.reported}
    return problems, fresh, Memory({**memory.files, **counted, **kept, **first}, reported)


def _sources(sources: Mapping[str, int | str], before: Mapping[str, int]) -> Iterable[tuple[str, str]]:
    for name, found in sources.items():
        known = before.get(name, 0)
        if isinstance(found, str):
            yield name, f"the source {name} cannot be listed: {found}; is it mounted?"
        elif known >= FEW and found < SHRUNK * known:
            yield (
                name,
                f"the source {name} has {found:,} files, and had {known:,}; if you did not remove them, check whether "
                "it is mounted",
            )


def _triggers(triggers: Sequence[Trigger], now: datetime) -> Iterable[tuple[str, str]]:
    for trigger in triggers:
        failed = [error for error in trigger.errors[:FAILURES] if error]
        if len(failed) == FAILURES:
            yield trigger.name, f"{trigger.name} failed {FAILURES} times in a row: {failed[0]}"
        elif trigger.every_minute and trigger.last_tick and now - trigger.last_tick > SILENT:
            minutes = int((now - trigger.last_tick).total_seconds() // 60)
            yield trigger.name, f"{trigger.name} has not ticked for {minutes} minutes; restart `simclr ui`"


def _encoder(look: Look, now: datetime) -> Iterable[tuple[str, str]]:
    if look.released is not None and now - look.released > look.max_age:
        days = (now - look.released).days
        yield (
            "encoder",
            f"the encoder that serves was released {days} days ago, and retraining.max_age_days is "
            f"{look.max_age.days}; `simclr status` says why no newer one was released",
        )
