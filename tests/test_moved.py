"""Old module names lead to the modules under their new names, for one version, with a warning that names them."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import deploy
import pipeline.validation
import simclr_core
from deploy.moved import MovedModules

PACKAGES = (deploy, simclr_core, pipeline.validation)  # each has announced its table
OLD_NAMES = {
    old: new for finder in sys.meta_path if isinstance(finder, MovedModules) for old, new in finder.new_names.items()
}
USED_BY_OTHERS = {
    "pipeline.launcher": "pipeline.runs.launcher",  # dagster.yaml of workspaces made before
    "simclr_core.nt_xent": "simclr_core.loss.nt_xent",
    "simclr_core.encoder": "simclr_core.model.encoder",
    "deploy.index": "deploy.search.index",
    "deploy.preprocess": "deploy.images.preprocess",
    "pipeline.validation.scan": "pipeline.validation.probe.scan",
}


def test_the_old_names_include_those_that_users_import() -> None:
    assert USED_BY_OTHERS.items() <= OLD_NAMES.items()
    assert len(OLD_NAMES) >= 90


@pytest.mark.parametrize("old", OLD_NAMES)
def test_every_old_name_leads_to_a_module_that_exists(old: str) -> None:
    assert find_spec(OLD_NAMES[old]) is not None


@pytest.mark.parametrize("old", USED_BY_OTHERS)
def test_an_old_name_is_the_same_module_and_warns(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    new = USED_BY_OTHERS[old]
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; the next version removes the old name"):
        module = import_module(old)
    assert module is import_module(new)
    assert module.__name__ == new


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("pipeline.cli", "run_cli"),
        ("pipeline.ingest", "IngestResult"),
        ("pipeline.release", "rollback"),
        ("pipeline.validation.verdict", "judge"),
        ("simclr_core.export", "run"),
        ("deploy.cli", "info"),
    ],
)
def test_a_package_with_the_name_of_a_module_still_has_its_functions(package: str, name: str) -> None:
    module = import_module(f"{package}.{'main' if package.endswith('cli') else package.rpartition('.')[2]}")
    taken = import_module(package).__dict__.pop(name, None)  # a submodule of the same name, if it was imported
    try:
        with pytest.warns(DeprecationWarning, match=f"{package}.{name} is now "):
            assert getattr(import_module(package), name) is getattr(module, name)
    finally:
        if taken is not None:
            import_module(package).__dict__[name] = taken


@pytest.mark.seconds
def test_a_module_of_the_package_comes_before_a_function_of_the_same_name() -> None:
    shown = "print(status.__file__, release.__file__)"
    code = f"from pipeline.cli import status; from pipeline.release import release; {shown}"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [Path(file).name for file in done.stdout.split()] == ["status.py", "release.py"]


@pytest.mark.seconds
@pytest.mark.parametrize("package", ["pipeline.validation.probe", "pipeline.ingest", "pipeline.release"])
def test_a_module_can_be_called_as_the_function_that_had_its_name(package: str) -> None:
    name = package.rpartition(".")[2]
    code = f"from {package} import {name}; {name}.{name} = lambda *all, **named: print(all, named); {name}(1, why=2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1,) {'why': 2}\n"
    old = f"{package}.{name}()"
    assert f"DeprecationWarning: {old} is now {package}.{name}.{name}(); the next version removes" in done.stderr


def test_the_probe_is_called_by_its_old_name() -> None:
    from pipeline.validation.probe import probe

    with pytest.warns(DeprecationWarning, match="is now pipeline.validation.probe.probe.probe"):
        assert probe(b"")["reason"] == "empty_file"


def test_an_unknown_attribute_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"module 'pipeline.cli' has no attribute 'nothing'"):
        import_module("pipeline.cli").nothing  # noqa: B018
