"""The few things that a release asks of Git: commits and tags next to the user's own work, never in it.

HEAD, the index and the working tree belong to the user: commits are made with a separate index. No hook runs,
nothing is signed and no question is asked, so that it also works at night under a service's account.
"""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.artifact import write_atomically
from deploy.failure import killed_by
from pipeline.errors import ReleaseError
from pipeline.redact import redactor

NETWORK_SECONDS = 600.0
ORIGIN = "origin"
# An index or a repository that the caller's own Git has chosen, as in a hook, is not ours.
FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
SETTINGS = (
    "core.hooksPath=/dev/null",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "gc.auto=0",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "advice.detachedHead=false",
)


@dataclass(frozen=True)
class Tag:
    """An annotated tag: the commit it points at, the second it was made in, its message, and that of the commit."""

    name: str
    commit: str
    made: datetime
    message: str
    commit_message: str


@dataclass(frozen=True)
class Git:
    """The repository at ``root``, and the identity that commits and tags are made with."""

    root: Path
    author: str
    email: str

    def require(self) -> None:
        """Make sure that the workspace is a Git repository, and not a folder inside another one.

        Raises:
            ReleaseError: it is not; or Git refuses to work here, and says why.
        """
        try:
            self.run("rev-parse", "--git-dir")
        except ReleaseError as error:
            raise ReleaseError(
                f"{self.root}: Git does not work here, and without it nothing can be released or rolled back "
                f"({error}); restore the folder's .git from a clone or a backup; `git init` begins a new history"
            ) from None

    def resolve(self, revision: str) -> str | None:
        """The commit that a revision names, None when there is no such commit."""
        return self._try("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")

    def show(self, commit: str, path: str) -> str | None:
        """The text of a file as it was in a commit, None when it was not there."""
        return self._try("cat-file", "blob", f"{commit}:{path}")

    def contents(self, names: Sequence[str]) -> list[bytes | None]:
        """Read files or trees such as ``COMMIT:reports/export.json``, by one process; None for a missing one."""
        answer = self._execute(("cat-file", "--batch"), given="".join(f"{name}\n" for name in names))
        found: list[bytes | None] = []
        at = 0
        for _ in names:
            begin = answer.index(b"\n", at) + 1
            *_, said = answer[at:begin].split()
            size = int(said) if said.isdigit() else None  # else: missing
            found.append(None if size is None else answer[begin : begin + size])
            at = begin if size is None else begin + size + 1
        return found

    def listings(self, commits: Sequence[str], folder: str) -> list[list[str]]:
        """Paths of what is directly in a folder of each commit."""
        trees = self.contents([f"{commit}:{folder}" for commit in commits])
        return [
            [f"{folder}/{name}" for name in _names(tree or b"", len(commit) // 2)]
            for commit, tree in zip(commits, trees, strict=True)
        ]

    def commit(self, files: Sequence[str], message: str, branch: str) -> str:
        """Put these files, as they are in the working tree, on top of HEAD as the one commit of ``branch``.

        A branch that holds exactly this already is left as it is. A file that does not exist is removed.

        Returns:
            The commit.
        """
        head, tree = self.resolve("HEAD"), self.write_tree(files)
        known = self.resolve(f"refs/heads/{branch}")
        if known and self._try("rev-parse", f"{known}^{{tree}}") == tree and self._parent(known) == head:
            return known
        parents = ("-p", head) if head else ()
        made = self._later_than_all(f"refs/heads/{branch.rpartition('/')[0]}")
        commit = self.run("commit-tree", tree, *parents, "-F", "-", given=message, date=made)
        self.run("update-ref", "-m", "release", f"refs/heads/{branch}", commit, known or "0" * 40)
        return commit

    def _later_than_all(self, branches: str) -> datetime:
        """Now, or later than the newest commit of these branches: which is the newest must not depend on the clock."""
        newest = self.run(
            "for-each-ref", "--count=1", "--sort=-committerdate", "--format=%(committerdate:unix)", branches
        )
        return max(datetime.now(UTC), datetime.fromtimestamp(int(newest or 0) + 1, UTC))

    def write_tree(self, files: Sequence[str]) -> str:
        """The tree of HEAD with these files as they are in the working tree; without those that do not exist."""
        with TemporaryDirectory() as folder:
            index = Path(folder) / "index"
            self.run("read-tree", self.resolve("HEAD") or "--empty", index=index)
            present = "\0".join(file for file in files if (self.root / file).is_file())
            gone = "\0".join(file for file in files if not (self.root / file).is_file())
            stdin = ("--pathspec-from-file=-", "--pathspec-file-nul")
            if present:
                self.run("add", "--force", *stdin, index=index, literal=True, given=present)
            if gone:
                self.run("rm", "--cached", "--quiet", "--ignore-unmatch", *stdin, index=index, literal=True, given=gone)
            return self.run("write-tree", index=index)

    def tags(self, prefixes: Sequence[str]) -> list[Tag]:
        """The annotated tags that begin with one of the prefixes."""
        fields = ("refname:strip=2", "*objectname", "taggerdate:unix", "contents", "*contents")
        layout = "%00".join(f"%({field})" for field in fields) + "%00"
        found = self.run("for-each-ref", f"--format={layout}", "refs/tags").split("\0")[:-1]
        rows = [found[start : start + len(fields)] for start in range(0, len(found), len(fields))]
        return [
            Tag(name.lstrip("\n"), commit, datetime.fromtimestamp(int(second), UTC), *messages)
            for name, commit, second, *messages in rows
            if commit and name.lstrip("\n").startswith(tuple(prefixes))
        ]

    def tag(self, name: str, commit: str, message: str, made: datetime) -> None:
        """Make an annotated tag, dated ``made``; Git refuses to move one that exists."""
        self.run("tag", "--annotate", "--file=-", name, commit, given=message, date=made)

    def reference(self, name: str) -> str | None:
        """The object that a reference outside the branches, such as ``refs/simclr/pushed``, points at."""
        return self._try("rev-parse", "--verify", "--quiet", name)

    def set_reference(self, name: str, target: str) -> None:
        self.run("update-ref", name, target)

    def has_origin(self) -> bool:
        return self._try("remote", "get-url", ORIGIN) is not None

    def fetch(self, references: Iterable[str]) -> None:
        """Get references, such as ``refs/tags/x@*``, from the origin; never move one that is here."""
        self.run("fetch", "--quiet", "--no-tags", ORIGIN, *(f"{name}:{name}" for name in references), network=True)

    def push(self, references: Iterable[str]) -> None:
        """Send references to the origin; only one that begins with ``+`` may replace what is there."""
        self.run("push", "--quiet", ORIGIN, *(f"{name}:{name.lstrip('+')}" for name in references), network=True)

    def clone(self, commit: str, folder: Path) -> None:
        """The files of a commit in a separate repository, which borrows the objects of this one."""
        self.run("clone", "--quiet", "--shared", "--no-checkout", "--no-tags", str(self.root), str(folder))
        self.run("-C", str(folder), "checkout", "--quiet", "--detach", commit)

    def changes(self, one: str, other: str, exclude: Sequence[str]) -> str:
        """How much differs between two commits, in Git's words; empty when nothing does."""
        without = [f":(exclude,glob){pattern}" for pattern in exclude]
        return self.run("diff", "--shortstat", one, other, "--", ".", *without).strip()

    def run(
        self,
        *arguments: str,
        index: Path | None = None,
        literal: bool = False,
        given: str = "",
        date: datetime | None = None,
        network: bool = False,
    ) -> str:
        """Run ``git ARGUMENTS`` and return what it printed, without the last line break.

        Args:
            index: used in place of the user's.
            literal: take paths as they are, with no meaning of ``*`` or ``:``.
            given: its standard input.

        Raises:
            ReleaseError: with Git's own words.
        """
        environment = self._environment(index, literal, date)
        printed = self._execute(arguments, given, environment, NETWORK_SECONDS if network else None)
        return os.fsdecode(printed).removesuffix("\n")

    def _execute(
        self,
        arguments: Sequence[str],
        given: str = "",
        environment: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> bytes:
        settings = [part for setting in SETTINGS for part in ("-c", setting)]
        try:
            done = subprocess.run(
                ["git", *settings, *arguments],
                cwd=self.root,
                env=environment or self._environment(None, False, None),
                input=os.fsencode(given),
                capture_output=True,
                check=False,
                timeout=seconds,
            )
        except FileNotFoundError:
            raise ReleaseError("git: command not found; install Git") from None
        except subprocess.TimeoutExpired:
            raise ReleaseError(
                f"git {arguments[0]}: no answer in {NETWORK_SECONDS:.0f} s; is the origin reachable?"
            ) from None
        if done.returncode != 0:
            said = killed_by(done.returncode) or " ".join(os.fsdecode(done.stderr).split())
            said = said or f"exit code {done.returncode}"
            said = re.sub(r"^(fatal|error): ", "", said)
            raise ReleaseError(redactor(self.root)(f"git {arguments[0]}: {said}"))
        return done.stdout

    def _try(self, *arguments: str) -> str | None:
        try:
            return self.run(*arguments)
        except ReleaseError:
            return None

    def _parent(self, commit: str) -> str | None:
        return self._try("rev-parse", "--verify", "--quiet", f"{commit}^")

    def _environment(self, index: Path | None, literal: bool, date: datetime | None) -> dict[str, str]:
        ours = {
            "GIT_AUTHOR_NAME": self.author,
            "GIT_AUTHOR_EMAIL": self.email,
            "GIT_COMMITTER_NAME": self.author,
            "GIT_COMMITTER_EMAIL": self.email,
            "GIT_CEILING_DIRECTORIES": str(self.root.parent),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "LC_ALL": "C",
        }
        if index is not None:
            ours["GIT_INDEX_FILE"] = str(index)
        if literal:
            ours["GIT_LITERAL_PATHSPECS"] = "1"
        if date is not None:
            ours["GIT_COMMITTER_DATE"] = f"@{int(date.timestamp())} +0000"
        return {name: value for name, value in os.environ.items() if name not in FOREIGN} | ours


def _names(tree: bytes, hash_bytes: int) -> Iterator[str]:
    """The names in a tree: each entry is its mode, a space, the name, a zero, and the hash."""
    while tree:
        entry, _, rest = tree.partition(b"\0")
        yield os.fsdecode(entry.partition(b" ")[2])
        tree = rest[hash_bytes:]


def config_files(root: Path) -> list[Path]:
    """Where Git reads the settings of the repository at ``root``, also in a linked worktree; they need not exist."""
    folder = root / ".git"
    with suppress(OSError):  # a worktree names its folder in a file, and that folder the one of the repository
        folder = root / folder.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        folder /= (folder / "commondir").read_text(encoding="utf-8").strip()
    xdg = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    users = [os.environ.get("GIT_CONFIG_GLOBAL") or "~/.gitconfig", f"{xdg}/git/config"]
    return [folder / "config", *(Path(name).expanduser() for name in users)]


def leave_out(folder: Path, *names: str) -> None:
    """Keep files of a folder out of Git, next to what DVC keeps out: they show images, and a purge cannot reach a
    commit."""
    file = folder / ".gitignore"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    new = [f"/{name}" for name in names if f"/{name}" not in lines]
    if new:
        write_atomically(file, "".join(f"{line}\n" for line in (*lines, *new)))
