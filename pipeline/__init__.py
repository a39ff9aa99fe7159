"""From a folder of raw images to an encoder in production: what chains, gates, releases and watches the stages."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# The commands of dvc.yaml are ``python -m``, which puts the current folder first: in a workspace with a numpy.py, that
# would be imported. ``simclr`` sets PYTHONSAFEPATH, a person's ``dvc repro`` does not. While Python looks for the
# module that it is to run, it calls the program "-m".
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and sys.path[0] != str(Path(__file__).parents[1]):
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that it starts

# Common names: a file of the user's, or another package, may come first on the path.
for _name in ("deploy", "simclr_core"):
    _found, _ours = find_spec(_name), Path(__file__).parents[1] / _name / "__init__.py"
    if _found is None or _found.origin != str(_ours):
        raise ImportError(
            f"{_name} is {_found and (_found.origin or _found.submodule_search_locations)}, and simclr-pipeline needs "
            f"{_ours}; rename the other one, take its folder off PYTHONPATH, or use a separate environment"
        )

from deploy.moved import MovedModules, keep_old_names  # noqa: E402

keep_old_names(
    "pipeline",
    {
        "cli": "quarantine_cli:quarantine release_cli:release status demo summary",
        "ingest": "sources stamps raw",
        "maintenance": "doctor fsck integrity storage",
        "recipes": "recipe",
        "release": "candidate champion registry versions release_facts:facts",
        "retraining": "decide inbox",
        "runs": "launcher instance database output",
        "ui": "services health web web_answers guard",
        "validation": "quarantine",
    },
)
STATISTICS = "simclr_core.evaluation.paired_comparison"
sys.meta_path.append(
    MovedModules(dict.fromkeys(("pipeline.paired_test", "pipeline.gates.paired_comparison"), STATISTICS))
)
