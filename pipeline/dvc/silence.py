"""How long a stage may be silent before it counts as hanging: ten times as long as it ever was with these parameters.

Every stage reports as it proceeds. One that waits for a device, a dead network disk or another process forever does not
end, and would hold the workspace. The longest silences of a stage are in ``.simclr/silences.json``.
"""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path

from deploy.artifact import write_atomically
from deploy.plural import duration
from pipeline.errors import StageFailedError
from simclr_core.errors import LaunchError
from simclr_core.machine.settings import read_number

FILE = Path(".simclr") / "silences.json"
HOURS = "SIMCLR_SILENT_HOURS"
FIRST_SECONDS, LEAST_SECONDS, FACTOR = 6 * 3600.0, 1800.0, 10
KEPT = 10  # executions
LEAST_HOURS = 1 / 3600  # with less than a second, every stage would be stopped


class Silence:
    """The silence of one execution of a stage, by the monotonic clock, which stands still in a suspended machine.

    Raises:
        StageFailedError: SIMCLR_SILENT_HOURS is not a number of hours above 0.
    """

    def __init__(self, root: Path, stage: str) -> None:
        self._file, self._stage = root / FILE, stage
        params = root / "params.yaml"
        self._params = hashlib.sha256(params.read_bytes() if params.exists() else b"").hexdigest()[:16]
        known = self._stored().get(stage)
        self._before: list[float] = known.get(self._params, []) if isinstance(known, dict) else []
        self.limit = self._given() or max(LEAST_SECONDS, FACTOR * max(self._before, default=FIRST_SECONDS / FACTOR))
        self._since = time.monotonic()
        self._longest = 0.0

    def broken(self) -> None:
        """The stage has reported something."""
        now = time.monotonic()
        self._since, self._longest = now, max(self._longest, now - self._since)

    def check(self) -> None:
        """Raise StageFailedError when the stage has been silent for too long."""
        if time.monotonic() - self._since > self.limit:
            longest = f"longest so far: {duration(max(self._before))}" if self._before else "its first run"
            raise StageFailedError(
                f"stage {self._stage}: has reported nothing for {duration(self.limit)} ({longest}) and was stopped as "
                f"hanging; run again, a training continues from its last checkpoint; {HOURS} sets another limit"
            )

    def keep(self) -> None:
        """Remember it for the next execution with the same parameters; those with others are forgotten."""
        self.broken()
        stored = self._stored() | {self._stage: {self._params: [*self._before, self._longest][-KEPT:]}}
        with suppress(OSError):  # a full disk
            write_atomically(self._file, json.dumps(stored))

    def _stored(self) -> dict[str, dict[str, list[float]]]:
        try:
            stored: dict[str, dict[str, list[float]]] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _given(self) -> float:
        """In seconds; 0 if the environment sets none."""
        try:
            given = read_number(HOURS, LEAST_HOURS, "a number of hours, such as 2 or 0.5", whole=False)
        except LaunchError as error:
            raise StageFailedError(str(error)) from None
        return 3600 * (given or 0.0)
