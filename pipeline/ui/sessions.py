"""Who is logged in: sessions that outlive a restart of the web server, can be listed, and end one by one.

The browser keeps a random token, the file only its hash: who reads the file cannot log in with it.
"""

import hashlib
import json
import os
import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.artifact import write_atomically
from pipeline.runs.clock import FUTURE_SECONDS
from pipeline.ui.access import Role

SESSION_SECONDS = 12 * 3600
SESSION_KEY = Path(".simclr") / "services" / "session.key"


@dataclass(frozen=True)
class Session:
    """``began`` is in seconds since the epoch; ``key`` belongs to the passwords that were valid then."""

    role: Role
    address: str
    browser: str
    began: float
    key: str

    @property
    def ends(self) -> float:
        return self.began + SESSION_SECONDS

    def holds(self, now: float) -> bool:
        """Not one from before the clock was set back: it would last until the old time and longer."""
        return self.began - FUTURE_SECONDS <= now < self.ends


class Sessions:
    """The sessions in a file that only this process writes.

    Args:
        key: of the passwords; other passwords end all sessions.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, key.hex()
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            self._sessions = {name: Session(**session) for name, session in stored.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or not ours: every user logs in again
            self._sessions = {}

    def begin(self, role: Role, address: str, browser: str) -> str:
        """The token of a new session."""
        token = secrets.token_urlsafe(32)
        self._sessions[_name(token)] = Session(role, address, browser[:200], time.time(), self._key)
        self._keep()
        return token

    def find(self, token: str) -> tuple[str, Session] | None:
        """Name and session of a token; None when it has ended or never was."""
        name = _name(token)
        session = self.active().get(name)
        return (name, session) if session else None

    def active(self) -> dict[str, Session]:
        """Name → session, the newest first."""
        now = time.time()
        valid = [item for item in self._sessions.items() if item[1].key == self._key and item[1].holds(now)]
        return dict(sorted(valid, key=lambda item: -item[1].began))

    def end(self, name: str) -> None:
        self._sessions.pop(name, None)
        self._keep()

    def _keep(self) -> None:
        self._sessions = self.active()
        stored = {name: asdict(session) for name, session in self._sessions.items()}
        with suppress(OSError):  # a full disk: they last until the web server is started again
            write_atomically(self._path, json.dumps(stored))


def session_key(root: Path) -> bytes:
    """Kept in the workspace, so that a restart of a server logs no user out."""
    path = root / SESSION_KEY
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # for this user only
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        Path(temporary).replace(path)
    return path.read_bytes()


def _name(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()[:32]
