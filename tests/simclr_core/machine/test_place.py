"""Which process of how many this is, by the variables of each launcher; and what only looks like one."""

import pytest

from simclr_core.errors import LaunchError
from simclr_core.machine import place
from simclr_core.machine.place import Place, find_place, first_host, leftovers
from tests.sentences import assert_plain

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu01", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "41234",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any launcher's variables."""
    for name in (*TORCHRUN, *SRUN, *place.STARTERS):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def put(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)


def test_alone(environment: pytest.MonkeyPatch) -> None:
    assert find_place() is None
    assert leftovers() is None


def test_under_torchrun(environment: pytest.MonkeyPatch) -> None:
    put(environment, TORCHRUN)
    assert find_place() == Place(5, 8, 1, "gpu01", 29500)


def test_a_container_for_each_process_has_no_local_rank(environment: pytest.MonkeyPatch) -> None:
    put(environment, {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"})
    assert find_place() == Place(5, 8, 0, "gpu01", 29500)


def test_under_torchrun_in_a_task_of_slurm(environment: pytest.MonkeyPatch) -> None:
    put(environment, {**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", **TORCHRUN})
    assert find_place() == Place(5, 8, 1, "gpu01", 29500)


def test_as_a_task_of_srun(environment: pytest.MonkeyPatch) -> None:
    put(environment, SRUN)
    assert find_place() == Place(5, 8, 1, "gpu07", 20_000 + 41234 % 20_000)
    put(environment, {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"})
    assert find_place() == Place(5, 8, 1, "10.0.0.1", 1234)


def test_the_script_of_a_job_is_not_one_of_its_tasks(environment: pytest.MonkeyPatch) -> None:
    put(environment, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"})
    assert find_place() is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu01", "gpu01"),
        ("gpu[007-009,12],login1", "gpu007"),
        ("b,a[1-2]", "b"),
        ("rack[3,5]-ib", "rack3-ib"),
    ],
)
def test_the_first_machine_of_a_list_of_slurm(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "1"}, "RANK=1: one of several processes, but without WORLD_SIZE and MASTER_ADDR and MASTER_PORT;"),
        (
            {"RANK": "0", "WORLD_SIZE": "4"},
            "RANK=0, WORLD_SIZE=4: one of several processes, but without MASTER_ADDR and",
        ),
        ({**TORCHRUN, "MASTER_PORT": ""}, "but without MASTER_PORT;"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 of 8 processes; ranks go from 0 to 7"),
        ({**TORCHRUN, "RANK": "first"}, "RANK='first' is not a number"),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "OMPI_COMM_WORLD_SIZE=8: mpirun has started several processes"),
        ({**SRUN, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST='' names no machine"),
    ],
)
def test_half_a_group_is_refused_with_what_is_missing(
    given: dict[str, str], said: str, environment: pytest.MonkeyPatch
) -> None:
    put(environment, given)
    with pytest.raises(LaunchError) as caught:
        find_place()
    assert said in str(caught.value)
    assert_plain(str(caught.value))


@pytest.mark.parametrize("given", [{"RANK": "0"}, {"WORLD_SIZE": "1"}, {"MASTER_ADDR": "gpu01", "MASTER_PORT": "1"}])
def test_what_another_tool_left_is_named_and_not_believed(
    given: dict[str, str], environment: pytest.MonkeyPatch
) -> None:
    put(environment, given)
    assert find_place() is None
    assert (leftovers() or "").endswith(
        "in the environment, but nothing has started several processes: this one is alone"
    )


def test_pods_of_an_indexed_job_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"JOB_COMPLETION_INDEX": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "train-0.train"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert find_place() == Place(3, 4, 0, "train-0.train", 29_500)
    monkeypatch.setenv("MASTER_PORT", "7")
    assert find_place() == Place(3, 4, 0, "train-0.train", 7)


def test_a_node_that_starts_several_processes_is_not_taken_for_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SIMCLR_NODE", "1")
    assert find_place() is None
