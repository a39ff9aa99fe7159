"""The manifests for Kubernetes: what can be known of them without a cluster running."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deployment.conftest import DEPLOYMENT, DOCKERFILE, ROOT, SAVING_SECONDS, image_fault

KUBERNETES = DEPLOYMENT / "kubernetes"
MANIFESTS = [path for path in sorted((KUBERNETES / "base").glob("*.yaml")) if path.name != "kustomization.yaml"]


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def one(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


@pytest.mark.seconds
def test_every_manifest_fits_the_kubernetes_schema() -> None:
    for document in documents():
        kubernetes_validate.validate(document, "1.37", strict=True)
    wrong = one("Deployment")
    wrong["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_manifest_is_applied_and_in_the_namespace() -> None:
    base = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())
    assert sorted(base["resources"]) == [path.name for path in MANIFESTS]
    namespaces = {document["metadata"].get("namespace", document["metadata"]["name"]) for document in documents()}
    assert namespaces == {"simclr"}


def test_the_pod_keeps_the_restricted_standard() -> None:
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = one("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert image_fault(container["image"]) is None
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= container["resources"].keys()
        assert not [entry for entry in container["env"] if re.search("PASSWORD$|KEY|TOKEN|_URL", entry["name"])]
    assert str(pod["securityContext"]["runAsUser"]) in DOCKERFILE.read_text()
    assert pod["terminationGracePeriodSeconds"] >= SAVING_SECONDS


def test_there_is_never_a_second_pod() -> None:
    deployment = one("Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    assert one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_names_and_labels_match_between_the_manifests() -> None:
    deployment, service, policy = one("Deployment"), one("Service"), one("NetworkPolicy")
    template = deployment["spec"]["template"]
    labels, pod = template["metadata"]["labels"], template["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    assert service["spec"]["type"] == "ClusterIP"
    ports = {port["name"] for container in pod["containers"] for port in container.get("ports", [])}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= ports
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes.keys()
    claim = volumes["workspace"]["persistentVolumeClaim"]["claimName"]
    assert claim == one("PersistentVolumeClaim")["metadata"]["name"]
    operations = (ROOT / "docs" / "operations.md").read_text()
    environment = pod["containers"][0]["envFrom"][0]["secretRef"]["name"]
    for secret in (environment, volumes["passwords"]["secret"]["secretName"]):
        assert f"create secret generic {secret} " in operations


@pytest.mark.seconds
def test_the_gpu_overlay_patches_existing_fields() -> None:
    overlay = yaml.safe_load((KUBERNETES / "gpu" / "kustomization.yaml").read_text())
    patch = yaml.safe_load((KUBERNETES / "gpu" / overlay["patches"][0]["path"]).read_text())
    base = one("Deployment")
    assert patch["metadata"] == {key: base["metadata"][key] for key in ("name", "namespace")}
    (container,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] in [one["name"] for one in base["spec"]["template"]["spec"]["containers"]]
    assert (KUBERNETES / "gpu" / overlay["resources"][0] / "kustomization.yaml").is_file()
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run([kubectl, "kustomize", KUBERNETES / "gpu"], capture_output=True, text=True, check=True)
        for document in yaml.safe_load_all(done.stdout):
            kubernetes_validate.validate(document, "1.37", strict=True)
        assert "nvidia.com/gpu: 1" in done.stdout
