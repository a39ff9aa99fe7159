"""A pretraining that is killed again and again ends with the bytes of one that was left alone.

    python -m benchmarks.simclr_core.pretrain_soak --kills 200 --json FILE

The real command with its launcher and two gloo processes, on a tiny network. Each life of it is ended by SIGKILL at a
random moment or at a random one of the failpoints on its way; the victim is the first process, the second, both, the
launcher, or all. A failpoint stops its process, and the victim dies while that one is there. Images are read by threads
and no processes, which cannot be killed alone: ``dataset.decode`` is the failpoint in them. Whenever a life comes
to the end, its last checkpoint (network, optimizer, history), model and reports are compared with those of the run that
no one disturbed, and the next one begins from nothing.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from deploy.failpoint import VARIABLE
from simclr_core.machine.settings import PROCESSES
from tests.conftest import write_prepared

PLACES = {  # failpoints, and up to which of its visits a life may be killed there
    "lock.held": 1,
    "launch.joined": 1,
    "pretrain.resumed": 1,
    "dataset.decode": 40,
    "pretrain.step": 12,
    "pretrain.stepped": 12,
    "pretrain.epoch": 3,
    "checkpoint.copied": 5,
    "checkpoint.network": 5,
    "checkpoint.publish": 5,
    "artifact.flush": 6,
    "artifact.rename": 6,
    "artifact.renamed": 6,
    "checkpoint.prune": 5,
    "pretrain.trained": 1,
    "pretrain.published": 1,
    "artifact.replace": 3,
    "pretrain.reported": 1,
    "checkpoint.remove": 1,
}
VICTIMS = ("first", "second", "both", "launcher", "all")
END = "pretrain.trained"  # all steps are done, and the last checkpoint is still there
HANG, STEPPING = 60.0, 30.0  # seconds: to be gone after a kill, to take a step after a start
LIFE = 12.0  # seconds: moments of kills are uniform in it
EPOCHS = 4


class Training:
    """``python -m simclr_core pretrain`` in two processes, from start to end."""

    def __init__(self, workspace: Path, stop_at: str) -> None:
        self._runs = workspace / ".simclr" / "runs"
        self._before = self._checkpoints()
        command = [sys.executable, "-m", "simclr_core", "--workspace", str(workspace), "pretrain"]
        environment = {**os.environ, PROCESSES: "2", "OMP_NUM_THREADS": "1", VARIABLE: stop_at}
        self.started = time.monotonic()
        self.stepped_after: float | None = None  # at most: seconds to the first new checkpoint
        with (workspace / "log").open("wb") as log:
            self.launcher = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        self._ranks: dict[str, psutil.Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill("all")
        self.launcher.wait()

    def look(self) -> None:
        with suppress(psutil.Error):
            for child in self.launcher.children():
                if rank := child.environ().get("RANK"):
                    self._ranks[rank] = child
        if self.stepped_after is None and not self._checkpoints() <= self._before:
            self.stepped_after = time.monotonic() - self.started

    def stopped(self) -> bool:
        """Whether one of the processes is at the failpoint."""
        return any(_status(rank) == psutil.STATUS_STOPPED for rank in self._ranks.values())

    def resume(self) -> None:
        for rank in self._ranks.values():
            with suppress(psutil.Error):
                rank.resume()

    def kill(self, victim: str) -> bool:
        """False if a victim is not there yet; then none is harmed."""
        chosen = {"first": "0", "second": "1", "both": "01", "all": "01", "launcher": ""}[victim]
        if victim != "all" and not set(chosen) <= self._ranks.keys():
            return False
        victims = [self._ranks[rank] for rank in chosen if rank in self._ranks]
        for process in [*victims, *([self.launcher] if victim in ("launcher", "all") else [])]:
            with suppress(psutil.Error):
                process.kill()
        return True

    def alive(self) -> dict[str, str]:
        """Who has not ended, and what the system says of it."""
        processes = {"launcher": self.launcher, **self._ranks}
        self.launcher.poll()  # or it would stay a zombie
        states = {name: _status(process) for name, process in processes.items()}
        return {
            name: state for name, state in states.items() if state not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        }

    def _checkpoints(self) -> set[Path]:
        return {path for path in self._runs.glob("*/step-*") if not path.suffix}


@dataclass
class Tally:
    """What was done to the trainings, and what went wrong."""

    victims: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    finished: int = 0
    with_checkpoint: int = 0
    faults: list[str] = field(default_factory=list)
    ended_after: list[float] = field(default_factory=list)
    stepped_after: list[float] = field(default_factory=list)


def live(workspace: Path, tally: Tally, place: str, turn: int, moment: float, victim: str) -> dict[str, bytes] | None:
    """One life: killed when ``place`` is reached for the ``turn``-th time, or, without a place, after ``moment``
    seconds; without a ``victim`` left alone.

    Returns the bytes of what it left when it came to its end, None when it did not.
    """
    last: dict[str, bytes] = {}
    has_killed = False
    with Training(workspace, f"{place}:stop@{turn}" if place and victim else f"{END}:stop") as training:
        while training.launcher.poll() is None and not has_killed:
            time.sleep(0.02)
            training.look()
            is_there = training.stopped()
            if is_there and not last and (not (place and victim) or place == END):
                last = _files(workspace, ".simclr/runs")
            if victim and (is_there if place else time.monotonic() - training.started > moment):
                has_killed = training.kill(victim)
            if is_there:
                training.resume()
        _await_end(training, tally, f"SIGKILL of {victim} at {place}@{turn} or {moment:.1f} s")
    if training.stepped_after is not None:
        tally.stepped_after.append(training.stepped_after)
    if has_killed:
        tally.victims[victim] += 1
        tally.places[place or "random moment"] += 1
        return None
    if training.launcher.returncode != 0:
        log = (workspace / "log").read_text(encoding="utf-8")
        tally.faults.append(f"exit code {training.launcher.returncode}: {log[-2000:]}")
        return None
    return last | _files(workspace, "models/pretrained", "reports")


def soak(workspace: Path, reference: dict[str, bytes], kills: int, seed: int) -> Tally:
    """Kill ``kills`` times, then let it end."""
    chance = random.Random(seed)
    tally = Tally()
    is_over = False
    while not is_over and not tally.faults:
        victim = chance.choice(VICTIMS) if tally.victims.total() < kills else ""
        place = chance.choice(["", chance.choice(list(PLACES))])
        turn = chance.randint(1, PLACES.get(place, 1))
        found = live(workspace, tally, place, turn, chance.uniform(0.0, LIFE), victim)
        if found is not None:
            compare(tally, found, reference)
            shutil.rmtree(workspace / "models" / "pretrained")
            shutil.rmtree(workspace / "reports")
            is_over = not victim
    return tally


def compare(tally: Tally, found: dict[str, bytes], reference: dict[str, bytes]) -> None:
    """A run that was to be killed at a place it never came to shows no checkpoint: that is removed in the end."""
    has_checkpoint = any(name.startswith(".simclr") for name in found)
    expected = {name for name in reference if has_checkpoint or not name.startswith(".simclr")}
    tally.finished += 1
    tally.with_checkpoint += has_checkpoint
    tally.faults += [
        f"{name}: differs" for name in sorted(expected | found.keys()) if found.get(name) != reference.get(name)
    ]


def make_workspace(root: Path) -> Path:
    """96 images of 16 pixels, a network of 100,000 parameters, a checkpoint after every other step of 24."""
    root.mkdir()
    write_prepared(root)
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["pretrain"].update(epochs=EPOCHS, checkpoint_every_steps=2)
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return root


def measure(folder: Path, kills: int, lanes: int, seed: int) -> dict[str, Any]:
    """``lanes`` workspaces side by side share the kills: a start leaves a core idle for half of its time."""
    began = time.monotonic()
    quiet = Tally()
    reference = live(make_workspace(folder / "reference"), quiet, "", 1, 0.0, "")
    assert reference is not None, quiet.faults
    shares = [kills * (lane + 1) // lanes - kills * lane // lanes for lane in range(lanes)]
    workspaces = [make_workspace(folder / str(lane)) for lane in range(lanes)]
    with ThreadPoolExecutor(lanes) as pool:
        seeds = range(seed, seed + lanes)
        tallies = list(pool.map(soak, workspaces, [reference] * lanes, shares, seeds))
    return {"kills": kills, "seed": seed, "seconds": round(time.monotonic() - began), **summary(tallies)}


def summary(tallies: Sequence[Tally]) -> dict[str, Any]:
    """``passed`` is the verdict: all bytes equal, no process hangs, all step again in time."""
    ended, stepped = (
        [second for one in tallies for second in getattr(one, name)] for name in ("ended_after", "stepped_after")
    )
    faults = [fault for one in tallies for fault in one.faults]
    late = sum(seconds > STEPPING for seconds in stepped)
    return {
        "victims": dict(sum((one.victims for one in tallies), Counter())),
        "places": dict(sum((one.places for one in tallies), Counter())),
        "finished": sum(one.finished for one in tallies),
        "finished_with_optimizer_compared": sum(one.with_checkpoint for one in tallies),
        "ended_after_seconds": {"median": _rounded(statistics.median(ended)), "most": _rounded(max(ended))},
        "stepped_after_seconds": {"median": _rounded(statistics.median(stepped)), "most": _rounded(max(stepped))},
        "stepped_late": late,
        "faults": faults,
        "passed": not faults and not late,
    }


def _await_end(training: Training, tally: Tally, what: str) -> None:
    """The processes that are left after ``what`` must end by themselves."""
    began = time.monotonic()
    while training.alive():
        if time.monotonic() - began > HANG:
            tally.faults.append(f"{training.alive()} still there {HANG:g} s after {what}")
            return
        training.resume()  # one may come to the failpoint only now
        time.sleep(0.02)
    tally.ended_after.append(time.monotonic() - began)


def _files(workspace: Path, *folders: str) -> dict[str, bytes]:
    """Name and content of every file; of checkpoints the newest alone: which others there are depends on the kills, as
    does whether there are those of an earlier run that was killed while it removed them (``.finished``)."""
    paths = [path for folder in folders for path in (workspace / folder).rglob("*") if path.is_file()]
    paths = [path for path in paths if ".finished" not in {parent.suffix for parent in path.parents}]
    newest = max((path.parent.name for path in paths if path.parent.name.startswith("step-")), default="")
    return {
        path.relative_to(workspace).as_posix(): path.read_bytes()
        for path in paths
        if path.suffix != ".lock" and path.parent.name.startswith("step-") <= (path.parent.name == newest)
    }


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_DEAD)


def _rounded(seconds: float) -> float:
    return round(seconds, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--lanes", type=int, default=2, help="trainings side by side (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="simclr-pretrain-soak-") as folder:
        result = measure(Path(folder), options.kills, options.lanes, options.seed)
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
