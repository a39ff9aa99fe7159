"""What tags say, whichever process wrote them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import ReleaseError
from pipeline.git import Git
from pipeline.release import versions
from tests.pipeline.release.conftest import git

LATER = datetime(2100, 1, 1, tzinfo=UTC)
BUNDLES = [letter * 64 for letter in "abcd"]


@pytest.fixture
def repository(tmp_path: Path) -> Git:
    """Four commits that name bundles, without tags."""
    git(tmp_path, "init", "--quiet")
    found = Git(tmp_path, "bot", "bot@example.org")
    for number, bundle in enumerate(BUNDLES):
        (tmp_path / "file").write_text(str(number))
        commit = found.commit(["file"], f"Run\n\nBundle: {bundle}\n\n[skip ci]\n", f"runs/{number}")
        found.set_reference(f"refs/test/{number}", commit)
    return found


def commit(repository: Git, number: int) -> str:
    found = repository.resolve(f"refs/test/{number}")
    assert found
    return found


def register(repository: Git, number: int) -> None:
    versions.read_history(repository, "encoder").register(repository, commit(repository, number), "")


def serve(repository: Git, *names: str) -> versions.History:
    for name in names:
        history = versions.read_history(repository, "encoder")
        assigned = history.assign(repository, history.find(name))
        assert assigned == versions.read_history(repository, "encoder")  # what it returns is what the tags say
    return versions.read_history(repository, "encoder")


def test_versions_and_switches_are_numbered_without_gaps(repository: Git) -> None:
    for number in range(3):
        register(repository, number)
    history = serve(repository, "v0.0.1", "v0.0.2", "v0.0.3", "v0.0.1")
    assert [version.name for version in history.versions] == ["v0.0.1", "v0.0.2", "v0.0.3"]
    assert [version.bundle for version in history.versions] == BUNDLES[:3]
    assert (history.served, history.switches) == (("v0.0.1", "v0.0.2", "v0.0.3", "v0.0.1"), 4)
    assert (history.next, history.current) == ("v0.0.4", history.find("v0.0.1"))
    found = history.of_bundle(BUNDLES[1])
    assert found is not None
    assert found.name == "v0.0.2"
    assert history.of_bundle(BUNDLES[3]) is None


def test_order_is_by_number_and_time_never_goes_back(repository: Git) -> None:
    repository.tag("encoder@v0.0.9", commit(repository, 0), "by hand", LATER)
    register(repository, 1)
    history = serve(repository, *["v0.0.9", "v0.0.10"] * 6)
    assert [version.name for version in history.versions] == ["v0.0.9", "v0.0.10"]
    assert history.served[-1] == "v0.0.10"
    times = [int(line) for line in git(repository.root, "tag", "--format=%(taggerdate:unix)").splitlines()]
    assert sorted(times) == list(range(int(LATER.timestamp()), int(LATER.timestamp()) + len(times)))
    assert history.newest == LATER + timedelta(seconds=len(times) - 1)


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ([1, 2], 1),
        ([1, 2, 3], 2),
        ([1, 2, 3, 2], 1),  # a second rollback goes one further
        ([1, 2, 1, 3], 1),  # the version that was rolled back is not gone back to
        ([1, 2, 1, 3, 2], 3),  # unless someone has promoted it since
        ([2, 1], 2),
    ],
)
def test_a_rollback_leads_to_the_version_served_before(repository: Git, served: list[int], expected: int) -> None:
    for number in range(3):
        register(repository, number)
    history = serve(repository, *(f"v0.0.{number}" for number in served))
    assert history.previous().name == f"v0.0.{expected}"


def test_a_rollback_without_an_earlier_version_is_refused(repository: Git) -> None:
    with pytest.raises(ReleaseError, match="nothing to roll back"):
        versions.read_history(repository, "encoder").previous()
    register(repository, 0)
    with pytest.raises(ReleaseError, match="nothing served before it"):
        serve(repository, "v0.0.1").previous()


def test_a_version_withdrawn_by_gto_is_gone_and_its_number_stays_used(repository: Git) -> None:
    for number in range(2):
        register(repository, number)
    serve(repository, "v0.0.1", "v0.0.2")
    repository.tag("encoder#prod!#3", commit(repository, 1), "unassigned", LATER)
    history = versions.read_history(repository, "encoder")
    assert (history.served, history.switches) == (("v0.0.1",), 3)
    repository.tag("encoder@v0.0.2!", commit(repository, 1), "deregistered", LATER)
    history = versions.read_history(repository, "encoder")
    assert [version.name for version in history.versions] == ["v0.0.1"]
    assert history.next == "v0.0.3"


def test_a_version_is_withdrawn_as_gto_does_it(repository: Git) -> None:
    for number in range(3):
        register(repository, number)
    serve(repository, "v0.0.1", "v0.0.2", "v0.0.3")
    before = versions.read_history(repository, "encoder")
    after = before.withdraw(repository, before.find("v0.0.2"), "consent withdrawn")
    read = versions.read_history(repository, "encoder")
    for history in (after, read):
        assert [version.name for version in history.versions] == ["v0.0.1", "v0.0.3"]
        assert (history.served, history.next) == (("v0.0.1", "v0.0.3"), "v0.0.4")
        assert history.withdrawn == {"v0.0.2": before.find("v0.0.2").bundle}
    assert read.previous().name == "v0.0.1"
    assert "consent withdrawn" in repository.run("tag", "--list", "--format=%(contents)", "encoder@v0.0.2!")
    with pytest.raises(ReleaseError, match=r"v0\.0\.2: no such version"):
        read.find("v0.0.2")


def test_other_tags_are_left_alone(repository: Git) -> None:
    register(repository, 0)
    for name in ("encoder@v1.0.0-rc.1", "encoder@latest", "encoder#staging#7", "encoder-2@v9.0.0", "v5.0.0"):
        repository.tag(name, commit(repository, 1), "other", LATER)
    git(repository.root, "tag", "encoder@v7.0.0", commit(repository, 2))  # not annotated: GTO passes over it as well
    history = serve(repository, "v0.0.1")
    assert [version.name for version in history.versions] == ["v0.0.1"]
    assert history.switches == 1


@pytest.mark.parametrize("name", ["", "my encoder", "a@b", "a/../b", "-x", "é"])
def test_a_name_that_git_does_not_allow_as_a_tag_is_refused(repository: Git, name: str) -> None:
    with pytest.raises(ReleaseError, match="letters, digits"):
        versions.read_history(repository, name)


def test_git_refuses_to_move_a_tag(repository: Git) -> None:
    register(repository, 0)
    with pytest.raises(ReleaseError, match="already exists"):
        repository.tag("encoder@v0.0.1", commit(repository, 1), "again", LATER)


def test_a_commit_is_made_once(repository: Git) -> None:
    before = commit(repository, 3)
    assert repository.commit(["file"], f"Run\n\nBundle: {BUNDLES[3]}\n", "runs/3") == before
    (repository.root / "file").unlink()
    after = repository.commit(["file"], "Run\n", "runs/3")
    assert after != before
    assert repository.show(after, "file") is None
    assert repository.show(before, "file") == "3"


def test_git_variables_of_a_surrounding_hook_are_ignored(repository: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert commit(repository, 0)


def test_secrets_in_the_address_of_the_origin_stay_out_of_errors(repository: Git) -> None:
    git(repository.root, "remote", "add", "origin", "https://me:hunter2hunter2@127.0.0.1:9/x.git")
    with pytest.raises(ReleaseError, match="git fetch") as raised:
        repository.fetch(["refs/tags/x"])
    assert "hunter2" not in str(raised.value)
