"""The tests can fail: each of these mistakes, planted alone into a copy of the package, turns them red.

    python -m benchmarks.pipeline.planted_defects [--only NAME ...] [--json FILE]

A defect is old text and new text in one file; the old text must be there exactly once, so that a defect that the code
has outgrown is an error and no success. The named tests run in the copy: green before, red with the defect. Red means
that a test failed: a copy that cannot be imported or collected does not count.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "simclr_core",
    "deploy",
    "benchmarks",
    "tests/conftest.py",
    "tests/processes",
    "tests/simclr_core",
    "tests/deploy",
    "pyproject.toml",
)
TESTS_FAILED = 1  # pytest's exit code; 2 and above: it could not run them
BATCHES, CHECKPOINT, WRITER, PRETRAIN, RESUMED = (
    f"tests/simclr_core/pretraining/test_{name}.py"
    for name in ("batches", "checkpoint", "checkpoint_writer", "pretrain", "resume")
)
LOSS, LARS, SCHEDULE = (f"tests/simclr_core/{name}.py" for name in ("loss/test_nt_xent", "test_lars", "test_schedule"))
RESUME = f"{RESUMED}::test_an_interrupted_run_continues_to_the_same_bytes[pretrain.step:raise@6]"


@dataclass(frozen=True)
class Defect:
    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    test: str  # a file of tests, or one test
    options: tuple[str, ...] = ()


DEFECTS = (
    Defect(
        "random draws of a step do not follow from the step",
        "simclr_core/pretraining/training.py",
        (("    torch.manual_seed(seed)  #", "    #"),),
        f"{RESUMED}::test_networks_that_draw_random_numbers_resume_too",
    ),
    Defect(
        "the optimizer's state is not restored",
        "simclr_core/pretraining/training.py",
        (("    checkpoint.restore_optimizer(learner.optimizer, state.optimizer)\n", ""),),
        RESUME,
    ),
    Defect(
        "a resumed run repeats its last step",
        "simclr_core/pretraining/training.py",
        (("writer.save(learner.state(step + 1,", "writer.save(learner.state(step,"),),
        RESUME,
    ),
    Defect(
        "the sampler is one step ahead",
        "simclr_core/pretraining/batches.py",
        (("= divmod(step, self.steps_per_epoch)", "= divmod(step + 1, self.steps_per_epoch)"),),
        BATCHES,
    ),
    Defect(
        "artifacts are written in place",
        "deploy/artifact.py",
        (
            (
                "work = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))\n    work.chmod(0o755)",
                "work = target\n    work.mkdir(exist_ok=True)",
            ),
            (
                "        if not (replace and target.exists()):\n            work.rename(target)\n"
                "        elif not _exchange(",
                "        if False and not _exchange(",
            ),
            ("    finally:\n        _remove(work)\n\n\ndef recover(", "    finally:\n        pass\n\n\ndef recover("),
        ),
        f"{RESUMED}::test_an_interrupted_run_continues_to_the_same_bytes[checkpoint.publish:raise@1]",
    ),
    Defect(
        "files are written in place",
        "deploy/artifact.py",
        (
            (
                "descriptor, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)\n    work = Path(name)",
                "work = path\n    descriptor = os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)",
            ),
        ),
        "tests/deploy/test_artifact.py",
    ),
    Defect(
        "the older checkpoint is pruned before the new one is published",
        "simclr_core/pretraining/checkpoint.py",
        (
            (
                "    try:\n        with publish(path_of(run, state.step))",
                "    for outdated in _checkpoints(run)[GENERATIONS - 1 :]:\n        shutil.rmtree(outdated)\n"
                "    try:\n        with publish(path_of(run, state.step))",
            ),
        ),
        CHECKPOINT,
        ("-k", "full_disk"),
    ),
    Defect(
        "a damaged checkpoint is used",
        "simclr_core/pretraining/checkpoint.py",
        (("        try:\n            verify(checkpoint)", "        try:\n            checkpoint.stat()"),),
        CHECKPOINT,
        ("-k", "damaged_newest"),
    ),
    Defect(
        "the statistics of BatchNorm are not restored",
        "simclr_core/model/model_directory.py",
        (
            (
                "module.load_state_dict(tensors)",
                'module.load_state_dict({k: t for k, t in tensors.items() if "running" not in k}, strict=False)',
            ),
        ),
        RESUME,
    ),
    Defect(
        "a checkpoint in the making sees the next step",
        "simclr_core/pretraining/checkpoint_writer.py",
        (("copies[name] = buffer.copy_(tensor, non_blocking=True)", "copies[name] = tensor"),),
        WRITER,
    ),
    Defect(
        "what could not be written is not reported",
        "simclr_core/pretraining/checkpoint_writer.py",
        (("            write.result()\n", "            write.exception()\n"),),
        WRITER,
    ),
    Defect(
        "the loss's gradient is not scaled for the mean over ranks",
        "simclr_core/loss/nt_xent.py",
        (("gradient * ranks /", "gradient /"),),
        LOSS,
        ("-k", "test_ranks_on_their_shares and 2"),
    ),
    Defect(
        "the loss's gradient knows a row as an anchor alone",
        "simclr_core/loss/nt_xent.py",
        (("weights[places.own][r, None] + weights[c]", "weights[places.own][r, None]"),),
        LOSS,
        ("-k", "gradient_is_that_of_the_loss"),
    ),
    Defect(
        "the positive is the next row",
        "simclr_core/loss/nt_xent.py",
        (("rows.roll(len(rows) // 2, dims=0)", "rows.roll(1, dims=0)"),),
        LOSS,
        ("-k", "gradient_is_that_of_the_loss"),
    ),
    Defect(
        "the temperature does not reach the positives",
        "simclr_core/loss/nt_xent.py",
        (
            (
                "(_of_positives(columns, places.counts) / temperature).mean()",
                "_of_positives(columns, places.counts).mean()",
            ),
        ),
        LOSS,
        ("-k", "formula_of_the_paper"),
    ),
    Defect(
        "projections are not normalized",
        "simclr_core/loss/nt_xent.py",
        (
            (
                "normalize(torch.cat([first.to(precision), second.to(precision)]), dim=1)",
                "torch.cat([first.to(precision), second.to(precision)])",
            ),
        ),
        LOSS,
        ("-k", "formula_of_the_paper"),
    ),
    Defect(
        "BatchNorm's weights and the biases decay",
        "simclr_core/lars.py",
        (('"weight_decay": 0.0, "adaptive": False}', '"weight_decay": weight_decay, "adaptive": False}'),),
        LARS,
    ),
    Defect(
        "a change of the learning rate rescales the momentum",
        "simclr_core/lars.py",
        (
            ('_foreach_add_(velocities, updates, alpha=group["lr"])', "_foreach_add_(velocities, updates)"),
            ("_foreach_sub_(weights, velocities)", '_foreach_sub_(weights, velocities, alpha=group["lr"])'),
        ),
        LARS,
    ),
    Defect(
        "the warm-up is one step late",
        "simclr_core/schedule.py",
        (("peak * (step + 1) / warmup_steps", "peak * step / warmup_steps"),),
        SCHEDULE,
    ),
    Defect(
        "both views of an image are drawn alike",
        "simclr_core/pretraining/batches.py",
        (("self.seed, epoch, positions, view)", "self.seed, epoch, positions, 0)"),),
        BATCHES,
    ),
    Defect(
        "labels reach the weights",
        "simclr_core/pretraining/pretrain.py",
        (
            (
                "network = build_network(config, inputs.start, member, inputs.card.bands)",
                "config = config.model_copy(update={'seed': int(inputs.images.labels.sum()) % 7})\n"
                "    network = build_network(config, inputs.start, member, inputs.card.bands)",
            ),
        ),
        f"{PRETRAIN}::test_labels_never_touch_the_weights",
    ),
    Defect(
        "training sees the test images",
        "simclr_core/pretraining/pretrain.py",
        (('ShardedImages(prepared / "train")', 'ShardedImages(prepared / "test")'),),
        f"{PRETRAIN}::test_pretraining_leaves_a_model_and_reports_and_no_temporary_files",
    ),
)


class DefectError(ValueError):
    """A defect that cannot be planted, or tests that are red without one."""


def plant(root: Path, defect: Defect) -> str:
    """Change the file under ``root``; returns what it held before."""
    path = root / defect.file
    before = text = path.read_text(encoding="utf-8")
    for old, new in defect.changes:
        if text.count(old) != 1:
            raise DefectError(
                f"{defect.name}: {defect.file} has {old!r} {text.count(old)} times, not once; "
                "plant it where the code has it now"
            )
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return before


def caught_by(root: Path, defect: Defect) -> str | None:
    """The first test that fails with this defect in the copy at ``root``, None if all pass."""
    before = plant(root, defect)
    try:
        return _first_failure(root, [defect.test, *defect.options])
    finally:
        (root / defect.file).write_text(before, encoding="utf-8")


def copy(root: Path) -> Path:
    for name in COPIED:
        source, target = ROOT / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return root


def _first_failure(root: Path, arguments: Sequence[str]) -> str | None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *arguments]
    if "::" not in arguments[0]:  # a whole file, without what takes long
        command += ["-m", "not slow"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != TESTS_FAILED or failed is None:
        raise DefectError(f"pytest {' '.join(arguments)} cannot run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def measure(defects: Sequence[Defect]) -> dict[str, str | None]:
    """For each defect the test that caught it.

    Raises:
        DefectError: a test is red without a defect, or one cannot be planted or tested.
    """
    with tempfile.TemporaryDirectory(prefix="simclr-defects-") as folder:
        root = copy(Path(folder))
        for defect in defects:  # all of them, before the minutes that the tests take
            (root / defect.file).write_text(plant(root, defect), encoding="utf-8")
        for arguments in dict.fromkeys((defect.test, *defect.options) for defect in defects):
            if red := _first_failure(root, arguments):
                raise DefectError(f"{red} is red without any defect")
        found = {}
        for defect in defects:
            found[defect.name] = caught_by(root, defect)
            print(f"{defect.name}: {found[defect.name] or 'NOT CAUGHT'}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="defects whose names contain one of these")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    chosen = [one for one in DEFECTS if not options.only or any(part in one.name for part in options.only)]
    found = measure(chosen)
    text = json.dumps({"planted": len(found), "caught": sum(map(bool, found.values())), "by": found}, indent=2) + "\n"
    print(text, end="")
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
