"""Run the examples in docstrings of `simclr_core`, which the site's reference shows."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

MODULES = (
    "simclr_core.augmentation.augmentations",
    "simclr_core.data.golden",
    "simclr_core.data.groups",
    "simclr_core.data.label_sets",
    "simclr_core.data.order",
    "simclr_core.data.ragged",
    "simclr_core.data.shards",
    "simclr_core.distillation.objective",
    "simclr_core.evaluation.knn",
    "simclr_core.evaluation.multi_label.classifiers",
    "simclr_core.evaluation.transfer.few_shot",
    "simclr_core.evaluation.transfer.measure",
    "simclr_core.lars",
    "simclr_core.loss.nt_xent",
    "simclr_core.machine.place",
    "simclr_core.model.encoder",
    "simclr_core.monitoring.diagnostics",
    "simclr_core.schedule",
    "simclr_core.suggest.mistakes",
    "simclr_core.suggest.pool",
    "simclr_core.suggest.ranked",
    "simclr_core.tune.comparison",
    "simclr_core.tune.halving",
)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0


def test_no_example_is_left_out() -> None:
    paths = (path.relative_to(ROOT) for path in (ROOT / "simclr_core").rglob("*.py") if ">>> " in path.read_text())
    assert sorted(path.with_suffix("").as_posix().replace("/", ".") for path in paths) == sorted(MODULES)
