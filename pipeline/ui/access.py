"""Who may come into the UI: passwords, names and proxies, as the environment says."""

import hashlib
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import ServiceError

Role = Literal["operator", "viewer"]

PASSWORDS: dict[Role, str] = {"operator": "SIMCLR_UI_PASSWORD", "viewer": "SIMCLR_UI_VIEWER_PASSWORD"}
HOSTS = "SIMCLR_UI_HOSTS"
PROXIES = "SIMCLR_UI_PROXIES"


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Attributes:
        passwords: role → its password; empty means that every user is the operator.
        hosts: names of this server, besides its addresses and ``localhost``.
        secret: ties the sessions to this workspace and its passwords.
        proxies: addresses or networks whose word is taken for where a request comes from.
    """

    passwords: Mapping[Role, str]
    hosts: frozenset[str]
    secret: bytes
    proxies: tuple[str, ...] = ()

    @property
    def key(self) -> bytes:
        """Another password ends the sessions of the old one."""
        return hashlib.sha256(self.secret + repr(sorted(self.passwords.items())).encode()).digest()


def read_access(host: str, environment: Mapping[str, str], secret: bytes) -> Access:
    """What the environment says: SIMCLR_UI_PASSWORD or SIMCLR_UI_PASSWORD_FILE, the same for _VIEWER_, HOSTS, PROXIES.

    Raises:
        ServiceError: a password file that cannot be read, no password though ``host`` can be reached from elsewhere, or
            a proxy that is not an address.
    """
    given = {role: _read_password(variable, environment) for role, variable in PASSWORDS.items()}
    passwords = {role: password for role, password in given.items() if password}
    if "operator" not in passwords and (passwords or not _is_loopback(host)):
        raise ServiceError(
            f"{host}: anyone who can reach the UI can start and stop runs; set SIMCLR_UI_PASSWORD or "
            "SIMCLR_UI_PASSWORD_FILE, or leave --host at 127.0.0.1 and use `ssh -L`"
        )
    if len(set(passwords.values())) < len(passwords):
        raise ServiceError("the operator and the viewer have the same password; give them different ones")
    names = frozenset(name.lower() for name in _listed(HOSTS, environment))
    return Access(passwords, names | {socket.gethostname().lower()}, secret, _read_proxies(environment))


def _listed(variable: str, environment: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environment.get(variable, "").split(",") if name.strip()]


def _read_proxies(environment: Mapping[str, str]) -> tuple[str, ...]:
    proxies = _listed(PROXIES, environment)
    try:
        return tuple(str(ipaddress.ip_network(proxy)) for proxy in proxies)
    except ValueError as error:
        raise ServiceError(
            f"{PROXIES}={environment[PROXIES]}: {error}; give addresses or networks such as 127.0.0.1,10.0.0.0/8"
        ) from None


def _read_password(variable: str, environment: Mapping[str, str]) -> str:
    file = environment.get(f"{variable}_FILE")
    if not file:
        return environment.get(variable, "")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ServiceError(f"{variable}_FILE={file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ServiceError(f"{variable}_FILE={file}: cannot be read (it is not UTF-8)") from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
