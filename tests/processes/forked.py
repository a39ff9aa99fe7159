"""Processes forked from one that has imported torch: they start in no time, and share nothing else."""

import multiprocessing

IMPORTED = """
simclr_core.pretraining.checkpoint simclr_core.model.encoder torch torch.distributed torch.multiprocessing torch.testing
"""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED.split())
