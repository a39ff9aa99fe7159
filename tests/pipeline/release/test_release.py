"""A release, and what it leaves: for others, in the registry, and not in the user's work."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import deploy
from deploy.artifact import identity, verify
from pipeline import alerts
from pipeline.errors import DvcError, ReleaseError
from pipeline.params import override
from pipeline.release import candidate
from pipeline.release.registry import open_registry
from pipeline.release.release import list_versions, promote, release, rollback
from pipeline.workspace import Workspace, executable
from tests.pipeline.release.conftest import ARTIFACT, dvc, git, origin, store, tags

pytestmark = pytest.mark.slow  # each of them clones, pushes and pulls


def test_the_first_release_reaches_registry_git_and_remotes(computed: Workspace, tmp_path: Path) -> None:
    done = release(computed)
    assert (done.version, done.before, done.changed, done.notes) == ("v0.0.1", None, True, ())
    assert tags(computed) == [f"{ARTIFACT}@v0.0.1", f"{ARTIFACT}#prod#1"]
    assert git(origin(computed), "tag").splitlines() == sorted(tags(computed))
    assert git(origin(computed), "rev-parse", f"runs/{done.bundle[:12]}") == done.commit

    # Someone else, with nothing but the origin and the remote, has the same workspace.
    clone = tmp_path / "place" / "clone"
    git(tmp_path, "clone", "--quiet", str(origin(computed)), str(clone))
    git(clone, "checkout", "--quiet", f"{ARTIFACT}@v0.0.1")
    dvc(clone, "pull")
    assert dvc(clone, "status").strip() == "Data and pipelines are up to date."
    assert identity(clone / "models" / "bundle") == done.bundle
    assert git(clone, "status", "--porcelain") == ""

    folder = computed.root / "registry"
    verify(folder / "v0.0.1")
    assert identity(folder / "v0.0.1") == done.bundle
    assert deploy.load(folder).info["version"] == "v0.0.1"
    facts = json.loads((folder / "releases" / "v0.0.1.json").read_text())
    assert facts["metrics"] == {"images": 100, "knn_top1": 71.0, "linear_top1/1.0": 80.0, "megabytes": 0.001}
    assert (facts["commit"], facts["champion"]) == (done.commit, None)
    card = (folder / "releases" / "v0.0.1.md").read_text()
    assert done.commit in card
    assert "# Encoder 1" in card


def test_what_neither_labels_nor_views_have_judged_is_released_as_unjudged(computed: Workspace) -> None:
    stage = computed.root / "stage.py"
    unjudged = '{"reason": "no labels", "champion": before, "knn": {}, "probe": {}}'
    given = stage.read_text()
    stage.write_text(given.replace('{"champion": before, "knn": pair, "probe": pair}', unjudged))
    assert stage.read_text() != given
    dvc(computed.root, "repro", "--force", "--single-item", "compare")
    done = release(computed)
    assert [note.partition(":")[0] for note in done.notes] == ["UNJUDGED"]
    assert done.notes[0] in str(done)
    assert done.notes[0] in (computed.root / "registry" / "releases" / "v0.0.1.md").read_text()


def test_gto_and_dvc_read_the_tags(released: Workspace, tmp_path: Path) -> None:
    def serving() -> str:
        done = subprocess.run(
            [executable("gto"), "show", f"{ARTIFACT}#prod", "--json"],
            cwd=released.root, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return str(json.loads(done.stdout)[0]["version"])

    assert serving() == "v0.0.2"
    rollback(released)
    promote(released, "v0.0.2")
    rollback(released)  # three switches within one second of the clock
    assert serving() == "v0.0.1"
    got = tmp_path / "got"
    dvc(released.root, "artifacts", "get", ".", ARTIFACT, "--stage", "prod", "--out", str(got))
    assert identity(got) == identity(released.root / "registry" / "v0.0.1")


def test_releasing_again_changes_nothing(released: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tags(released)
    branches = git(released.root, "branch", "--list", "--all")
    monkeypatch.setattr(alerts, "send", lambda *_: pytest.fail("nothing has happened"))
    shutil.move(store(released), store(released).with_name("gone"))  # neither is asked again
    shutil.move(origin(released), origin(released).with_name("gone too"))
    done = release(released)
    assert (done.version, done.changed) == ("v0.0.2", False)
    assert "nothing has changed" in str(done)
    assert (tags(released), git(released.root, "branch", "--list", "--all")) == (before, branches)


def test_a_candidate_that_was_rolled_back_is_named_and_stays_so(released: Workspace) -> None:
    assert release(released).notes == ()
    rollback(released)
    done = release(released)
    assert (done.version, done.changed) == ("v0.0.1", False)
    (note,) = done.notes
    assert note.startswith("the candidate is v0.0.2, which served before and is not released again")
    assert "`simclr release promote v0.0.2`" in note


def test_the_users_work_stays_and_nothing_stray_is_committed(computed: Workspace) -> None:
    root = computed.root
    git(root, "checkout", "--quiet", "--detach")
    stray = [
        ".env",
        "notes.txt",
        "reports/secret.txt",
        "reports/key.json",
        "models/key.pem",
        ".dvc/config.local",
        "a.lock",
    ]
    for name in stray:
        (root / name).write_text("[core]\n    analytics = false\n# s3cret")
    (root / "stage.py").write_text((root / "stage.py").read_text() + "# changed\n")
    (root / "staged.txt").write_text("half done")
    git(root, "add", "staged.txt", "dvc.lock")
    excludes = root.parent / "excludes"
    excludes.write_text("*.json\n")
    git(root, "config", "core.excludesFile", str(excludes))
    git(root, "config", "commit.gpgSign", "true")
    git(root, "config", "tag.gpgSign", "true")
    hook = root / ".git" / "hooks" / "pre-push"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    state = ("rev-parse", "HEAD"), ("status", "--porcelain"), ("diff", "--cached"), ("diff",), ("ls-files", "--stage")
    before = [git(root, *command) for command in state]

    done = release(computed)
    assert [git(root, *command) for command in state] == before
    assert git(root, "branch", "--show-current") == ""
    committed = set(git(root, "ls-tree", "-r", "--name-only", done.commit).splitlines())
    assert not committed & {*stray, "staged.txt"}
    assert {"dvc.lock", "models/champion.dvc", "reports/compare.json", "data/.gitignore"} <= committed
    assert not any("s3cret" in git(root, "show", f"{done.commit}:{path}") for path in committed)
    assert "changed" not in git(root, "show", f"{done.commit}:stage.py")
    shown = git(root, "log", "-1", "--format=%an <%ae> %cn|%B", done.commit)
    assert shown.startswith("simclr-bot <simclr-bot@localhost> simclr-bot|")
    assert shown.endswith("[skip ci]")


def test_without_a_user_identity_or_a_first_commit(
    computed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git(computed.root, "remote", "remove", "origin")
    git(computed.root, "checkout", "--quiet", "--orphan", "nothing")
    done = release(computed)
    assert git(computed.root, "rev-list", "--count", done.commit) == "1"
    assert git(computed.root, "symbolic-ref", "HEAD") == "refs/heads/nothing"


def test_a_workspace_without_its_git_repository(released: Workspace) -> None:
    git(released.root.parent, "init", "--quiet")  # a repository around it is not its own
    shutil.rmtree(released.root / ".git")
    for action in (release, rollback, list_versions):
        with pytest.raises(ReleaseError, match=r"Git does not work here.*restore the folder's \.git"):
            action(released)
    assert git(released.root.parent, "tag") == ""


def test_a_damaged_object_in_the_remote_is_found_before_any_tag(computed: Workspace) -> None:
    dvc(computed.root, "push")
    model = computed.root / "models" / "bundle" / "encoder.fp32.onnx"
    for stored in store(computed).rglob("*"):
        if stored.is_file() and stored.read_bytes() == model.read_bytes():
            stored.chmod(0o644)
            stored.write_bytes(model.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DvcError, match=r"remote store: does not return models/bundle, models/pretrained as pushed"):
        release(computed)
    assert tags(computed) == []
    assert git(origin(computed), "tag") == ""
    assert open_registry(computed).current() is None
    assert not (computed.scratch / candidate.CLONE).exists()


def test_an_unreachable_remote_means_no_tag(computed: Workspace) -> None:
    store(computed).write_text("not a folder any more")
    with pytest.raises(DvcError, match="push"):
        release(computed)
    assert tags(computed) == []


def test_files_missing_in_the_remote_are_sent_again(third: Workspace) -> None:
    released = third
    dvc(released.root, "push")
    lost = [path for path in store(released).rglob("*") if path.is_file() and path.suffix != ".dir"]
    for path in lost:
        path.unlink()  # the listings stay, by which DVC believes that everything is there
    assert release(released).version == "v0.0.3"
    absent = [path for path in lost if not path.exists()]
    assert len(absent) < len(lost)
    shutil.rmtree(released.root / ".dvc" / "cache")
    for path in ("models", "data/raw"):
        shutil.rmtree(released.root / path)
    git(released.root, "checkout", "--quiet", "--force", f"{ARTIFACT}@v0.0.3")
    dvc(released.root, "pull")
    assert dvc(released.root, "status").strip() == "Data and pipelines are up to date."


def test_an_origin_that_rejects_pushes_is_found_before_any_tag(computed: Workspace) -> None:
    hook = origin(computed) / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(ReleaseError, match=r"git push.*nothing was tagged.*git remote rename origin"):
        release(computed)
    assert tags(computed) == []
    hook.unlink()
    assert release(computed).version == "v0.0.1"


def test_a_version_of_another_clone_is_known_before_the_next_is_numbered(third: Workspace) -> None:
    person = ("-c", "user.name=other", "-c", "user.email=other@example.org")
    tag = ("tag", "-a", "-m", "by someone else", f"{ARTIFACT}@v0.1.4", f"{ARTIFACT}@v0.0.1^{{commit}}")
    git(origin(third), *person, *tag)
    assert release(third).version == "v0.1.5"


def test_without_a_remote_a_release_warns_or_is_refused(computed: Workspace) -> None:
    dvc(computed.root, "remote", "remove", "store")
    override(computed, {"release.require_remote": "true"})
    with pytest.raises(ReleaseError, match=r"require_remote.*dvc remote add"):
        release(computed)
    override(computed, {"release.require_remote": "false"})
    done = release(computed)
    assert "has no DVC remote, so its data exist on this machine alone" in str(done)


def test_without_a_remote_the_cache_must_have_everything(computed: Workspace) -> None:
    dvc(computed.root, "remote", "remove", "store")
    for path in (computed.root / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file() and path.suffix != ".dir":
            path.unlink()
    with pytest.raises(ReleaseError, match="changed since the candidate was made"):
        release(computed)
    assert tags(computed) == []


def test_the_committed_configuration_holds_no_secret(computed: Workspace) -> None:
    with (computed.root / ".dvc" / "config").open("a") as config:
        config.write("['remote \"other\"']\n    url = s3://bucket\n    secret_access_key = hunter2hunter2\n")
    with pytest.raises(ReleaseError, match="secret_access_key of remote other") as raised:
        release(computed)
    assert "hunter2" not in str(raised.value)
    assert git(computed.root, "branch", "--list", "runs/*") == ""


def test_local_credentials_reach_the_fresh_clone_and_are_removed_with_it(computed: Workspace) -> None:
    dvc(computed.root, "remote", "remove", "store")
    dvc(computed.root, "remote", "add", "--local", "--default", "private", "../store")
    assert release(computed).notes == ()
    assert any(store(computed).rglob("*.dir"))
    assert not (computed.scratch / candidate.CLONE).exists()


def test_a_workspace_changed_after_its_gates_is_refused(computed: Workspace) -> None:
    override(computed, {"pretrain.epochs": "7"})
    with pytest.raises(ReleaseError, match=r"pretrain.*changed since the candidate was made"):
        release(computed)
    assert tags(computed) == []


def test_a_rejected_candidate_is_released_only_after_its_gates_have_passed(computed: Workspace) -> None:
    pretrained = identity(computed.root / "models" / "pretrained")[:12]
    for gate in ("representation", "size_budget"):
        open_registry(computed).reject(pretrained, gate, f"{gate} is worse", "run 1", {gate: 1.0})
    with pytest.raises(
        ReleaseError, match="was rejected by representation, size_budget: representation is worse; size"
    ):
        release(computed, passed=["representation"])
    assert "rejected" in str(list_versions(computed))
    assert release(computed, passed=["representation", "size_budget", "other"]).version == "v0.0.1"


def test_a_rejection_by_a_gate_that_was_renamed_ends_when_the_gate_of_the_new_name_passes(computed: Workspace) -> None:
    pretrained = identity(computed.root / "models" / "pretrained")[:12]
    open_registry(computed).reject(pretrained, "probe_beats_random_init", "no better", "run 1", {})
    with pytest.raises(ReleaseError, match="was rejected by probe_beats_random_init"):
        release(computed, passed=["representation"])
    assert release(computed, passed=["beats_baselines"]).version == "v0.0.1"
