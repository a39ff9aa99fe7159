"""Threads that wait for each other leave their cores to others: in stages, in their ranks, and in these tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simclr_core.launch import PROCESSES
from simclr_core.machine import wait_policy
from tests.conftest import write_prepared


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without the variables, which the tests have themselves."""
    for name in wait_policy.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def loaded(*command: str, **variables: str) -> tuple[list[tuple[str, str]], str]:
    """(wait policy, spins) of each OpenMP that the processes of a command load, and all that they print."""
    environment = os.environ | {"OMP_DISPLAY_ENV": "verbose"} | variables
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    policies = re.findall(r"OMP_WAIT_POLICY = '(\w+)'.*?GOMP_SPINCOUNT = '(\d+)'", done.stderr, flags=re.DOTALL)
    return policies, done.stdout + done.stderr


@pytest.mark.usefixtures("undecided")
def test_by_default_threads_spin_briefly() -> None:
    assert f"GOMP_SPINCOUNT={wait_policy.SPINS}" in wait_policy.apply()
    assert os.environ["GOMP_SPINCOUNT"] == wait_policy.SPINS
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(
    "given",
    [
        {"OMP_WAIT_POLICY": "ACTIVE"},
        {"GOMP_SPINCOUNT": "77"},
        {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    ],
)
def test_a_policy_set_by_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    line = wait_policy.apply()
    assert all(f"{name}={value}" in line for name, value in given.items())
    assert {name: os.environ[name] for name in wait_policy.VARIABLES if name in os.environ} == given


@pytest.mark.slow
@pytest.mark.usefixtures("undecided")
def test_every_process_of_a_launch_has_the_policy_before_openmp_is_loaded(tmp_path: Path) -> None:
    ranks = {PROCESSES: "2", "OMP_NUM_THREADS": "1"}
    write_prepared(tmp_path)
    shutil.rmtree(tmp_path / "models" / "initial")  # each process ends when it wants to begin
    policies, said = loaded("-m", "simclr_core", "--workspace", str(tmp_path), "pretrain", **ranks)
    assert len(policies) >= 3  # the launcher and its two
    assert {spun for _, spun in policies} == {wait_policy.SPINS}
    assert f"GOMP_SPINCOUNT={wait_policy.SPINS}" in said  # in the stage's own words


@pytest.mark.seconds
@pytest.mark.usefixtures("undecided")
def test_the_tests_themselves_do_not_spin() -> None:
    policies, said = loaded(
        "-m", "pytest", "--collect-only", "-s", "-p", "no:cacheprovider", "tests/simclr_core/test_lars.py"
    )
    assert "test_lars.py" in said
    assert set(policies) == {("PASSIVE", "0")}
