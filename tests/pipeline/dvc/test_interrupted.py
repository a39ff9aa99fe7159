"""Ended at any step of tracking what was ingested, an ingest is completed by the next one, and nothing is lost."""

import os
import signal
import subprocess

import pytest

from deploy.artifact import verify
from pipeline.dvc.client import changed_stages
from pipeline.ingest.ingest import ingest
from pipeline.ingest.raw import batches, read_bytes
from pipeline.workspace import Workspace
from tests.conftest import draw, encode
from tests.pipeline.conftest import put
from tests.processes import program
from tests.repetitions import repeated, some

PROGRAM = """
import os, pathlib, signal, sys
from pipeline.dvc import client, project
from pipeline.ingest.ingest import ingest
from pipeline.workspace import Workspace

root, turn, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
steps = 0
tracking = False

def step(event, given):
    global steps
    writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
    if tracking and (event in CHANGES or writes):
        steps += 1
        if steps == turn:
            os.kill(os.getpid(), number)

def track(*given):
    global tracking
    tracking = True
    project.track(*given)
    tracking = False

sys.addaudithook(step)
client.track = track
ingest(Workspace(pathlib.Path(root)))
print(steps)
"""


def interrupted(workspace: Workspace, turn: int, number: signal.Signals) -> "subprocess.CompletedProcess[str]":
    command = program.command(PROGRAM, workspace.root, turn, int(number))
    return subprocess.run(command, cwd=program.ROOT, env=os.environ, capture_output=True, text=True, check=False)


PLACES = 20
ENDS = [(place, number) for place in range(PLACES) for number in (signal.SIGINT, signal.SIGTERM)]


@repeated
@pytest.mark.slow
@pytest.mark.timeout(900)  # with all repetitions
def test_tracking_that_is_ended_at_any_step_is_completed(filled: Workspace) -> None:
    ingest(filled)
    put(filled, "unlabeled/counted.png", encode(draw(1, 950)))
    steps = int(interrupted(filled, 0, signal.SIGINT).stdout.split()[-1])
    assert steps > 10
    some_ends = some(ENDS, 6)
    assert {number for _, number in some_ends} == {signal.SIGINT, signal.SIGTERM}
    for images, (place, number) in enumerate(some_ends, start=42):
        put(filled, f"unlabeled/{images}.png", encode(draw(2, 2000 + images)))
        turn = 1 + place * steps // PLACES
        done = interrupted(filled, turn, number)
        assert done.returncode or int(done.stdout.split()[-1]) < turn, "one that took fewer steps may have ended"
        ingest(filled)
        assert sum(1 for _ in read_bytes(filled.raw)) == images
        for batch in batches(filled.raw):
            verify(batch)
        assert not changed_stages(filled.root).get("data/raw.dvc"), turn
        assert ingest(filled).batch is None
