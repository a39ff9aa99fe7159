"""Search settings of pretraining on the images of a workspace: data/prepared and params.yaml in, reports/tune.json out.

    .simclr/tune/<key>/search.sqlite   what was drawn and every result, by Optuna
    .simclr/tune/<key>/<run>/          the training that is on its way

The key names the present settings, images, labels, and what was asked for: the same command continues an interrupted
search, and shows a finished one again. A search holds the workspace, so that no training runs at the same time.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec

from deploy.artifact import write_atomically
from deploy.failure import install_command
from pipeline import params
from pipeline.dvc import client
from pipeline.errors import ParamsError
from pipeline.git import leave_out
from pipeline.maintenance.records import FINISHED, SEARCHES
from pipeline.tune.report import Asked, Report, describe_tried
from pipeline.workspace import Workspace
from simclr_core.config import PretrainConfig
from simclr_core.data.shards import content_digest, read_card
from simclr_core.params import read_block
from simclr_core.tune.halving import Plan, plan
from simclr_core.tune.judge import TRUST, choose_judge
from simclr_core.tune.search import Search
from simclr_core.tune.space import as_params, describe_space
from simclr_core.tune.trial import Trainings

LEAST_EPOCHS = 1  # of the present settings in the first rung


def tune(workspace: Workspace, asked: Asked, say: Callable[[str], None] = print) -> Report:
    """Search, or continue, or show again; then write the report, and with ``asked.write`` the winner.

    Args:
        say: gets a line for each training.

    Raises:
        BusyError: another search, or a run, holds the workspace.
        ParamsError: the time is too short for these images, or Optuna is not installed.
        SimclrError: the prepared images cannot be used, or nothing can be judged.
        SystemExit: 128 + the signal that asked to stop; the same command continues.
    """
    _require_optuna()
    with client.exclusive(workspace.root, "simclr tune"):
        config = read_block(workspace.params, "pretrain", PretrainConfig)
        folder = workspace.scratch / SEARCHES / _key(workspace, config, asked)
        judge = choose_judge(workspace.root, asked.seed)
        images = read_card(workspace.prepared).images["train"]
        space = describe_space(config, images)
        training = Trainings(workspace.root, folder, judge)
        search = Search(folder, config, space, training, asked.seed, lambda one: say(describe_tried(one)))
        planned = plan(asked.seconds, asked.trials, asked.seeds)
        try:
            _require_time(planned, search.present_seconds(), asked)
        except ParamsError:
            shutil.rmtree(folder)  # with a speed that was measured on a busy machine, perhaps
            raise
        outcome = search.run(planned, asked.seeds)
        changes = as_params(config, outcome.values[outcome.winner]) if outcome.winner else {}
        if changes and outcome.epochs != config.epochs:
            changes["pretrain.epochs"] = json.dumps(outcome.epochs)
        wrote = asked.write and outcome.better
        found = Report(asked, judge.name, judge.images, TRUST[judge.name], space, outcome, changes, wrote)
        if wrote:
            params.override(workspace, changes)
        workspace.reports.mkdir(exist_ok=True)
        leave_out(workspace.reports, "tune.json")
        write_atomically(workspace.reports / "tune.json", found.to_json() + "\n")
        (folder / FINISHED).touch()
    return found


def _key(workspace: Workspace, config: PretrainConfig, asked: Asked) -> str:
    what = {name: value for name, value in asdict(asked).items() if name != "write"}
    named = [config.model_dump(mode="json"), content_digest(workspace.prepared), what]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def _require_time(planned: Plan, epoch: float, asked: Asked) -> None:
    if planned.rungs[0].seconds < LEAST_EPOCHS * epoch:
        least = asked.seconds * LEAST_EPOCHS * epoch / planned.rungs[0].seconds
        given = planned.rungs[0].seconds
        raise ParamsError(
            f"--budget is {asked.seconds / 60:.3g} min, which gives each of {asked.trials} settings {given:.2g} s in "
            f"the first rung, and one epoch of the present ones takes {epoch:.2g} s; give at least {least / 60:.3g} "
            "min, or fewer --trials"
        )


def _require_optuna() -> None:
    if find_spec("optuna") is None:
        raise ParamsError(f"simclr tune needs Optuna, which is not installed; run {install_command('tune')}")
