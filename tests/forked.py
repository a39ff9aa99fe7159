"""Processes forked from one that has imported torch and DVC: they start in no time, and share nothing else."""

import multiprocessing
import os
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from multiprocessing import forkserver

# Of DVC also what its commands import only when they run.
IMPORTED = """
simclr_core.pretraining.checkpoint simclr_core.model.encoder torch torch.distributed torch.multiprocessing torch.testing
configobj dvc._debug dvc.cachemgr dvc.cli.parser dvc.data_cloud dvc.dirs dvc.lock dvc.repo.add dvc.repo.artifacts
dvc.repo.brancher dvc.repo.datasets dvc.repo.graph dvc.repo.index dvc.repo.metrics dvc.repo.open_repo dvc.repo.params
dvc.repo.plots dvc.repo.push dvc.repo.stage dvc.repo.trie dvc.repo.worktree dvc.rwlock dvc.scm dvc.utils.strictyaml
dvc_data.hashfile._progress dvc_data.hashfile.db.index dvc_data.hashfile.db.local dvc_data.hashfile.status
dvc_data.index.checkout dvc_data.index.fetch dvc_data.index.push networkx platformdirs rich._emoji_codes rich.live
rich.padding rich.status rich.table ruamel.yaml scmrepo.git
"""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED.split())


@cache
def start_server() -> None:
    """Start it without its own output: it outlives the present standard streams, and the reader of a log that it kept
    open would wait until the tests end."""
    kept = {number: os.dup(number) for number in (1, 2)}
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            for number in kept:
                os.dup2(nowhere.fileno(), number)
            forkserver.ensure_running()
    finally:
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)
