"""What each version of a workspace keeps in DVC's cache: the workspace, and every commit with a branch or tag."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

WORKSPACE = "workspace"  # the version that is in dvc.lock and the .dvc files now, committed or not
COMMITS = Path(".simclr") / "commits.sqlite"  # the outputs of every commit that has been read: a commit never changes


def read_versions(repo: Any, beyond: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """The workspace, then every commit with a branch or tag: its names, and path → object of its outputs.

    DVC takes a fifth of a second to read a commit, so that each is read once.

    Args:
        repo: a ``dvc.repo.Repo``.
        beyond: also commits whose references begin with this, such as ``refs/simclr/``.
    """
    from dvc.scm import NoSCM, iter_revs

    yield WORKSPACE, _outs(repo)
    named: dict[str, list[str]] = {}
    if not isinstance(repo.scm, NoSCM):
        named |= iter_revs(repo.scm, all_branches=True, all_tags=True)
        for reference in repo.scm.iter_refs(beyond) if beyond else ():
            named.setdefault(repo.scm.get_ref(reference), []).append(reference)
    path = Path(repo.root_dir) / COMMITS
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path, timeout=60)) as memory:
        memory.execute("CREATE TABLE IF NOT EXISTS outs (commit_id TEXT PRIMARY KEY, outs TEXT)")
        known = dict(memory.execute("SELECT commit_id, outs FROM outs"))
        new = [commit for commit in named if commit not in known]
        for commit in repo.brancher(revs=new, workspace=False, sha_only=True) if new else ():
            known[commit] = json.dumps(_outs(repo))
            memory.execute("INSERT OR REPLACE INTO outs VALUES (?, ?)", (commit, known[commit]))
        memory.executemany("DELETE FROM outs WHERE commit_id = ?", [(one,) for one in known.keys() - named.keys()])
        memory.commit()
    for commit, names in named.items():
        if commit in known:  # else it is from before the workspace
            yield ",".join(names), json.loads(known[commit])


def _outs(repo: Any) -> dict[str, str]:
    """Path → object, of what the version that DVC looks at now keeps in the cache."""
    outs = [out for out in repo.index.outs if out.use_cache and out.hash_info and out.hash_info.name == "md5"]
    return {"/".join(repo.fs.relparts(out.fs_path, repo.root_dir)): out.hash_info.value for out in outs}
