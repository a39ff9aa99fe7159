"""What must come of copies, as plain loops over files: slow, and easy to check by eye."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from pipeline.validation.probe.facts import Facts
from tests.pipeline.validation.corpus.contents import File

FAR = 99  # bits, of pictures that form no pair
UNSAFE = "an absolute name, or one with '..'; rename it and ingest it again"


def oracle(
    files: Sequence[File],
    contents: Mapping[str | None, Facts],
    *,
    allowed: Collection[str | None],
    near_distance: int | None,
    quarantine_near_copies: bool,
    placeholder_copies: int,
) -> list[dict[str, Any]]:
    """The judgments on files of which nothing can be wrong but a name that begins with '../', and that are copies."""
    blank = {"message": "", "copy_of": None, "near_group": None, "near_group_size": None}
    found: list[dict[str, Any]] = [blank | {"reasons": [], "warnings": []} for _ in files]
    shown_by: dict[str | None, list[int]] = {}
    for number, file in enumerate(files):
        if str(file["path"]).startswith("../"):
            found[number] |= {"reasons": ["unsafe_path"], "message": UNSAFE}
        else:
            shown_by.setdefault(contents[file["sha256"]].pixel_hash, []).append(number)
    copies = {}
    for group in shown_by.values():
        for number, fault in same_pixels(files, group).items():
            found[number] |= fault
        copies |= {number: len(group) for number in group if not found[number]["reasons"]}
    bits = distances({number: contents[files[number]["sha256"]] for number in copies}, near_distance)
    for group in connected(list(copies), bits):
        names = {"near_group": min(files[number]["sha256"] for number in group), "near_group_size": len(group)}
        flat = median([contents[files[number]["sha256"]].entropy or 0 for number in group]) < 4
        times = sum(copies[number] for number in group)
        if flat and times >= placeholder_copies:
            faults = placeholders(files, group, times, placeholder_copies)
        else:
            faults = nearly_the_same(files, group, bits, quarantine_near_copies, near_distance)
        thrown_out = {number for number, fault in faults.items() if fault["reasons"] == ["placeholder"]}
        overruled = {number for number in faults if files[number]["sha256"] in allowed}
        used = [number for number in group if number not in faults or number in overruled]
        for number in group:
            found[number] |= names if len(group) > 1 else {}
            found[number] |= faults[number] if number not in used else {}
            found[number]["warnings"] += ["released"] if number in overruled else []
            found[number]["warnings"] += ["near_duplicate"] if number in used and len(used) > 1 else []
            near = [n for n in group if n != number and bits(number, n) < FAR and not thrown_out & {number, n}]
            others = {files[n]["label"] for n in near} - {None, files[number]["label"]}
            contradicted = others and files[number]["label"] is not None
            found[number]["warnings"] += ["near_label_conflict"] if contradicted else []
    return found


def same_pixels(files: Sequence[File], group: Sequence[int]) -> dict[int, dict[str, Any]]:
    newest = newest_label(files, group)
    best = best_of(files, group, newest)
    labels = {files[n]["label"] for n in group if n == best or files[n]["ingest_batch"] == newest} - {None}
    if len(labels) > 1:
        message = f"labeled {' and '.join(sorted(map(str, labels)))}"
        return {number: {"reasons": ["label_conflict"], "message": message} for number in group}
    found = {}
    for number in group:
        same_bytes = [n for n in group if files[n]["sha256"] == files[number]["sha256"]]
        message = f"the same {'bytes' if best in same_bytes else 'pixels'} as {files[best]['path']}"
        if files[best]["split"] == "test" and files[number]["split"] == "train":
            reason, message = "test_leak", message + " of the test set"
        elif number == best_of(files, same_bytes, newest):
            reason = "pixel_duplicate"
        else:
            reason = "exact_duplicate"
        found[number] = {"reasons": [reason], "message": message, "copy_of": files[best]["sha256"]}
    return {number: fault for number, fault in found.items() if number != best}


def placeholders(files: Sequence[File], group: Sequence[int], times: int, limit: int) -> dict[int, dict[str, Any]]:
    words = f"{times} files show this flat picture or nearly it; validate.near_duplicates.placeholder_copies is {limit}"
    fault = {"reasons": ["placeholder"], "message": words}
    return {number: fault for number in group if files[number]["split"] == "train"}


def nearly_the_same(
    files: Sequence[File], group: Sequence[int], bits: Callable[[int, int], int], quarantine: bool, limit: int | None
) -> dict[int, dict[str, Any]]:
    tests = [number for number in group if files[number]["split"] == "test"]
    best = best_of(files, group, newest_label(files, group))
    place = " of the test set" if tests else ""
    targets = tests or [best]
    found = {}
    for number in group:
        if number in tests or number == best or not (tests or quarantine):
            continue
        differ, copy_of, nearest = min((bits(number, n), files[n]["sha256"], n) for n in targets)
        chain, where = "", place
        if differ == FAR:
            chain, where, copy_of = (
                f"in a chain of near copies with {files[best]['path']}{place}: ",
                "",
                files[best]["sha256"],
            )
            steps = hops(group, targets, bits)
            next_ones = [n for n in group if steps[n] == steps[number] - 1]
            differ, _, nearest = min((bits(number, n), files[n]["sha256"], n) for n in next_ones)
        same = f"nearly the same picture as {files[nearest]['path']}{where}"
        message = f"{chain}{same}, {differ} of 64 bits differ, at most {limit} may"
        reason = "test_leak" if tests else "near_duplicate"
        found[number] = {"reasons": [reason], "message": message, "copy_of": copy_of}
    return found


def hops(group: Sequence[int], targets: Sequence[int], bits: Callable[[int, int], int]) -> dict[int, int]:
    """How many pairs lead from each file of a connected group to the nearest target."""
    steps = dict.fromkeys(targets, 0)
    while len(steps) < len(group):
        last = max(steps.values())
        reached = [
            n for n in group if n not in steps and any(bits(n, one) < FAR for one in steps if steps[one] == last)
        ]
        steps |= dict.fromkeys(reached, last + 1)
    return steps


def newest_label(files: Sequence[File], group: Sequence[int]) -> str | None:
    return max((str(files[n]["ingest_batch"]) for n in group if files[n]["label"] is not None), default=None)


def best_of(files: Sequence[File], group: Sequence[int], newest: str | None) -> int:
    wishes: list[Callable[[File], bool]] = [
        lambda file: file["split"] == "test",
        lambda file: file["label"] is not None,
        lambda file: file["ingest_batch"] == newest,
    ]
    for wish in wishes:
        group = [number for number in group if wish(files[number])] or group
    return min(group, key=lambda n: (files[n]["ingest_batch"], files[n]["path"], files[n]["sha256"]))


def distances(facts: Mapping[int, Facts], limit: int | None) -> Callable[[int, int], int]:
    def bits(one: int, other: int) -> int:
        differ = ((facts[one].phash or 0) ^ (facts[other].phash or 0)).bit_count()
        compared = limit is not None and facts[one].hash_trusted and facts[other].hash_trusted
        return differ if compared and limit is not None and differ <= limit else FAR

    return bits


def connected(numbers: Sequence[int], bits: Callable[[int, int], int]) -> list[list[int]]:
    groups = [{number} for number in numbers]
    for one, other in combinations(numbers, 2):
        if bits(one, other) < FAR:
            joined = [group for group in groups if group & {one, other}]
            groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return [sorted(group) for group in groups]


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
