"""Check who signed the manifest of an artifact: with it, every file is as that person published it.

The signature is the file ``DIRECTORY.sig`` next to the directory. Trusted keys are in a file of OpenSSH's format, one
line each, "WHO KEY" (ALLOWED SIGNERS in the manual of ssh-keygen, which makes and verifies the signatures):

    ssh-keygen -Y sign -f KEY -n simclr-bundle < BUNDLE/MANIFEST.sha256 > BUNDLE.sig
    echo "* $(cat KEY.pub)" > SIGNERS
"""

import os
import shutil
import subprocess
from pathlib import Path

from deploy.errors import ArgumentError, MissingExtraError, UntrustedError

NAMESPACE = "simclr-bundle"
SUFFIX = ".sig"
SECONDS = 60.0
TRUST_HELP = "allowed signers, as of ssh-keygen: refuse a bundle that none of them signed"


def check_signature(directory: Path, manifest: bytes, signers: Path) -> str:
    """Return who signed ``manifest``, the bytes of the manifest of ``directory``.

    Raises:
        UntrustedError: there is no signature, it is of other bytes, or ``signers`` does not list its key.
        ArgumentError: ``signers`` does not exist.
        MissingExtraError: ssh-keygen is not installed.
    """
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100  the name as given, also of a link
    signature = absolute.with_name(absolute.name + SUFFIX)
    if not signers.is_file():
        raise ArgumentError(f"trust={signers}: no such file; give a file of trusted keys, one line each: WHO KEY")
    if not signature.is_file():
        raise UntrustedError(f"{signature}: no such file; {directory} must be signed: {_how(directory, signature)}")
    files = ["-f", str(signers.absolute()), "-s", str(signature)]
    said, principal = _ssh_keygen("find-principals", *files)
    if principal:
        # A line may name several, separated by commas; one of them is enough to verify.
        who = next((name for name in principal.split(",") if not name.startswith("!")), principal)
        said, verified = _ssh_keygen("verify", *files, "-n", NAMESPACE, "-I", who, message=manifest)
        if verified:
            return who
    raise UntrustedError(
        f"{signature}: not a signature of {directory} by a key in {signers} ({said}); do not use it, or have it "
        f"signed: {_how(directory, signature)}"
    )


def _ssh_keygen(action: str, *arguments: str, message: bytes = b"") -> tuple[str, str]:
    """Return what ssh-keygen said, and the first line of its answer; that is empty if it refused."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MissingExtraError("trust needs ssh-keygen of OpenSSH; install the system's package openssh-client")
    try:
        done = subprocess.run(
            [program, "-Y", action, *arguments], input=message, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer of ssh-keygen within {SECONDS:g} s", ""
    output, errors = (text.decode("utf-8", "replace").strip() for text in (done.stdout, done.stderr))
    said = " ".join((errors or output).split())
    return said, output.partition("\n")[0] if done.returncode == 0 else ""


def _how(directory: Path, signature: Path) -> str:
    return f"ssh-keygen -Y sign -f KEY -n {NAMESPACE} < {directory}/MANIFEST.sha256 > {signature}"
