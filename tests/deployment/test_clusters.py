"""The recipes for clusters: what can be known of them without one."""

import re
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from simclr_core.compute.settings import Compute, Where
from tests.deployment.conftest import DEPLOYMENT, ROOT

JOB, SCRIPT = DEPLOYMENT / "ray" / "rayjob.yaml", DEPLOYMENT / "slurm" / "pretrain.sh"
TEXT, WHOLE, YES = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": TEXT}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


# The fields of ray.io/v1 that a manifest of ours may use, after ray-operator/apis/ray/v1 of KubeRay 1.5: RayJobSpec,
# RayClusterSpec, HeadGroupSpec and WorkerGroupSpec. A template is a pod, for which Kubernetes has the schema.
HEAD = closed("rayStartParams template", rayStartParams=STRINGS, template={"type": "object"})
WORKERS = closed(
    "groupName rayStartParams template minReplicas maxReplicas",
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    rayStartParams=STRINGS,
    template={"type": "object"},
)
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
SPEC = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=WHOLE,
    backoffLimit=WHOLE,
    activeDeadlineSeconds=WHOLE,
    rayClusterSpec=CLUSTER,
)
SCHEMA = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name namespace", name=TEXT, namespace=TEXT),
    spec=SPEC,
)


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(JOB.read_text())
    return found


def test_the_ray_job_fits_its_schema() -> None:
    jsonschema.validate(job(), SCHEMA)
    wrong = job()
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@pytest.mark.seconds
def test_its_pods_fit_that_of_kubernetes() -> None:
    cluster = job()["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)
    workers = cluster["workerGroupSpecs"][0]
    assert (
        workers["replicas"] * int(workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        == 8
    )


def test_the_script_for_slurm_is_one() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    written = re.search(r"<<YAML\n(.*?)\nYAML", SCRIPT.read_text(), re.DOTALL)
    assert written is not None
    text = written[1].replace("$SLURM_JOB_NUM_NODES", "2").replace("$first", "gpu007")
    assert Compute.model_validate(yaml.safe_load(text)).pretrain.address == "gpu007:29500"


def test_the_page_explains_every_key() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(Where.model_fields)
