"""One detached OpenSSH signature of the manifest, as the docstring of ``deploy.bundle`` shows, covers every file."""

import re
import subprocess
from pathlib import Path

import pytest

import deploy.bundle
from deploy.artifact import MANIFEST, verify
from deploy.errors import CorruptArtifactError
from tests.programs import needs_ssh_keygen

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
