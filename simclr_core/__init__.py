"""SimCLR in PyTorch: from prepared image shards to a pretrained, evaluated, fine-tuned and exported encoder.

Importing this package, its configuration, or ``data.shards`` and ``data.order`` does not import torch.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# ``python -m`` puts the current folder first, whose modules would be imported: see the same lines of ``pipeline``.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != str(Path(__file__).parents[1]):
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"

# A common name: a file of the user's, or another package, may come first on the path.
_found, _ours = find_spec("deploy"), Path(__file__).parents[1] / "deploy" / "__init__.py"
if _found is None or _found.origin != str(_ours):
    raise ImportError(
        f"deploy is {_found and (_found.origin or _found.submodule_search_locations)}, and simclr-pipeline needs "
        f"{_ours}; rename the other one, take its folder off PYTHONPATH, or use a separate environment"
    )

from deploy.moved import keep_old_names  # noqa: E402

keep_old_names(
    "simclr_core",
    {
        "augmentation": "augmentations color_jitter gaussian_blur random_resized_crop",
        "data": "shards dataset pixel_cache order subsets",
        "evaluation": "features knn linear_probe logistic_regression linear_eval finetune embedding_map calibration "
        "served_accuracy compare",
        "export": "onnx_graph quantize variants trained model_card sbom latency",
        "loss": "nt_xent objective momentum_queue",
        "machine": "wait_policy",
        "model": "encoder projection_head batch_norm gradient_checkpointing",
        "monitoring": "diagnostics history trackers embedding_board",
        "pretraining": "pretrain training batches collapse checkpoint checkpoint_writer pretrained initial replay "
        "augment_sheet precision compilation choices",
    },
)
