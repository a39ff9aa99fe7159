"""What the environment says of a machine, and what it cannot say."""

import pytest

from simclr_core.errors import DeviceError, LaunchError
from simclr_core.machine import settings
from tests.sentences import assert_plain


def test_without_a_variable_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (settings.DEVICE, settings.PROCESSES, *settings.SECONDS):
        monkeypatch.delenv(name, raising=False)
    assert settings.wanted_device() == "auto"
    assert settings.wanted_processes() is None
    assert [settings.seconds(name) for name in settings.SECONDS] == [60, 600, 30]


def test_what_is_given_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEVICE, "cpu")
    monkeypatch.setenv(settings.PROCESSES, "3")
    monkeypatch.setenv(settings.START_SECONDS, "5")
    assert (settings.wanted_device(), settings.wanted_processes()) == ("cpu", 3)
    assert settings.seconds(settings.START_SECONDS) == 5


def test_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DEVICE, "gpu")
    with pytest.raises(DeviceError, match="SIMCLR_DEVICE='gpu'; give auto, cuda or cpu") as caught:
        settings.wanted_device()
    assert_plain(str(caught.value))


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "soon", "", "nan", "inf", "1e3", " 5", "9" * 7, "9" * 5000])
def test_a_limit_that_is_not_a_number_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.PROCESSES, given)
    with pytest.raises(LaunchError, match=r"SIMCLR_PROCESSES=.*; give a number of processes, 1 or more, or leave it"):
        settings.wanted_processes()
    monkeypatch.setenv(settings.STOP_SECONDS, given)
    with pytest.raises(LaunchError, match=r"SIMCLR_STOP_SECONDS=.*; give whole seconds"):
        settings.seconds(settings.STOP_SECONDS)


def test_a_machine_among_several_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.own_node(2) == 0
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert settings.own_node(2) == 1
    monkeypatch.setenv("SIMCLR_NODE", "0")
    assert settings.own_node(2) == 0
    monkeypatch.setenv("SIMCLR_NODE", "2")
    with pytest.raises(LaunchError, match="SIMCLR_NODE=2 of 2 machines; give 0 to 1"):
        settings.own_node(2)
