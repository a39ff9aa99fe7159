"""What a stage has made on a worker, put into the workspace by the driver: checkpoints and curves as they come, models
and reports at the end; each of them complete or not at all.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.artifact import MANIFEST, publish, write_atomically

CHUNK = 1 << 26  # bytes in a message
SCRATCH = ".simclr/"
RUNS = ".simclr/runs/"
GROWING = ("events.out.",)  # begins of names of TensorBoard's files, to which is only added

Read = Callable[[str, int, int], bytes | None]
Files = Mapping[str, tuple[int, int]]


class Returned:
    """Keeps a workspace like the folder of a worker. ``read`` gives parts of its files, None for one that is gone."""

    def __init__(self, workspace: Path, read: Read, sent: Files) -> None:
        """``sent`` are files and published folders that the worker was given."""
        self._workspace, self._read = workspace, read
        self._held = dict(sent)

    def take(self, files: Files, last: bool = False) -> None:
        """Take what is new among ``files``; results, which are outside of ``.simclr``, with the ``last`` look alone."""
        for name, state in sorted(files.items(), key=lambda one: one[1][1]):
            wanted = self._held.get(name) != state and (last or name.startswith(SCRATCH))
            if wanted and (self._moved(name, state, files) or self._taken(name, state[0])):
                self._held[name] = state
        for name in [name for name in self._held if name.startswith(RUNS) and name not in files]:
            del self._held[name]
            self._remove(name)

    def _moved(self, name: str, state: tuple[int, int], files: Files) -> bool:
        """Whether it was only given another parent folder: a checkpoint is large."""
        if not name.startswith(RUNS) or (self._workspace / name).exists():
            return False
        last = name.rpartition("/")[2]
        former = next((one for one, was in self._held.items() if was == state and one.endswith(f"/{last}")), None)
        if former is None or former in files or not (self._workspace / former).exists():
            return False
        (self._workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (self._workspace / former).rename(self._workspace / name)
        return True

    def _taken(self, name: str, size: int) -> bool:
        """False if it was gone before it could be read whole; the next look tells."""
        manifest = self._content(f"{name}/{MANIFEST}")
        if manifest is not None:
            return self._take_folder(name, manifest.decode())
        target = self._workspace / name
        if target.name.startswith(GROWING):
            return self._take_end(name, target)
        content = self._content(name)
        if content is None or (name.startswith(RUNS) and len(content) < size):
            return False
        write_atomically(target, content)
        return True

    def _take_folder(self, name: str, manifest: str) -> bool:
        files = [line.partition("  ")[2] for line in manifest.splitlines()]
        try:
            with publish(self._workspace / name, replace=True) as folder:
                for file in files:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    with (folder / file).open("wb") as target:
                        for part in self._parts(f"{name}/{file}"):
                            target.write(part)
        except _GoneError:
            return False
        return True

    def _take_end(self, name: str, target: Path) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file:
            while part := self._read(name, file.tell(), CHUNK):
                file.write(part)
        return True

    def _content(self, name: str) -> bytes | None:
        try:
            return b"".join(self._parts(name))
        except _GoneError:
            return None

    def _parts(self, name: str) -> list[bytes]:
        parts: list[bytes] = []
        start = 0
        while True:
            part = self._read(name, start, CHUNK)
            if part is None:
                raise _GoneError
            parts.append(part)
            start += len(part)
            if len(part) < CHUNK:
                return parts

    def _remove(self, name: str) -> None:
        target = self._workspace / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        parent = target.parent
        if parent != self._workspace / RUNS and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


class _GoneError(Exception):
    """The worker has removed the file."""
