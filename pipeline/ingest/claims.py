"""Claims: which split, label and group the sources give an image now, compared with what they gave it before.

A label, a group or the test split is a claim; an unlabeled training file makes none. What a source says last of an
image counts. Absence is not a claim: an image that is nowhere in its source any more keeps what was said of it, and so
does one that only labels.csv gave a label or group and does not name now. An image that is elsewhere now is what that
place says, also if that is in another source (``pipeline.ingest.moved``).
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.plural import counted
from pipeline.ingest.labels.groups import describe_regrouped
from pipeline.ingest.raw import REPLACED, Occurrence, read_occurrences
from simclr_core.data import label_sets

Claim = tuple[str, str | None, str | None]
"""Split, label, or the text of a set of labels, and group."""

UNCLAIMED: Claim = ("train", None, None)
GONE: Claim = (REPLACED, None, None)


class Said(NamedTuple):
    """What a source has claimed of a content; ``certain`` is False where the batch does not name the source, which is a
    guess then, or None."""

    source: str | None
    batch: int
    claims: frozenset[Claim]
    certain: bool = True


Known = dict[str, tuple[Said, ...]]
"""SHA-256 → what holds of a content; contents of which the same was said share one tuple."""


class Verdict(NamedTuple):
    """What follows from all that was said; several labels contradict each other."""

    split: str
    labels: tuple[str, ...]
    group: str | None


def read_known(batches: Sequence[Path], guess: Callable[[str, str], str | None]) -> Known:
    """What holds after the batches.

    Args:
        guess: path, SHA-256 → the source that has the file, where the batch does not name it.
    """
    known: Known = {}
    shared: dict[tuple[Said, ...], tuple[Said, ...]] = {}
    for number, batch in enumerate(batches):
        for sha256, occurrences in read_occurrences(batch).items():
            if not occurrences:  # purged, or undone with its batch
                continue
            said = combine(known.get(sha256, ()), summarize(sha256, occurrences, number, guess))
            known[sha256] = shared.setdefault(said, said)
    return known


def combine(before: tuple[Said, ...], latest: Sequence[Said]) -> tuple[Said, ...]:
    """What a source says replaces what it said earlier, and all of which no batch names the source."""
    sources = {one.source for one in latest if one.certain}
    return *(one for one in before if not sources or (one.certain and one.source not in sources)), *latest


def summarize(
    sha256: str,
    occurrences: Iterable[Occurrence],
    number: int,
    guess: Callable[[str, str], str | None] | None = None,
) -> list[Said]:
    """What one batch says of a content."""
    claims: dict[tuple[str | None, bool], set[Claim]] = {}
    for one in occurrences:
        claim = (one.split, one.label, one.group)
        certain = one.source is not None
        source = one.source if certain or claim == UNCLAIMED or guess is None else guess(one.path, sha256)
        claims.setdefault((source, certain), set()).update({claim} - {UNCLAIMED})
    return [Said(source, number, frozenset(made), certain) for (source, certain), made in claims.items()]


def judge(said: Iterable[Said]) -> Verdict:
    """The verdict of ``validation.verdict.copies`` on one content: a test image stays one, and the newest batch that
    labels an image is right about it. Likewise the newest that gives it a group; of two groups the first by name."""
    claims = [(one.batch, *claim) for one in said for claim in one.claims]
    newest = max((batch for batch, _, label, _ in claims if label is not None), default=0)
    labels = {label for batch, _, label, _ in claims if label is not None and batch == newest}
    tests = [
        (batch != newest, batch, label) for batch, split, label, _ in claims if split == "test" and label is not None
    ]
    is_test = any(split == "test" for _, split, *_ in claims)
    groups = [(-batch, group) for batch, *_, group in claims if group is not None]
    return Verdict(
        "test" if is_test else "train",
        tuple(sorted(labels | ({min(tests)[2]} if tests else set()))),
        min(groups)[1] if groups else None,
    )


def find_splits(batches: Sequence[Path]) -> dict[str, str]:
    """SHA-256 → the split of each content that these batches use."""
    known = read_known(batches, lambda *_: None)
    split = {said: judge(said).split for said in set(known.values())}
    return {sha256: split[said] for sha256, said in known.items()}


def is_news(said: tuple[Said, ...], source: str, claims: frozenset[Claim]) -> bool:
    """Whether a source says something else of a content than it did before."""
    for one in said:
        if one.certain and one.source == source:
            return one.claims != claims
    mine = [one for one in said if not one.certain and one.source == source and one.claims]
    others = [one for one in said if not one.certain and one.source is None]
    if not mine and not claims:  # an unlabeled copy of what perhaps another source has labeled
        return False
    split, labels, group = judge(mine or others)
    held = {(split, label, group) for label in labels or (None,)} - {UNCLAIMED}
    return not held <= claims or bool(held) != bool(claims)


def claims_of(said: tuple[Said, ...], source: str) -> frozenset[Claim]:
    """What this source claims of a content, as the batches name it."""
    return frozenset(claim for one in said if one.certain and one.source == source for claim in one.claims - {GONE})


def find_claimed(batches: Iterable[Path], source: str, contents: Collection[str]) -> dict[str, list[str]]:
    """SHA-256 → the paths at which the source last claimed something of these contents."""
    found: dict[str, list[Occurrence]] = {}
    for batch in batches if contents else ():
        for sha256, occurrences in read_occurrences(batch).items():
            if sha256 in contents:
                latest = [one for one in occurrences if one.source == source]
                unnamed = [one for one in occurrences if one.source is None]
                found[sha256] = latest or found.get(sha256, []) + unnamed
    return {
        sha256: [one.path for one in occurrences if (one.split, one.label, one.group) not in (UNCLAIMED, GONE)]
        for sha256, occurrences in found.items()
    }


def describe(before: Known, after: Known, contents: Iterable[str]) -> Iterator[str]:
    """What has changed of these contents, in a few words each."""
    verdicts = [(judge(before[sha256]), judge(after[sha256])) for sha256 in contents]
    relabeled = Counter((old.labels, new.labels) for old, new in verdicts if old.labels != new.labels)
    for (old, new), count in relabeled.most_common():
        yield _change(old, new, count)
    moved = Counter((old.split, new.split) for old, new in verdicts if old.split != new.split)
    for (left, entered), count in moved.most_common():
        yield f"{describe_images(count)} moved from {left} to {entered}"
    regrouped = Counter((old.group, new.group) for old, new in verdicts if old.group != new.group)
    yield from describe_regrouped(regrouped)
    if same := sum(old == new for old, new in verdicts):
        yield f"{describe_images(same)} labeled as before by another source"
    lost = {
        label
        for old, new in verdicts
        for label in label_sets.members_of(old.labels) - label_sets.members_of(new.labels)
    }
    texts = {label for said in set(after.values()) for label in judge(said).labels} if lost else set()
    left_over = label_sets.members_of(texts)
    yield from (f"class {label!r} has no more images" for label in sorted(lost - left_over))


def _change(old: tuple[str, ...], new: tuple[str, ...], count: int) -> str:
    before, now = (" and ".join(map(_written, labels)) for labels in (old, new))
    if not new:
        return f"{counted(count, 'label')} removed ({before})"
    if not old:
        return f"{describe_images(count, 'known ')} labeled {now}"
    contradiction = ", which contradict each other" if len(new) > 1 else ""
    return f"{describe_images(count)}: {before} → {now}{contradiction}"


def _written(label: str) -> str:
    return "none of the classes" if label == label_sets.NONE_OF_THEM else label_sets.describe(label)


def describe_absent(known: Known, now: Mapping[str, Mapping[str, frozenset[Claim]]], unnamed: int) -> Iterator[str]:
    """Classes of which the sources have no image any more, and images of which another source says something else.

    Args:
        unnamed: images that labels.csv gave a label and does not name any more.
        now: source → SHA-256 → what it claims now; a source that labels nothing now has been emptied, perhaps.
    """
    if unnamed:
        yield f"{_keep(unnamed)} the label that labels.csv gave before (a row with a blank label removes it)"
    for source, contents in now.items():
        texts = {label for claims in set(contents.values()) for _, label, _ in claims if label is not None}
        labels = label_sets.members_of(texts)
        said = Counter(known[sha256] for sha256 in known.keys() - contents.keys()) if texts else Counter()
        kept = Counter[str]()
        for one, count in said.items():
            if any(each.source == source and each.claims for each in one):
                kept.update(dict.fromkeys(label_sets.members_of(judge(one).labels), count))
        for label in sorted(kept.keys() - labels):
            yield f"class {label!r} has no image in {source} any more, {_keep(kept[label])} its label"
        yield from _describe_overruled(known, source, contents)


def _describe_overruled(known: Known, source: str, contents: Mapping[str, frozenset[Claim]]) -> Iterator[str]:
    """Images of which another source says something else, by what that is."""
    pairs = [(known[sha256], claims) for sha256, claims in contents.items() if claims]
    overruled = [(judge(said), claims) for said, claims in pairs if _contradicts(said, claims)]
    held_out = sum(verdict.split == "test" and all(one[0] != "test" for one in claims) for verdict, claims in overruled)
    if held_out:
        stay = "stays" if held_out == 1 else "stay"
        yield (
            f"{describe_images(held_out)} labeled for training in {source} {stay} in the test set, because another "
            "source holds the same image out; move such an image out of test/ there, or, if that source is gone, give "
            "it the split train in labels.csv"
        )
    if others := len(overruled) - held_out:
        has = "has" if others == 1 else "have"
        yield (
            f"{describe_images(others)} of {source} {has} another label in another source; the label that was ingested "
            "last counts"
        )


def _contradicts(said: tuple[Said, ...], claims: frozenset[Claim]) -> bool:
    verdict = judge(said)
    named = {(split, label) for split, label, _ in claims}
    return not any((verdict.split, label) in named for label in verdict.labels or (None,))


def _keep(count: int) -> str:
    return f"{describe_images(count)} {'keeps' if count == 1 else 'keep'}"


def describe_images(count: int, kind: str = "") -> str:
    """``1 image``, ``2 known images``."""
    return counted(count, f"{kind}image")
