"""Who signed the manifest of an artifact: with it, every file is as that person published it.

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
MOST_SIGNERS_BYTES, MOST_SIGNATURE_BYTES = 1_000_000, 100_000
"""A line of the former has about 100 bytes, a signature by a long RSA key some thousands."""

TRUST_HELP = "allowed signers, as of ssh-keygen: refuse a bundle that none of them signed"


def check_signature(directory: Path, manifest: bytes, signers: Path) -> str:
    """Return who signed ``manifest``, the bytes of the manifest of ``directory``.

    Raises:
        UntrustedError: there is no signature, it is of other bytes, or ``signers`` does not list its key.
        ArgumentError: ``signers`` does not exist.
        MissingExtraError: ssh-keygen is not installed.
    """
    signature = signature_of(directory)
    if not _is_file(signers, MOST_SIGNERS_BYTES):
        fault = f"not a file of at most {MOST_SIGNERS_BYTES:,} bytes" if signers.exists() else "no such file"
        raise ArgumentError(f"trust={signers}: {fault}; give a file of trusted keys, one line each: WHO KEY")
    if not _is_file(signature, MOST_SIGNATURE_BYTES):
        fault = f"not a file of at most {MOST_SIGNATURE_BYTES:,} bytes" if signature.exists() else "no such file"
        raise UntrustedError(f"{signature}: {fault}; {directory} must be signed: {_how(directory, signature)}")
    files = ["-f", str(signers.absolute()), "-s", str(signature)]
    said, found = _ssh_keygen("find-principals", *files)
    if found:
        # A line may name several, separated by commas; one of them is enough to verify.
        principal = found.partition("\n")[0]
        who = next((name for name in principal.split(",") if not name.startswith("!")), principal)
        said, verified = _ssh_keygen("verify", *files, "-n", NAMESPACE, "-I", who, message=manifest)
        if verified:
            return who
    raise UntrustedError(
        f"{signature}: not a signature of {directory} by a key in {signers} ({said}); do not use it, or have it "
        f"signed: {_how(directory, signature)}"
    )


def signature_of(directory: Path) -> Path:
    """Where the signature of an artifact is: next to it."""
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100  the name as given, also of a link
    return absolute.with_name(absolute.name + SUFFIX)


def sign(manifest: bytes, key: Path) -> str:
    """Return a signature of ``manifest`` by a private key, or by the one of an agent whose public half ``key`` is.

    Raises:
        ArgumentError: ``key`` cannot sign.
        MissingExtraError: ssh-keygen is not installed.
    """
    if not os.path.isfile(key):  # noqa: PTH113  a key pasted in its place is too long for Path, which would repeat it
        raise ArgumentError("the key is not a file; give the path of one that `ssh-keygen -t ed25519` made")
    said, signature = _ssh_keygen("sign", "-f", str(key), "-n", NAMESPACE, message=manifest)
    if not signature:
        raise ArgumentError(f"{key}: ssh-keygen cannot sign with it ({said}); give a key without a passphrase")
    return f"{signature}\n"


def is_signed(directory: Path, manifest: bytes) -> bool:
    """Whether the signature of ``directory`` is one of ``manifest``, by any key."""
    signature = signature_of(directory)
    arguments = ["-n", NAMESPACE, "-s", str(signature)]
    return _is_file(signature, MOST_SIGNATURE_BYTES) and bool(
        _ssh_keygen("check-novalidate", *arguments, message=manifest)[1]
    )


def _is_file(path: Path, most: int) -> bool:
    """Whether it is a regular file that small: ssh-keygen reads a larger one for minutes."""
    return path.is_file() and path.stat().st_size <= most


def _ssh_keygen(action: str, *arguments: str, message: bytes = b"") -> tuple[str, str]:
    """Return what ssh-keygen said on one line, and its answer, which is empty if it refused. It never asks."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise MissingExtraError("signatures need ssh-keygen of OpenSSH; install the system's package openssh-client")
    try:
        done = subprocess.run(
            [program, "-Y", action, *arguments],
            input=message,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            start_new_session=True,  # without a terminal, where it would ask for a passphrase
            env=os.environ | {"SSH_ASKPASS_REQUIRE": "never"},
        )
    except subprocess.TimeoutExpired:
        return f"no answer of ssh-keygen within {SECONDS:g} s", ""
    output, errors = (text.decode("utf-8", "replace").strip() for text in (done.stdout, done.stderr))
    said = " ".join((errors or output).split())
    return said, output if done.returncode == 0 else ""


def _how(directory: Path, signature: Path) -> str:
    return f"ssh-keygen -Y sign -f KEY -n {NAMESPACE} < {directory}/MANIFEST.sha256 > {signature}"
