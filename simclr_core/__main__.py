"""The training stages, each a command that runs alone in a workspace:

    python -m simclr_core initial
    python -m simclr_core augment-sheet --out views.png
    python -m simclr_core pretrain
    python -m simclr_core linear_eval
    python -m simclr_core finetune --fraction 0.01
    python -m simclr_core distill
    python -m simclr_core export
    python -m simclr_core compare
    python -m simclr_core latency
    python -m simclr_core replay 1234
    python -m simclr_core rate

Exit codes: 0 done; 2 something to fix, in one line on stderr; 130 and 143 stopped by Ctrl-C or SIGTERM, in which case
pretraining has saved and the same command continues.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from deploy.errors import DeployError
from deploy.failure import ADVICE, describe
from simclr_core.compute.record import Ran, write_ran
from simclr_core.compute.settings import STAGES as COMPUTE_STAGES
from simclr_core.compute.settings import Where, where
from simclr_core.errors import SimclrError
from simclr_core.machine import wait_policy
from simclr_core.machine.place import find_place
from simclr_core.machine.settings import own_node, wanted_processes
from simclr_core.machine.threads import choose_threads
from simclr_core.reporter import fail

logger = logging.getLogger(__name__)


class Stage(NamedTuple):
    """The module whose ``run(workspace, ...)`` is the stage, and the arguments of the command line that it takes."""

    module: str
    help: str
    arguments: Mapping[str, Mapping[str, Any]] = {}


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


STAGES = {
    "initial": Stage(
        "simclr_core.pretraining.initial", "what pretraining starts from: random weights, or the champion's network"
    ),
    "augment-sheet": Stage(
        "simclr_core.pretraining.augment_sheet",
        "draws the views that pretraining will see; not a stage",
        {
            "--out": {"type": Path, "metavar": "FILE", "help": "default: reports/augment-sheet.png in the workspace"},
            "--images": {"type": int, "default": 8, "metavar": "N", "help": "default: 8"},
        },
    ),
    "pretrain": Stage("simclr_core.pretraining.pretrain", "SimCLR pretraining: data/prepared to models/pretrained"),
    "rate": Stage(
        "simclr_core.pretraining.rate",
        "how many images a second this machine pretrains on, by a few steps; not a stage",
        {
            "--images": {"type": int, "default": 2000, "metavar": "N", "help": "training images; default: 2000"},
            "--classes": {"type": int, "default": 10, "metavar": "N", "help": "classes of their labels; default: 10"},
            "--channels": {"type": int, "metavar": "N", "help": "as prepare.channels; default: 3 of 8 bits"},
            "--sizes": {
                "type": _size,
                "nargs": "+",
                "default": (),
                "metavar": "SIZE",
                "help": "of some prepared images, as 28x41: height and width; default: squares as large as the views",
            },
        },
    ),
    "linear_eval": Stage(
        "simclr_core.evaluation.linear_eval",
        "linear probe and kNN of the frozen encoder, compared with random and pixel baselines",
    ),
    "finetune": Stage(
        "simclr_core.evaluation.finetune",
        "fine-tuning on a fraction of the labels, compared with training from scratch",
        {"--fraction": {"required": True, "metavar": "0.01", "help": "as written in linear_eval.fractions"}},
    ),
    "distill": Stage(
        "simclr_core.distillation.distill",
        "a student that learns from a teacher on all training images: models/distilled",
    ),
    "export": Stage("simclr_core.export.export", "the ONNX bundle that is served"),
    "compare": Stage(
        "simclr_core.evaluation.compare", "the exported candidate compared with the released champion, image by image"
    ),
    "latency": Stage("simclr_core.export.latency", "the latency of both for one image on this machine"),
    "replay": Stage(
        "simclr_core.pretraining.replay",
        "repeats a pretraining step, to find where its first NaN comes from",
        {"step": {"type": int, "metavar": "STEP", "help": "number of the step, as in the error message"}},
    ),
}
IN_A_GROUP = ("pretrain", "replay", "linear_eval", "finetune", "distill")  # stages that run once per GPU
BY_BATCHES = ("pretrain", "replay")  # of them, those that share each batch equally, or refuse to


def main(arguments: list[str]) -> int:
    """Run one stage; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        place = find_place()
        # Processes of a group say the same things; the first one's word is enough.
        level = logging.INFO if place is None or place.rank == 0 else logging.ERROR
        logging.basicConfig(format="%(message)s", level=level)
        return _run(options, arguments)
    except (SimclrError, DeployError) as error:
        return fail(error)
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        return fail(describe(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Stages are imported here, so that ``--help`` and a faulty command line do not wait for torch."""
    said = [wait_policy.apply(), choose_threads()]
    if options.stage in COMPUTE_STAGES and find_place() is None:
        with _recorded(options) as ran:
            return _run_where_wanted(options, arguments, said, ran)
    return _run_here(options, arguments, said)


def _run_where_wanted(options: argparse.Namespace, arguments: list[str], said: list[str | None], ran: Ran) -> int:
    """On the engine that ``.simclr/compute.yaml`` names."""
    wanted = where(options.workspace, options.stage)
    ran.engine = wanted.engine
    if wanted.engine == "ray":
        shares: Callable[[int], bool] = bool
        if options.stage in BY_BATCHES:
            _require_shares(options.workspace, wanted.workers or 1)
            shares = partial(_can_share, options.workspace)
        from simclr_core.compute.ray_engine import run

        own = arguments[arguments.index(options.stage) :]  # --workspace, which comes before it, is another one there
        return run(options.workspace, options.stage, own, wanted, ran, shares)
    return _run_here(options, arguments, said, ran, wanted)


def _run_here(
    options: argparse.Namespace,
    arguments: list[str],
    said: list[str | None],
    ran: Ran | None = None,
    wanted: Where | None = None,
) -> int:
    """In one process of this machine, or in several; or in those of several machines, each of which does this."""
    if options.stage in IN_A_GROUP:
        nodes = (wanted.nodes if wanted else None) or 1
        count = _count_processes(options.workspace, options.stage in BY_BATCHES, nodes)
        if ran is not None:
            from simclr_core.machine.devices import usable_gpus

            ran.workers, ran.gpus = nodes * count, nodes * min(count, usable_gpus())
        if nodes * count > 1:
            from simclr_core.launch import Nodes, launch

            group = Nodes(nodes, own_node(nodes), wanted.address or "") if wanted and nodes > 1 else Nodes()
            return launch(count, arguments, group)
    for line in filter(None, said):
        logger.info(line)
    stage = import_module(STAGES[options.stage].module)
    given = {name: value for name, value in vars(options).items() if name not in ("stage", "workspace")}
    stage.run(options.workspace, **given)
    return 0


@contextmanager
def _recorded(options: argparse.Namespace) -> Iterator[Ran]:
    """Leaves a record of where the stage ran, however it ends."""
    name = f"finetune@{options.fraction}" if options.stage == "finetune" else options.stage
    ran, began = Ran("local", [socket.gethostname()], 0), time.monotonic()
    try:
        yield ran
    finally:
        if ran.workers:
            ran.seconds = ran.seconds or ran.workers * (time.monotonic() - began)
            with suppress(OSError):  # a full disk: the stage's own end is what counts
                write_ran(options.workspace, name, ran)


def _count_processes(workspace: Path, by_batches: bool, nodes: int) -> int:
    """How many processes to start on each node. What all could not share is refused before any has loaded torch."""
    given = None if find_place() is not None else wanted_processes()
    if by_batches and given is not None and nodes * given > 1:
        _require_shares(workspace, nodes * given)
    from simclr_core.launch import processes

    count = processes()
    if by_batches and nodes * count > 1 and given is None:
        _require_shares(workspace, nodes * count)
    return count


def _can_share(workspace: Path, count: int) -> bool:
    from simclr_core.errors import BatchSizeError

    try:
        _require_shares(workspace, count)
    except BatchSizeError:
        return False
    return True


def _require_shares(workspace: Path, count: int) -> None:
    from simclr_core.config import PretrainConfig
    from simclr_core.data.shares import require_shares_in
    from simclr_core.params import read_block

    batch_size = read_block(workspace / "params.yaml", "pretrain", PretrainConfig).batch_size
    require_shares_in(workspace, batch_size, count)


def build_parser() -> argparse.ArgumentParser:
    """The command line; docs/reference/commands.md is written from it as well."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("simclr_core", description=description, epilog=epilog, formatter_class=formatter)
    parser.add_argument("--workspace", type=Path, default=Path(), metavar="DIR", help="default: the current folder")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, stage in STAGES.items():
        command = stages.add_parser(name, help=stage.help, description=f"{stage.help[0].upper()}{stage.help[1:]}.")
        for argument, settings in stage.arguments.items():
            command.add_argument(argument, **settings)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to give equal results twice
    sys.exit(main(sys.argv[1:]))
