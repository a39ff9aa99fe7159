"""What is released is signed with the key that the environment names, and a server that trusts the key takes it."""

import subprocess
from pathlib import Path

import pytest

import deploy
from deploy.errors import UntrustedError
from deploy.trust.signature import signature_of
from pipeline.environment import SIGNING_KEY_FILE
from pipeline.errors import ReleaseError
from pipeline.params import override
from pipeline.release.registry import open_registry
from pipeline.release.release import release, rollback
from pipeline.workspace import Workspace
from tests.pipeline.conftest import make_key
from tests.pipeline.release.conftest import compute
from tests.processes.programs import needs_ssh_keygen

pytestmark = [needs_ssh_keygen, pytest.mark.slow]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; ``signers`` next to it trusts it."""
    key = make_key(tmp_path / "key")
    (tmp_path / "signers").write_text(f"* {key.with_suffix('.pub').read_text()}")
    return key


def test_a_release_and_what_is_rolled_back_to_are_signed(
    released: Workspace, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, signers = released.root / "registry", key.with_name("signers")
    assert rollback(released).notes == ()
    with pytest.raises(UntrustedError, match="no such file"):
        deploy.load(registry, trust=signers)
    monkeypatch.setenv(SIGNING_KEY_FILE, str(key))
    compute(released, 3)
    assert release(released).version == "v0.0.3"
    assert deploy.load(registry, trust=signers).verify().images == 3
    assert rollback(released, "v0.0.1").version == "v0.0.1"  # released when there was no key
    assert deploy.load(registry, trust=signers).info["name"] == "encoder 1"


def test_without_the_key_a_release_after_signed_ones_warns_and_one_signed_by_hand_is_left_alone(
    computed: Workspace, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE, str(key))
    release(computed)
    monkeypatch.delenv(SIGNING_KEY_FILE)
    compute(computed, 2)
    (warning,) = release(computed).notes
    assert warning == f"warning: v0.0.2 is not signed, and v0.0.1 is; set {SIGNING_KEY_FILE} and promote v0.0.2 again"
    bundle = computed.root / "registry" / "v0.0.2"
    other = make_key(key.with_name("other"))
    subprocess.run(
        f"ssh-keygen -Y sign -f '{other}' -n simclr-bundle < '{bundle}/MANIFEST.sha256' > '{bundle}.sig'",
        shell=True,
        check=True,
        capture_output=True,
    )
    by_hand = signature_of(bundle).read_bytes()
    monkeypatch.setenv(SIGNING_KEY_FILE, str(key))
    assert release(computed).notes == ()
    assert signature_of(bundle).read_bytes() == by_hand
    signature_of(bundle).write_bytes(signature_of(bundle.with_name("v0.0.1")).read_bytes())  # of other bytes
    release(computed)
    assert deploy.load(bundle, trust=key.with_name("signers")).info["name"] == "encoder 2"
    override(computed, {"storage.keep_releases": "1"})
    compute(computed, 3)
    release(computed)
    assert sorted(path.name for path in bundle.parent.glob("v*")) == ["v0.0.2", "v0.0.2.sig", "v0.0.3", "v0.0.3.sig"]


def test_a_key_that_cannot_sign_switches_nothing_and_the_next_release_completes_it(
    released: Workspace, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNING_KEY_FILE, str(make_key(key.with_name("locked"), "a passphrase")))
    compute(released, 3)
    with pytest.raises(ReleaseError, match=r"locked: ssh-keygen cannot sign with it .*without a passphrase"):
        release(released)
    assert open_registry(released).current() == "v0.0.2"
    monkeypatch.setenv(SIGNING_KEY_FILE, str(key))
    assert release(released).version == "v0.0.3"
    assert deploy.load(released.root / "registry", trust=key.with_name("signers")).verify().images == 3
