"""Fine-tuning on few labels and linear probes on the same labels: is it ever worse, and what do its rate and start do?

    python -m benchmarks.accuracy.few_labels photographs=DIR stamps=DIR --json benchmarks/results/FILE.json

Each workspace has been run (``benchmarks.pipeline.real_sets --workspace``). Its encoder is fine-tuned again on the
shares of ``--fractions``, as params.yaml says; and as it was before: from a head of zeros, at a rate times
batch_size / 256. A share gives one label of each class at least. Top-1 in percent, with 95 % intervals over the draws.
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure
from simclr_core import reports
from simclr_core.evaluation import finetune
from simclr_core.evaluation_reports import FinetuneReport

VARIANTS: dict[str, dict[str, Any]] = {
    "from the probe's head": {},
    "from zeros, rate scaled to the batch": {"start": "zero", "learning_rate_scaling": "linear"},
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("workspaces", nargs="+", metavar="NAME=WORKSPACE")
    parser.add_argument("--fractions", nargs="+", default=["0.01", "0.1"])
    options = parser.parse_args()
    sets = dict(one.split("=", 1) for one in options.workspaces)
    results: dict[str, Any] = measure.header("few labels", "torch") | {
        name: {fraction: compare(Path(workspace), fraction) for fraction in options.fractions}
        for name, workspace in sets.items()
    }
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


def compare(workspace: Path, fraction: str) -> dict[str, Any]:
    """What each variant reaches on this share of the labels; the probe and the network from scratch are the same."""
    tuned = {name: tune(workspace, fraction, changed) for name, changed in VARIANTS.items()}
    first = next(iter(tuned.values()))
    return {
        "labels": first.labels,
        "test_images": first.test_images,
        "probe": first.probe and asdict(first.probe),
        "from scratch": {"top1": first.scratch_top1, "ci95": first.scratch_ci95},
        **{name: {"top1": one.top1, "ci95": one.ci95} for name, one in tuned.items()},
    }


def tune(workspace: Path, fraction: str, changed: dict[str, Any]) -> FinetuneReport:
    """Fine-tune the encoder of ``workspace`` in a folder that is thrown away."""
    params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in ("data/prepared", "models/pretrained"):
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).symlink_to((workspace / part).absolute())
        params["finetune"] = {**params["finetune"], **changed}
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        finetune.run(folder, fraction)
        [report] = reports.read_each(folder, FinetuneReport)
        return report


if __name__ == "__main__":
    main()
