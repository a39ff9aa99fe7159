"""The images and the compose files: what can be known of them without Docker running."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.pipeline.soak import free_port
from deploy.artifact import publish
from deploy.bundle import write_bundle
from tests.deploy.conftest import make_bundle
from tests.deploy.server.transport.certificates import write_certificate
from tests.deployment.conftest import DEPLOYMENT, DOCKERFILE, ROOT, SAVING_SECONDS, image_fault
from tests.deployment.test_lock import pins

COMPOSE = DEPLOYMENT / "compose" / "compose.yaml"
CACHES = shutil.ignore_patterns("__pycache__")
GPU = DEPLOYMENT / "compose" / "compose.gpu.yaml"
IGNORE = DEPLOYMENT / "compose" / "Dockerfile.dockerignore"
START = DEPLOYMENT / "compose" / "start.sh"
SERVER = DEPLOYMENT / "server"


def instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def docker_faults(text: str) -> list[str]:
    """Our rules, next to hadolint's."""
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
            and not ({"--no-deps", "--no-cache-dir"} <= set(rest.split()))
        ):
            faults.append("pip without --no-deps, or its cache is kept")
        if name == "RUN" and re.search(r"\bpip .*\binstall\b", rest):
            checked = "--require-hashes" if " -r " in rest else "--no-build-isolation"
            faults += [] if checked in rest else [f"pip without {checked}: what it downloads is not checked"]
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
        ("python:3.11-slim-bookworm@sha256:", "python:3.11-slim-bookworm@sha256:0", "no digest"),
        ("--require-hashes -r", "-r", "--require-hashes"),
        ("--no-build-isolation .", ".", "--no-build-isolation"),
        ("USER 10001:10001", "", "USER"),
        ("USER 10001:10001", "USER 0:0", "USER"),
        ("USER 10001:10001", "USER simclr", "USER"),
        ("ENV PATH", "ENV SIMCLR_UI_PASSWORD=horse PATH", "secret"),
        ("--no-deps --require-hashes -r requirements.lock", "--require-hashes -r requirements.lock", "--no-deps"),
        (" --no-install-recommends", "", "apt-get"),
        ('CMD ["start-simclr"]', "CMD start-simclr", "shell"),
        ("HEALTHCHECK", "LABEL", "HEALTHCHECK"),
        ("COPY deploy", "ADD deploy", "ADD"),
        ('ENTRYPOINT ["python", "-P"', 'ENTRYPOINT python "-P"', "shell"),
        ("--no-deps --require-hashes -r /", "--require-hashes -r /", "--no-deps"),
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


@pytest.mark.seconds
def test_the_package_is_built_from_what_the_image_copies_alone(tmp_path: Path) -> None:
    for source in copied_from_here(DOCKERFILE):
        given, copy = ROOT / source, tmp_path / "source" / source
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(given, copy, ignore=CACHES) if given.is_dir() else shutil.copyfile(given, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "."]
    done = subprocess.run([*command, "--wheel-dir", tmp_path], cwd=tmp_path / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"pipeline/template/dvc.yaml", "simclr_core/__main__.py", "deploy/py.typed"} <= set(archive.namelist())


def copied_from_here(dockerfile: Path) -> set[str]:
    copies = [rest.split() for name, rest in instructions(dockerfile.read_text()) if name == "COPY"]
    return {source for copy in copies if "--from=build" not in copy for source in copy[:-1] if "--" not in source}


def let_in(ignore: Path) -> set[str]:
    return {line[1:] for line in ignore.read_text().splitlines() if line.startswith("!")}


COMPOSE_FILES = [COMPOSE, GPU, SERVER / "compose.yaml"]


@pytest.mark.seconds
@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_compose_files_follow_the_compose_specification(file: Path) -> None:
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
    """Names of what `pip install '.[serve]'` gets on Linux, without simclr-pipeline itself."""
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
    locked = {(pin.name, str(pin.specifier), frozenset(hashes)) for pin, hashes in pins(ROOT / "requirements.lock")}
    installed = {(pin.name, str(pin.specifier), frozenset(hashes)) for pin, hashes in pins(SERVER / "requirements.txt")}
    assert {name for name, *_ in installed} == needed
    assert installed <= locked


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


@pytest.mark.seconds
def test_the_command_of_the_image_serves_without_writing_and_ends_on_sigterm(tmp_path: Path) -> None:
    """Its own words, with the paths, the address and the port of this test."""
    with publish(tmp_path / "bundle") as work:
        write_bundle(work, make_bundle())
    (tmp_path / "token").write_text("0123456789abcdef")
    port = free_port()
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
        assert asking.wait(60) == 1
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
        assert server.wait(60) == 0


@pytest.mark.seconds
def test_the_health_check_of_the_image_asks_a_server_with_a_certificate_too(tmp_path: Path) -> None:
    with publish(tmp_path / "bundle") as work:
        write_bundle(work, make_bundle())
    certificate, key, _ = write_certificate(tmp_path)
    port = free_port()
    found = dict(instructions((SERVER / "Dockerfile").read_text()))
    check = json.loads(found["HEALTHCHECK"].partition(" CMD ")[2].replace("8000", str(port)))
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    serve = ["python", "-P", "-m", "deploy.cli", "serve", str(tmp_path / "bundle"), "--port", str(port)]
    serve += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    with subprocess.Popen(serve, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert json.loads(server.stderr.readline())["event"] == "listening"
        assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0
        server.terminate()
        assert server.wait(60) == 0
