"""One detached OpenSSH signature of the manifest, as the docstring of ``deploy.bundle`` shows, covers every file."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import deploy.bundle
from deploy import candidate
from deploy.artifact import MANIFEST, verify
from deploy.bundle import Bundle
from deploy.cli.main import main
from deploy.errors import ArgumentError, CorruptArtifactError, MissingExtraError, UntrustedError
from deploy.triton import export_triton
from tests.deploy.conftest import make_bundle
from tests.processes.programs import needs_ssh_keygen

Publish = Callable[[Bundle], Path]

pytestmark = needs_ssh_keygen


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def commands(bundle: Path) -> list[str]:
    """The documented commands, with a new key."""
    folder = bundle.parent
    assert shell("ssh-keygen -q -t ed25519 -N '' -C release -f key", folder).returncode == 0
    (folder / "signers").write_text(f"release@example.org {(folder / 'key.pub').read_text()}")
    names = {"BUNDLE": bundle.name, "KEY": "key", "SIGNERS": "signers", "WHO": "release@example.org"}
    documented = re.findall(r"^    (ssh-keygen .*)$", deploy.bundle.__doc__ or "", re.MULTILINE)
    return [re.sub(r"\b(BUNDLE|KEY|SIGNERS|WHO)\b", lambda found: names[found[0]], line) for line in documented]


def test_a_signed_bundle_verifies_and_a_changed_one_does_not(bundle: Path, commands: list[str]) -> None:
    sign, check = commands
    signed = shell(sign, bundle.parent)
    assert signed.returncode == 0, signed.stderr
    good = shell(check, bundle.parent)
    assert good.returncode == 0, good.stderr
    assert "release@example.org" in good.stdout
    verify(bundle)  # the signature is next to the bundle, so the bundle is unchanged

    manifest = (bundle / MANIFEST).read_text()
    (bundle / "labels.json").write_text("[]")
    with pytest.raises(CorruptArtifactError):
        verify(bundle)
    (bundle / MANIFEST).write_text(manifest.replace(manifest[:8], "0" * 8))
    assert shell(check, bundle.parent).returncode != 0


def test_the_signature_of_another_key_is_refused(bundle: Path, commands: list[str]) -> None:
    sign, check = commands
    shell("ssh-keygen -q -t ed25519 -N '' -C other -f other", bundle.parent)
    assert shell(sign.replace("-f key", "-f other"), bundle.parent).returncode == 0
    assert shell(check, bundle.parent).returncode != 0


@pytest.fixture
def signed(bundle: Path, commands: list[str]) -> Path:
    """A signed bundle; the file of trusted keys is next to it."""
    assert shell(commands[0], bundle.parent).returncode == 0
    return bundle


@pytest.mark.seconds
def test_load_accepts_what_a_trusted_key_signed(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signers = signed.parent / "signers"
    assert deploy.load(signed, trust=signers).verify().images == 3
    assert main(["verify", str(signed), "--trust", str(signers)]) == 0
    assert candidate.check(signed, trust=signers).fidelity.images == 3
    monkeypatch.chdir(signed)
    assert deploy.load(".", trust="../signers").verify().images == 3
    key = (signed.parent / "key.pub").read_text()
    for line in (f"* {key}", f"one@example.org,two@example.org {key}", f'* namespaces="simclr-bundle" {key}'):
        signers.write_text(line)
        assert deploy.load(signed, trust=signers)


def test_a_registry_holds_its_signatures(signed: Path) -> None:
    registry = signed.parent / "registry"
    shutil.copytree(signed, registry / "v0.0.1")
    (registry / "CURRENT").write_text("v0.0.1\n")
    with pytest.raises(UntrustedError, match=r"v0\.0\.1\.sig: no such file; .* must be signed: ssh-keygen -Y sign"):
        deploy.load(registry, trust=signed.parent / "signers")
    shutil.copy(signed.parent / "bundle.sig", registry / "v0.0.1.sig")
    assert deploy.load(registry, trust=signed.parent / "signers").info["version"] == "v0.0.1"
    assert deploy.load(registry, trust=None).info["version"] == "v0.0.1"


@pytest.mark.seconds
def test_load_refuses_every_other_bundle(signed: Path, commands: list[str], publish_bundle: Publish) -> None:
    folder, signers = signed.parent, signed.parent / "signers"
    listed, signature = signers.read_text(), (folder / "bundle.sig").read_bytes()
    shell("ssh-keygen -q -t ed25519 -N '' -C other -f other", folder)
    other = (folder / "other.pub").read_text()
    for line in (f"release@example.org {other}", "", f'* namespaces="file" {listed.split(" ", 1)[1]}', "nonsense"):
        signers.write_text(line)
        with pytest.raises(UntrustedError, match="not a signature of"):
            deploy.load(signed, trust=signers)
    signers.write_text(listed)
    for content in (b"", b"x" * 100_001, b"nonsense", signature[: len(signature) // 2], signature.replace(b"A", b"B")):
        (folder / "bundle.sig").write_bytes(content)
        with pytest.raises(UntrustedError):
            deploy.load(signed, trust=signers)
    shell(commands[0].replace("simclr-bundle", "file"), folder)  # of another purpose
    with pytest.raises(UntrustedError):
        deploy.load(signed, trust=signers)
    (folder / "bundle.sig").write_bytes(signature)
    assert publish_bundle(make_bundle(labels=False)) == signed  # another bundle under the same name
    with pytest.raises(UntrustedError, match="not a signature of"):
        deploy.load(signed, trust=signers)
    assert main(["verify", str(signed), "--trust", str(signers)]) == 1
    assert main(["info", str(signed), "--trust", str(signers)]) == 2
    with pytest.raises(UntrustedError):
        candidate.check(signed, trust=signers)
    with pytest.raises(UntrustedError):
        export_triton(signed, folder / "triton", trust=signers)


def test_without_keys_or_ssh_keygen_nothing_is_trusted(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="no such file; give a file of trusted keys"):
        deploy.load(signed, trust=signed.parent / "missing")
    with pytest.raises(ArgumentError, match="not a file of at most 1,000,000 bytes; give a file of trusted keys"):
        deploy.load(signed, trust=signed)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingExtraError, match="openssh-client"):
        deploy.load(signed, trust=signed.parent / "signers")
