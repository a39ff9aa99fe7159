"""The files for GitHub: valid by its schemas and a linter, pinned, allowed little, and running what is here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.deployment.test_lock import declared

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SCHEMAS = [
    *(("github-workflows", path) for path in WORKFLOWS),
    *(("github-workflows-require-timeout", path) for path in WORKFLOWS if path.name != "release.yml"),
    ("dependabot", GITHUB / "dependabot.yml"),
    ("github-issue-forms", GITHUB / "ISSUE_TEMPLATE" / "bug.yml"),
    ("github-issue-forms", GITHUB / "ISSUE_TEMPLATE" / "feature.yml"),
    ("github-issue-config", GITHUB / "ISSUE_TEMPLATE" / "config.yml"),
    ("citation-file-format", ROOT / "CITATION.cff"),
]


def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of this environment."""
    command = [Path(sys.executable).parent / arguments[0], *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.seconds
@pytest.mark.parametrize(("schema", "path"), SCHEMAS, ids=lambda value: getattr(value, "name", value))
def test_a_file_has_its_schema(schema: str, path: Path) -> None:
    done = program("check-jsonschema", "--builtin-schema", schema, path)
    assert done.returncode == 0, done.stdout


@pytest.mark.seconds
def test_a_file_of_another_form_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs-in:"))
    assert program("check-jsonschema", "--builtin-schema", "github-workflows", broken).returncode == 1


@pytest.mark.seconds
def test_zizmor_finds_nothing_in_the_workflows() -> None:
    done = program("zizmor", "--offline", "--quiet", GITHUB)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (r"@[0-9a-f]{40} # v[\d.]+", "@main"),
        (r"persist-credentials: false", "fetch-depth: 1"),
        (r"permissions:\n      contents: read", "permissions: write-all"),
        (r"- run: make test", "- run: echo ${{ github.event.pull_request.title }}"),
    ],
)
def test_zizmor_finds_a_planted_fault(good: str, bad: str, tmp_path: Path) -> None:
    shutil.copytree(GITHUB, tmp_path / ".github")
    workflow = tmp_path / ".github" / "workflows" / "tests.yml"
    text, count = re.subn(good, bad, workflow.read_text())
    assert count
    workflow.write_text(text)
    assert program("zizmor", "--offline", "--quiet", tmp_path / ".github").returncode > 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_declares_only_the_permissions_that_it_needs(path: Path) -> None:
    workflow = read(path)
    allowed = {"publish": {"id-token": "write"}}
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["permissions"] == allowed.get(name, {"contents": "read"}), name


def test_nothing_is_published_before_its_tests_pass() -> None:
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    assert set(jobs["publish"]["needs"]) == {"tests", "build"}
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert jobs["publish"]["environment"] == "pypi"


def test_every_declared_python_version_is_tested() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', pyproject)
    jobs = read(GITHUB / "workflows" / "tests.yml")["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == claimed
    assert jobs["deploy-alone"]["strategy"]["matrix"]["python"] == claimed
    assert f'requires-python = ">={claimed[0]}"' in pyproject


def test_commands_of_the_workflows_exist() -> None:
    """Targets of the Makefile, and files; programs of .venv come by the lock."""
    steps = [
        step["run"]
        for path in WORKFLOWS
        for job in read(path)["jobs"].values()
        for step in job.get("steps", [])
        if "run" in step
    ]
    targets = {target for step in steps for target in re.findall(r"^make (\S+)", step)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"test", "package", "coverage", "docs", "soak"} <= targets
    assert [target for target in targets if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)] == []
    files = {file for step in steps for file in re.findall(r"\btests/\S+\.py", step)}
    assert files == {"tests/deploy/alone.py"}
    programs = {name for step in steps for name in re.findall(r"^\.venv/bin/(\S+)", step)}
    assert [name for name in programs if not (Path(sys.executable).parent / name).exists()] == []


def test_the_hooks_run_programs_pinned_in_the_lock(tmp_path: Path) -> None:
    """No hook is fetched from elsewhere, so each works offline and at the version that `make test` has."""
    assert program("pre-commit", "validate-config").returncode == 0
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        name = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert (Path(sys.executable).parent / name).exists(), name


def test_both_ends_of_what_is_allowed_of_torch_are_tested_every_night() -> None:
    allowed = {needed.name: needed.specifier for needed in declared()}
    runs = read(GITHUB / "workflows" / "nightly.yml")["jobs"]["versions"]["strategy"]["matrix"]["include"]
    oldest, newest, *_ = [run["with"].split() for run in runs if "torch" in run.get("with", "")]
    assert newest == ["torch", "torchvision"]
    lower = {name: min(clause.version for clause in allowed[name] if clause.operator == ">=") for name in newest}
    assert oldest == [f"{name}=={version}.*" for name, version in lower.items()]
    assert [run["with"] for run in runs if "onnxruntime" in run.get("with", "")] == ["--pre onnxruntime"]
    assert [run for run in runs if "with" not in run], "the newest of everything"


@pytest.mark.seconds
def test_the_newest_versions_are_asked_for_by_name_alone() -> None:
    dry = subprocess.run(["make", "--dry-run", "versions"], cwd=ROOT, capture_output=True, text=True, check=True)
    (asked,) = re.findall(r"--upgrade-strategy eager (.*)", dry.stdout)
    names = {Requirement(text).name for text in asked.split()}
    assert names == {needed.name for needed in declared()}
    assert not re.search("[<>=]", asked)
