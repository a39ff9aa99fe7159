"""What distillation gives on few labels: to the same encoder, and to one with a quarter of its parameters.

    python -m benchmarks.simclr_core.distill WORKSPACE --json benchmarks/results/FILE.json

In the workspace `simclr demo` has run. For each seed its encoder is fine-tuned on 1 % of the labels, drawn by that
seed; this teacher then teaches students on all 8,000 training images. Top-1 in percent of the same test images, next to
what a small encoder learns from the same labels alone, and the difference of student and teacher, paired by seed. int8
is the small student after export. Numbers of a budget of CPU time, not of what longer trainings reach. Seeds that FILE
has already are kept, so that they can be run one by one.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import measure
from simclr_core import reports
from simclr_core.config import FinetuneConfig
from simclr_core.data.dataset import TrainingImages
from simclr_core.distillation import distill
from simclr_core.distillation.report import DistillReport
from simclr_core.evaluation import finetune
from simclr_core.evaluation.classifier_training import Labels, Start, few_label_augmentation, train_classifier
from simclr_core.evaluation.images import outputs, percent, random_encoder
from simclr_core.evaluation_reports import FinetuneReport
from simclr_core.export import export
from simclr_core.model.model_directory import Model
from simclr_core.reports import ExportReport

FRACTION = "0.01"
SMALL = {"name": "resnet10", "width": 0.25, "stem": "compact"}
RECIPE = {
    "teacher": FRACTION,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "learning_rate_scaling": "none",
    "weight_decay": 5e-4,
    "warmup_epochs": 1,
    "crop_scale": [0.8, 1.0],
    "batch_size": 128,
    "monitor_every": 100,
}
STUDENTS: dict[str, dict[str, Any]] = {
    "itself, from models/pretrained": {"init": "pretrained", "epochs": 4, "learning_rate": 0.03},
    "itself at temperature 0.1": {"init": "pretrained", "epochs": 4, "learning_rate": 0.003, "temperature": 0.1},
    "a quarter of the parameters": {"student": SMALL, "epochs": 10},
}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        runs = json.loads(options.json.read_text(encoding="utf-8"))["runs"]
    done = {run["seed"] for run in runs}
    runs += [follow(options.workspace, seed) for seed in options.seeds if seed not in done]
    runs.sort(key=lambda run: int(run["seed"]))
    results = measure.header("distill", "torch") | {
        "labels": runs[0]["labels"],
        "seeds": [run["seed"] for run in runs],
        "students": {name: RECIPE | changed for name, changed in STUDENTS.items()},
        "top1": {name: summarize([run["top1"][name] for run in runs]) for name in runs[0]["top1"]},
        "minus teacher": {
            name: summarize([run["top1"][name] - run["top1"]["teacher"] for run in runs])
            for name in runs[0]["top1"]
            if name != "teacher"
        },
        "parameters": runs[0]["parameters"],
        "runs": runs,
        "cpu_minutes": round(sum(run["cpu_minutes"] for run in runs), 1),
    }
    print(json.dumps(results, indent=1))
    measure.write(results, options.json)


def follow(workspace: Path, seed: int) -> dict[str, Any]:
    """Everything on the labels that one seed draws."""
    before = measure.cpu_seconds()
    params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    params["finetune"]["seeds"] = [seed]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in ("data/prepared", "models/pretrained", "models/probe"):
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).symlink_to((workspace / part).absolute())
        write(folder, params)
        finetune.run(folder, FRACTION)
        [tuned] = reports.read_each(folder, FinetuneReport)
        assert tuned.probe is not None
        found: dict[str, Any] = {"seed": seed, "labels": tuned.labels, "parameters": {}}
        top1 = {"teacher": tuned.top1, "probe": tuned.probe.top1, "itself, from the labels alone": tuned.scratch_top1}
        top1["a quarter, from the labels alone"] = teach_alone(folder, seed)
        for name, changed in STUDENTS.items():
            write(folder, {**params, "distill": RECIPE | changed | {"seed": seed}})
            distill.run(folder)
            report = reports.read(folder, DistillReport)
            top1[name] = report.top1
            found["parameters"] |= {name: report.parameters, "teacher": report.teacher_parameters}
        write(folder, {**params, "export": {**params["export"], "source": "distilled"}})
        export.run(folder)
        served = reports.read(folder, ExportReport).variants
        top1["a quarter of the parameters, int8"] = served["int8"].classifier_top1 if "int8" in served else None
    return found | {"top1": top1, "cpu_minutes": round((measure.cpu_seconds() - before) / 60, 2)}


def teach_alone(folder: Path, seed: int) -> float:
    """The small encoder from random weights on the same labels, as ``finetune`` trains from scratch."""
    inputs = finetune.read_inputs(folder, FRACTION)
    model = Model(inputs.model.encoder, {}, {**inputs.model.card, "encoder": SMALL, "head_layers": 0})
    budget, config = inputs.budgets[seed], inputs.config
    assert isinstance(config, FinetuneConfig)
    learned = Labels(inputs.train.positions[budget], inputs.known[budget], len(inputs.classes))
    augmentation = few_label_augmentation(model.card, config.crop_scale)
    images, start = TrainingImages(inputs.train.images), Start(random_encoder(model, seed))
    network, _ = train_classifier(start, model.card, images, learned, augmentation, inputs.optimization, seed)
    (logits,) = outputs([network], inputs.test, model)
    return percent(np.asarray(logits.argmax(axis=1) == inputs.test.labels))


def write(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def summarize(values: list[float]) -> dict[str, Any]:
    return {"mean": round(statistics.fmean(values), 2), "each": [round(value, 2) for value in values]}


if __name__ == "__main__":
    main()
