"""Round numbers for the model: nothing of them was measured."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import params as all_params
from pipeline.costs.model import ImageCosts, Measured
from pipeline.params import Params
from pipeline.preflight.images import Images
from pipeline.workspace import Workspace, template
from simclr_core.monitoring.unit_costs import UnitCosts

UNIT = UnitCosts(
    images_per_second=100.0,
    start_seconds=10.0,
    monitor_seconds=0.0005,
    forward_seconds=0.001,
    tuning_seconds=(0.01, 0.002),
    axes_seconds=0.25,
    descent_seconds=(0.001, 0.003),
    memory_bytes=900_000_000,
    encoder_parameters=1_000_000,
    head_parameters=100_000,
    feature_dim=256,
)
IMAGE = ImageCosts(0.004, 0.002, 0.001, 500.0, 1000.0)
MEASURED = Measured(UNIT, IMAGE, cores=2)
IMAGES = Images(
    Counter({None: 400, "cat": 300, "dog": 300}), Counter({"cat": 100, "dog": 100}), Counter({"0001": 1000})
)


def read_params(**blocks: dict[str, object]) -> Params:
    """The template's, with other values in some blocks."""
    with TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.params.write_text(template("params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        values = {f"{block}.{key}": str(value) for block, keys in blocks.items() for key, value in keys.items()}
        all_params.override(workspace, values)
        return all_params.read(workspace)
