"""A stage that would enlarge images which were reduced before refuses, also when `dvc repro` alone starts it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from simclr_core.data.shards import read_card, write_card
from simclr_core.errors import DatasetError
from simclr_core.evaluation import finetune, linear_eval
from simclr_core.pretraining import pretrain


@pytest.mark.parametrize("stage", [pretrain.run, linear_eval.run, partial(finetune.run, fraction="0.1")])
def test_a_stage_does_not_enlarge_what_was_reduced(pretrained: Path, stage: Callable[[Path], None]) -> None:
    prepared = pretrained / "data" / "prepared"
    write_card(prepared, replace(read_card(prepared), short_side=15))
    with pytest.raises(DatasetError, match=r"reduced to 15 pixels .* takes 16: they would be enlarged again"):
        stage(pretrained)
