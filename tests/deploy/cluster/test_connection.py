import os
import socket
import sys
import time

import pytest

from deploy.cluster.connection import ADDRESS, connected, knock
from deploy.errors import ClusterError
from tests.processes.busy import stretched


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ClusterError, match=r"^the knob is ray, .* `pip install '\.\[ray\]'` .*, or turn the knob$"),
        connected("the knob is ray", "turn the knob"),
    ):
        pass


@pytest.mark.seconds
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_unreachable_cluster_is_reported_at_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as no_one:
        no_one.bind(("127.0.0.1", 0))
        address = form.format(no_one.getsockname()[1])
        monkeypatch.setenv(ADDRESS, address)
        started = time.monotonic()
        with pytest.raises(ClusterError, match="ray start --head") as reported, connected("the knob", "turn it"):
            pass
    assert f"RAY_ADDRESS={address}" in str(reported.value)
    assert time.monotonic() - started < stretched(30)


@pytest.mark.seconds
def test_a_given_address_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS, "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"\(127\.0\.0\.1:2: Conn"), connected("the knob", "turn it", "127.0.0.1:2"):
        pass


def test_the_nearest_cluster_is_left_to_ray() -> None:
    knock("auto")


def own_process() -> int:
    return os.getpid()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_nodes_answer_and_the_connection_ends() -> None:
    with connected("the knob", "turn it") as ray:
        assert len(ray.nodes()) == 2
        assert ray.get(ray.remote(own_process).remote()) != own_process()
    assert not ray.is_initialized()
