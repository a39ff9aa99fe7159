"""Open the sockets that the server listens on: TCP on every address of a host, or a Unix socket."""

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deploy.errors import ArgumentError
from deploy.lock import acquire

BACKLOG = 2048
"""Connections that the kernel queues while the event loop is busy; the default of uvicorn."""

BOTH_FAMILIES = {"localhost": ("127.0.0.1", "::1"), "::": ("0.0.0.0", "::"), "": ("0.0.0.0", "::")}  # noqa: S104
"""Hosts that mean an address of each IP family."""

ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
"""What a machine without IPv6, or without IPv4, answers."""

ATTEMPTS = 20
"""How often another free port is tried that has to be free in both families."""


@contextmanager
def listen(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Listen on the addresses of ``host``. A family that this machine lacks is left out if the other one works.

    Raises:
        ArgumentError: the port is out of range, or an address is not one of this machine or is taken.
    """
    if not 0 <= port <= 65_535:
        raise ArgumentError(f"--port {port}; give 1 to 65535, or 0 for a free port")
    addresses = BOTH_FAMILIES.get(host, (host,))
    for attempt in range(ATTEMPTS):
        with ExitStack() as stack:
            try:
                listeners = _listen_on(stack, addresses, port)
            except OSError as error:
                if port == 0 and error.errno == errno.EADDRINUSE and attempt < ATTEMPTS - 1:
                    continue
                reason = error.strerror or error
                raise ArgumentError(f"--host {host} --port {port}: {reason}; choose another") from None
            yield listeners
            return


def _listen_on(stack: ExitStack, addresses: tuple[str, ...], port: int) -> list[socket.socket]:
    """Listen on the same port of each address; ``stack`` closes the sockets."""
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listener = stack.enter_context(socket.create_server((address, port), family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            absent = error
            continue
        listeners.append(listener)
        port = listener.getsockname()[1]
    if not listeners and absent:
        raise absent
    return listeners


@contextmanager
def listen_unix(path: Path, mode: int) -> Iterator[socket.socket]:
    """Listen on a Unix socket with the permissions ``mode``, and remove its file at the end.

    The file of a server that was killed is replaced. The new one appears with its permissions and accepts connections
    from its first moment, so a proxy never finds it half made.

    Raises:
        ArgumentError: a server already listens there, the path is another kind of file, or it cannot be made.
    """
    if not path.name:
        raise ArgumentError(f"--unix {path}: not the path of a socket; give one such as /run/simclr/socket")
    with socket.socket(socket.AF_UNIX) as listener:
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with _locked(path.parent):
                _check_replaceable(path)
                listener.bind(str(unfinished))
                unfinished.chmod(mode)
                listener.listen(BACKLOG)
                unfinished.rename(path)
        except OSError as error:
            reason = error.strerror or error  # Python itself refuses a path that is too long, without a number
            raise ArgumentError(f"--unix {path}: {reason}; choose a short path in a folder of this user") from None
        finally:
            unfinished.unlink(missing_ok=True)
        is_own = remember(path)
        try:
            yield listener
        finally:
            with suppress(OSError):
                if is_own():  # not that of a server that was started meanwhile
                    path.unlink()


def remember(path: Path) -> Callable[[], bool]:
    """Return a function that says whether the file at ``path`` is still the one that is there now."""
    own = path.stat()

    def is_own() -> bool:
        try:
            return os.path.samestat(path.stat(), own)
        except (FileNotFoundError, NotADirectoryError):
            return False

    return is_own


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two servers from taking the same path at the same time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not acquire(descriptor):
            raise BlockingIOError(errno.EWOULDBLOCK, "another server is being started in this folder")
        yield
    finally:
        os.close(descriptor)


def _check_replaceable(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ArgumentError(f"--unix {path}: this file is not a socket; choose another path, or remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a server whose queue is full is one as well
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass
    raise ArgumentError(f"--unix {path}: a server already listens there; stop it, or choose another path")
