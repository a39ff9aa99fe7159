"""The files of docs/deployment: what can be known of them without systemd, Docker or a cluster running."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.artifact import publish
from deploy.bundle import write_bundle
from pipeline.dvc.client import GRACE_SECONDS
from tests.deploy.conftest import make_bundle

ROOT = Path(__file__).parent.parent
DEPLOYMENT = ROOT / "docs" / "deployment"
UNIT = DEPLOYMENT / "systemd" / "simclr@.service"
COMPOSE = DEPLOYMENT / "compose" / "compose.yaml"
GPU = DEPLOYMENT / "compose" / "compose.gpu.yaml"
DOCKERFILE = DEPLOYMENT / "compose" / "Dockerfile"
IGNORE = DEPLOYMENT / "compose" / "Dockerfile.dockerignore"
START = DEPLOYMENT / "compose" / "start.sh"
SERVER = DEPLOYMENT / "server"
KUBERNETES = DEPLOYMENT / "kubernetes"
MANIFESTS = [path for path in sorted((KUBERNETES / "base").glob("*.yaml")) if path.name != "kustomization.yaml"]
SAVING_SECONDS = 2 * GRACE_SECONDS  # longer than a stage that is being canceled needs

DIRECTIVES = {  # for machines without systemd; `man systemd.directives` has them all
    "Unit": "Description After Wants RequiresMountsFor StartLimitIntervalSec StartLimitBurst",
    "Service": """Type User Group UMask Environment EnvironmentFile LoadCredential ExecStart StateDirectory Restart
        RestartSec RestartPreventExitStatus SuccessExitStatus KillMode TimeoutStopSec OOMPolicy LimitNOFILE
        NoNewPrivileges CapabilityBoundingSet ProtectSystem ReadWritePaths ProtectHome PrivateTmp ProtectHostname
        ProtectKernelModules ProtectKernelLogs ProtectKernelTunables ProtectControlGroups LockPersonality
        RestrictNamespaces RestrictRealtime RestrictSUIDSGID SystemCallArchitectures RestrictAddressFamilies""",
    "Install": "WantedBy",
}
# Each closes /dev in some way, ProtectClock by an implied DeviceAllow; or forbids what compilers of torch need.
BREAKS_GPUS = {"PrivateDevices", "ProtectClock", "DeviceAllow", "DevicePolicy", "MemoryDenyWriteExecute"}


def parse_unit(text: str) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            entries = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            assert separator, line
            entries.append((key, value))
    return sections


def unit_faults(text: str, folder: Path) -> list[str]:
    """What is wrong with a unit: by systemd itself where it is installed, and by the list above everywhere."""
    faults = [
        f"unknown directive {key} in {section}"
        for section, entries in parse_unit(text).items()
        for key, _ in entries
        if key not in DIRECTIVES.get(section, "").split()
    ]
    if analyze := shutil.which("systemd-analyze"):
        instance = folder / "simclr@my-images.service"
        instance.write_text(text.replace("/opt/simclr/bin/simclr", "/bin/true"))
        done = subprocess.run([analyze, "verify", "--man=no", instance], capture_output=True, text=True, check=False)
        faults += [line for line in done.stderr.splitlines() if "simclr@" in line]  # other units are not our business
    return faults


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert unit_faults(UNIT.read_text(), tmp_path) == []


@pytest.mark.parametrize("fault", ["NoNewPrivilegs=yes", "[Servce]"])
def test_a_fault_in_the_unit_is_found(tmp_path: Path, fault: str) -> None:
    text = UNIT.read_text().replace("[Install]", f"{fault}\n[Install]")
    assert unit_faults(text, tmp_path) != []


def test_the_unit_reaches_gpus_and_takes_secrets_from_files() -> None:
    service = dict(entries := parse_unit(UNIT.read_text())["Service"])
    assert float(service["TimeoutStopSec"]) >= SAVING_SECONDS
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
    assert "AF_NETLINK" in service["RestrictAddressFamilies"]
    assert not BREAKS_GPUS & service.keys()
    assert service["EnvironmentFile"] == "-/etc/simclr/%i.env"
    assert not [value for key, value in entries if key == "Environment" and re.search("PASSWORD=|KEY|TOKEN", value)]
    assert not [value for _, value in entries if "%I" in value]  # it would turn my-images into my/images


# Containers


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def image_fault(image: str) -> str | None:
    name, _, tag = image.rpartition("/")[2].partition(":")
    return None if tag and "latest" not in tag else f"image {name} has no version"


def docker_faults(text: str) -> list[str]:
    """Our rules, beside hadolint's."""
    found = instructions(text)
    faults = [fault for name, rest in found if name == "FROM" and (fault := image_fault(rest.split()[0]))]
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(found).get("USER", "")):
        faults.append("the last USER is not a numeric user other than root, which Kubernetes can check")
    for name, rest in found:
        if name in ("ENV", "ARG") and re.search("PASSWORD|SECRET|TOKEN|CREDENTIAL|_KEY", rest):
            faults.append(f"a secret in {name}")
        if name == "ADD":
            faults.append("ADD unpacks and downloads; COPY does not")
        if (
            name == "RUN"
            and "apt-get install" in rest
            and ("--no-install-recommends" not in rest or "rm -rf" not in rest)
        ):
            faults.append("apt-get without --no-install-recommends, or its lists are kept")
        if (
            name == "RUN"
            and re.search(r"\bpip .*\binstall\b", rest)
            and ("--no-deps" not in rest or "--no-cache-dir" not in rest)
        ):
            faults.append("pip without --no-deps, or its cache is kept")
        if name in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
            faults.append(f"{name} goes through a shell, which does not pass signals on")
        if name == "EXPOSE":
            faults.append("EXPOSE promises a port")
    faults += [f"{needed} is missing" for needed in ("HEALTHCHECK", "ENTRYPOINT") if needed not in dict(found)]
    return faults


@pytest.mark.parametrize("file", [DOCKERFILE, SERVER / "Dockerfile"], ids=lambda path: path.parent.name)
def test_a_dockerfile_keeps_the_rules(file: Path) -> None:
    assert docker_faults(file.read_text()) == []
    hadolint = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", file], capture_output=True, text=True
    )
    assert (hadolint.returncode, hadolint.stdout) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.11-slim-bookworm", "python:latest", "no version"),
        ("python:3.11-slim-bookworm", "python", "no version"),
        ("USER 10001:10001", "", "USER"),
        ("USER 10001:10001", "USER 0:0", "USER"),
        ("USER 10001:10001", "USER simclr", "USER"),
        ("ENV PATH", "ENV SIMCLR_UI_PASSWORD=horse PATH", "secret"),
        ("--no-deps -r", "-r", "--no-deps"),
        (" --no-install-recommends", "", "apt-get"),
        ('CMD ["start-simclr"]', "CMD start-simclr", "shell"),
        ("HEALTHCHECK", "LABEL", "HEALTHCHECK"),
        ("COPY deploy", "ADD deploy", "ADD"),
        ('ENTRYPOINT ["python", "-m"', 'ENTRYPOINT python "-m"', "shell"),
        ("--no-deps -r /requirements.txt", "-r /requirements.txt", "--no-deps"),
    ],
)
def test_a_fault_in_a_dockerfile_is_found(old: str, new: str, fault: str) -> None:
    (text, *_) = [text for file in (DOCKERFILE, SERVER / "Dockerfile") if old in (text := file.read_text())]
    assert any(fault in found for found in docker_faults(text.replace(old, new)))


def test_the_image_gets_every_file_that_the_wheel_is_made_of() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = copied_from_here(DOCKERFILE)
    assert {*wheel["packages"], *wheel["force-include"], "requirements.lock", "README.md", "LICENSE"} <= copied
    assert copied <= let_in(IGNORE)
    assert all((ROOT / source).exists() for source in copied)


def copied_from_here(dockerfile: Path) -> set[str]:
    copies = [rest.split() for name, rest in instructions(dockerfile.read_text()) if name == "COPY"]
    return {source for copy in copies if "--from=build" not in copy for source in copy[:-1] if "--" not in source}


def let_in(ignore: Path) -> set[str]:
    return {line[1:] for line in ignore.read_text().splitlines() if line.startswith("!")}


COMPOSE_FILES = [COMPOSE, GPU, SERVER / "compose.yaml"]


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_compose_files_fit_the_compose_specification(file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_opens_no_port_beyond_this_machine_and_holds_no_secret() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    for service in compose["services"].values():
        assert image_fault(service["image"]) is None
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["restart"] == "unless-stopped"
        assert not service.get("privileged")
        assert not [volume for volume in service["volumes"] if "docker.sock" in volume]
        assert set(service["secrets"]) <= compose["secrets"].keys()
        assert all(name.endswith("_FILE") for name in service["environment"] if "PASSWORD" in name)
        assert not [value for value in service["environment"].values() if re.search("://[^/@]*:[^/@]*@", value)]
    assert compose["services"]["simclr"]["cap_drop"] == ["ALL"]
    assert compose["networks"]["database"]["internal"]
    assert int(compose["services"]["simclr"]["stop_grace_period"].removesuffix("s")) >= SAVING_SECONDS
    ignored = (COMPOSE.parent / ".gitignore").read_text().split()
    assert {"/secrets/", "/simclr.env"} <= set(ignored)
    assert all(secret["file"].startswith("secrets/") for secret in compose["secrets"].values())
    assert compose["services"]["simclr"]["build"] == {
        "context": "../../..",
        "dockerfile": str(DOCKERFILE.relative_to(ROOT)),
    }


FAKE_SIMCLR = """#!/bin/sh
if [ "$1" = init ]; then
    mkdir -p "$2" && cd "$2" && git init --quiet
    cp {root}/dvc.yaml {root}/params.yaml {root}/dagster.yaml .
    git add --all && git -c user.name=a -c user.email=a@b commit --quiet --message new
fi
echo "$@ $SIMCLR_POSTGRES_URL" >>"{log}"
"""


def test_the_container_makes_a_workspace_once_and_then_becomes_the_ui(tmp_path: Path) -> None:
    log, workspace = tmp_path / "log", tmp_path / "volume" / "workspace"
    url = "postgresql+psycopg2://simclr@postgres/dagster"
    workspace.parent.mkdir()
    (tmp_path / "simclr").write_text(FAKE_SIMCLR.format(root=ROOT, log=log))
    (tmp_path / "simclr").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SIMCLR_WORKSPACE": str(workspace),
        "SIMCLR_INBOX": "/inbox",
        "SIMCLR_POSTGRES_URL": url,
    }
    for _ in range(2):
        subprocess.run(["sh", START], env=environment, check=True, capture_output=True)
    said = log.read_text().splitlines()
    assert said == [f"init {workspace} {url}", *[f"ui --host 0.0.0.0 {url}"] * 2]
    assert yaml.safe_load((workspace / "params.yaml").read_text())["retraining"]["sources"] == ["/inbox"]
    dagster = yaml.safe_load((workspace / "dagster.yaml").read_text())
    assert dagster["storage"] == {"postgres": {"postgres_url": {"env": "SIMCLR_POSTGRES_URL"}}}
    status = subprocess.run(["git", "status", "--short"], cwd=workspace, capture_output=True, text=True, check=True)
    assert status.stdout == ""


# The server's container


def test_the_image_of_the_server_holds_deploy_alone() -> None:
    copied = copied_from_here(SERVER / "Dockerfile")
    assert copied == let_in(SERVER / "Dockerfile.dockerignore")
    assert copied == {"LICENSE", "deploy", str((SERVER / "requirements.txt").relative_to(ROOT))}
    assert all((ROOT / source).exists() for source in copied)


def needed_by_the_server() -> set[str]:
    """Names of what `pip install 'simclr-pipeline[serve]'` gets on Linux, without simclr-pipeline itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, found = [*project["dependencies"], *project["optional-dependencies"]["serve"]], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        # The image's Python, whichever runs the tests.
        marker = {"extra": "", "python_version": "3.11", "python_full_version": "3.11.0"}
        name = canonicalize_name(requirement.name)
        if name not in found and (requirement.marker is None or requirement.marker.evaluate(marker)):
            found.add(name)
            waiting += distribution(name).requires or []
    return found


def test_the_server_installs_what_it_needs_as_it_is_locked() -> None:
    needed = needed_by_the_server()
    assert {"numpy", "onnxruntime", "pillow", "starlette", "uvicorn"} < needed
    locked = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.split("=")[0] in needed]
    _, *lines = (SERVER / "requirements.txt").read_text().splitlines()
    assert lines == locked


def test_the_size_of_the_image_is_documented() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| (\d+) \|$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    megabytes = {name: int(size) for name, size in rows}
    files = {name: distribution(name).files or [] for name in needed_by_the_server()}
    # Without what is compiled: which of that a package's list names, pip and uv do not agree on.
    measured = {
        name: sum(path.stat().st_size for file in listed if (path := Path(str(file.locate()))).suffix != ".pyc") / 1e6
        for name, listed in files.items()
    }
    assert megabytes["total"] == pytest.approx(sum(measured.values()), rel=0.1)
    for name in megabytes.keys() - {"total"}:
        assert megabytes[name] == pytest.approx(measured[name], rel=0.1)


def test_compose_confines_the_server() -> None:
    compose = yaml.safe_load((SERVER / "compose.yaml").read_text())
    (server,) = compose["services"].values()
    assert image_fault(server["image"]) is None
    assert server["build"] == {"context": "../../..", "dockerfile": str((SERVER / "Dockerfile").relative_to(ROOT))}
    assert (server["read_only"], server["init"], server["cap_drop"]) == (True, True, ["ALL"])
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "mem_limit", "pids_limit", "ulimits"} <= server.keys()
    assert not {"privileged", "environment", "network_mode"} & server.keys()
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    (registry,) = server["volumes"]
    assert registry.endswith(":/registry:ro")
    assert [compose["secrets"][name] for name in server["secrets"]] == [{"file": "secrets/token"}]
    assert (SERVER / ".gitignore").read_text().split() == ["/secrets/"]
    assert int(server["stop_grace_period"].removesuffix("s")) > 10  # docs/serving.md: it ends within 10 seconds


def test_the_command_of_the_image_serves_without_writing_and_ends_on_sigterm(tmp_path: Path) -> None:
    """Its own words, with the paths, the address and the port of this test."""
    with publish(tmp_path / "bundle") as work:
        write_bundle(work, make_bundle())
    (tmp_path / "token").write_text("0123456789abcdef")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = dict(instructions((SERVER / "Dockerfile").read_text()))
    assert "CMD" not in found
    words = {"/registry": tmp_path / "bundle", "/run/secrets/token": tmp_path / "token", "0.0.0.0": "127.0.0.1"}
    command = [str(words.get(word, word)) for word in json.loads(found["ENTRYPOINT"])]
    check = json.loads(found["HEALTHCHECK"].partition(" CMD ")[2].replace("8000", str(port)))
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "http_proxy": "http://127.0.0.1:9"}
    assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 1
    with socket.create_server(("127.0.0.1", port)) as draining, subprocess.Popen(check, env=environment) as asking:
        connection, _ = draining.accept()
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        assert asking.wait(15) == 1
        connection.close()
    unwriting = ["sh", "-c", 'ulimit -f 0; exec "$0" "$@"']  # no file may grow
    write = [*unwriting, "python", "-c", f"with open({str(tmp_path / 'file')!r}, 'w') as file: file.write('a')"]
    assert subprocess.run(write, env=environment, capture_output=True, check=False).returncode != 0
    serve = [*unwriting, *command, "--port", str(port)]
    with subprocess.Popen(serve, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert json.loads(server.stderr.readline())["event"] == "listening"
        assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0
        server.terminate()
        assert server.wait(15) == 0


# Kubernetes


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def one(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


def test_kubernetes_knows_every_field() -> None:
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


def test_names_in_the_manifests_meet() -> None:
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


def test_the_gpu_overlay_patches_what_is_there() -> None:
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
