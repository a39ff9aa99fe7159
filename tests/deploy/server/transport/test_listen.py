"""The server listens on both IP families and on Unix sockets, and replaces only what no server uses."""

import errno
import http.client
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import ArgumentError
from deploy.server.limits import Limits
from deploy.server.transport.accept import network_of, peer_of
from deploy.server.transport.listen import listen, listen_unix
from tests.deploy.server.conftest import HOST, IMAGE, head, running, wait_for
from tests.deploy.server.test_drain import served

MODE = 0o660


def ask(connection: socket.socket) -> int:
    with connection:
        connection.sendall(head(len(IMAGE)) + IMAGE)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status


@pytest.mark.parametrize("host", ["localhost", "::", ""])
def test_a_name_for_both_families_listens_on_both(host: str) -> None:
    with listen(host, 0) as listeners:
        port = listeners[0].getsockname()[1]
        assert [listener.getsockname()[1] for listener in listeners] == [port] * 2
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=30).close()


@pytest.mark.seconds
def test_each_family_is_served(bundle: Path) -> None:
    with served(bundle, "--host", "localhost") as (process, port, _):
        for address in ("127.0.0.1", "::1"):
            assert ask(socket.create_connection((address, port), timeout=30)) == 200
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_ipv6_serves_ipv4(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_server

    def create(address: tuple[str, int], **options: Any) -> socket.socket:
        if options["family"] == socket.AF_INET6:
            raise OSError(number, "no IPv6 here")
        return real(address, **options)

    monkeypatch.setattr(socket, "create_server", create)
    for host in ("localhost", "::"):
        with listen(host, 0) as listeners:
            assert [listener.family for listener in listeners] == [socket.AF_INET]
    with pytest.raises(ArgumentError, match="no IPv6 here; choose another"), listen("::1", 0):
        pass


def test_a_taken_port_is_refused_even_if_only_one_family_has_it() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArgumentError, match=f"--port {port}: Address already in use"), listen("localhost", port):
            pass


def test_a_free_port_is_free_in_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process has the same port of the other family, the next one is tried."""
    real, refused = socket.create_server, []

    def create(address: tuple[str, int], **options: Any) -> socket.socket:
        if options["family"] == socket.AF_INET6 and len(refused) < 3:
            refused.append(address)
            raise OSError(errno.EADDRINUSE, "taken")
        return real(address, **options)

    monkeypatch.setattr(socket, "create_server", create)
    with listen("localhost", 0) as listeners:
        assert len(listeners) == 2
    assert len(refused) == 3


def test_a_unix_socket_is_served_with_its_mode_and_removed(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen_unix(path, MODE):
        assert stat.S_IMODE(path.stat().st_mode) == MODE
    assert not path.exists()
    with listen_unix(path, 0o600) as listener, running(bundle, listener=listener):
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            assert ask(client) == 200
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_a_killed_servers_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
        with pytest.raises(ArgumentError, match="a server already listens there"), listen_unix(path, MODE):
            pass
    assert path.exists()
    with listen_unix(path, MODE) as listener:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        listener.accept()[0].close()
        client.close()
        with pytest.raises(ArgumentError, match="a server already listens there"), listen_unix(path, MODE):
            pass
        assert path.exists()


def test_a_server_whose_queue_is_full_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
        with pytest.raises(ArgumentError, match="a server already listens there"):
            stack.enter_context(listen_unix(path, MODE))


def test_what_is_not_a_socket_is_kept(tmp_path: Path) -> None:
    for path in (tmp_path / "file", tmp_path / "folder", tmp_path / "link"):
        {"file": path.touch, "folder": path.mkdir, "link": lambda path=path: path.symlink_to("file")}[path.name]()
        with pytest.raises(ArgumentError, match="not a socket"), listen_unix(path, MODE):
            pass
        assert path.exists()
    for path in (tmp_path / "absent/socket", tmp_path / ("long" * 40)):
        with pytest.raises(ArgumentError, match="choose a short path"), listen_unix(path, MODE):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "link"}


def test_the_socket_of_another_server_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with ExitStack() as first:
        first.enter_context(listen_unix(path, MODE))
        path.unlink()  # as a person does before starting another one
        with listen_unix(path, MODE):
            first.close()
            assert path.exists()
    assert not path.exists()


@pytest.mark.seconds
@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_server_whose_socket_is_gone_answers_what_it_has_and_ends_with_an_error(
    change: str, bundle: Path, tmp_path: Path
) -> None:
    """No one can reach it, so a service manager has to start it again."""
    path = tmp_path / "socket"
    command = [sys.executable, "-P", "-m", "deploy.cli", "serve", str(bundle), "--unix", str(path)]
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stderr
        assert "listening" in process.stderr.readline()
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
        client.sendall(head(len(IMAGE)))
        path.unlink()
        other = stack.enter_context(socket.socket(socket.AF_UNIX))
        if change == "replaced":
            other.bind(str(path))
        wait_for(lambda: "draining" in process.stderr.readline(), "the end")
        client.sendall(IMAGE)
        assert client.recv(12) == b"HTTP/1.1 200"
        said = process.stderr.read()
        assert process.wait(30) == 2
        assert f"error: --unix {path}: the socket was removed or replaced" in said
        assert "Traceback" not in said
        assert path.exists() == (change == "replaced")


def test_a_path_without_a_name_is_refused() -> None:
    with pytest.raises(ArgumentError, match="not the path of a socket"), listen_unix(Path(), MODE):
        pass


def test_idle_connections_over_a_unix_socket_make_room(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with ExitStack() as stack:
        listener = stack.enter_context(listen_unix(path, MODE))
        stack.enter_context(running(bundle, Limits(connections=5), listener=listener))
        for _ in range(12):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(path))
        assert ask(client) == 200


def test_connections_count_for_a_network_or_a_process() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") != network_of("10.0.0.2")
    first, second = socket.socketpair(socket.AF_UNIX)
    with first, second:
        assert peer_of(first, "").startswith("process ")
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, address = listener.accept()
        with accepted:
            assert peer_of(accepted, address) == HOST
