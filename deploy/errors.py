"""What can go wrong when a bundle is loaded, an image is read, or an index is searched.

DeployError (ValueError)
├── ArtifactError
│   ├── MissingArtifactError    the directory or its MANIFEST.sha256 does not exist
│   ├── CorruptArtifactError    a file differs from its entry in the manifest
│   └── UntrustedError          none of the trusted keys signed the manifest
├── LockError                   the file system has no locks
├── RegistryError               a registry serves no version, or its CURRENT does not name one
├── BundleError
│   ├── BundleFormatError       bundle.json has another format version, or a part of the bundle cannot be read
│   ├── BundleInterfaceError    the graph has other inputs, outputs or metadata than bundle.json declares
│   ├── GoldenMismatchError     this machine computes other embeddings of the golden images
│   ├── ModelMemoryError        the model needs more memory than this process can get
│   ├── CandidateError          the trial process of a bundle crashed or exceeded its time or memory limit
│   └── MissingHeadError        the encoder has no classification head to classify with
├── IndexFormatError            another release wrote the index, or its files do not match each other
├── IndexMismatchError          the vectors have another encoder or dimension than the index
├── ProviderError               an execution provider is not installed, or onnxruntime silently used another one
├── ClusterError                Ray is not installed, no cluster answers, or one of its tasks failed
├── MissingExtraError           an optional dependency is not installed; the message gives the command
├── ArgumentError               an argument has a value that is not allowed
│   └── ZeroVectorError         a vector is zero, so it has no direction and no cosine similarity to any other
└── ImageError                  one image cannot be used; ``reason`` says why in one word

Examples:
    >>> import deploy
    >>> try:
    ...     deploy.load("no/bundle")
    ... except deploy.DeployError as error:
    ...     print(f"{type(error).__name__}: {error}")
    MissingArtifactError: no/bundle: no such directory; give the directory that holds MANIFEST.sha256
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import cast


class DeployError(ValueError):
    """Root of every error that this package raises on purpose.

    The message says what was given, what is allowed and what to do. Catch a subclass to react to one cause.
    """


class ArtifactError(DeployError):
    """A published directory cannot be trusted."""


class MissingArtifactError(ArtifactError):
    """The directory or its manifest does not exist: check the path, or publish the directory again."""


class CorruptArtifactError(ArtifactError):
    """A file of the directory is missing, is not listed in the manifest, or has other bytes than when it was published.

    Restore the directory from its source.
    """


class UntrustedError(ArtifactError):
    """The manifest has no signature by a trusted key: do not use the directory, or have its publisher sign it."""


class LockError(DeployError):
    """The file system has no locks: mount it with locks, or use another one."""


class RegistryError(DeployError):
    """The registry does not say which of its versions to serve: run ``simclr release promote VERSION``."""


class BundleError(DeployError):
    """The files are as they were published, but the bundle cannot be used."""


class BundleFormatError(BundleError):
    """The bundle was written by another release, or not by this project: export it again."""


class BundleInterfaceError(BundleError):
    """The ONNX graph and ``bundle.json`` contradict each other: export the bundle again."""


class GoldenMismatchError(BundleError):
    """The embeddings of the golden images differ from the exported ones by more than the tolerance.

    Install the versions of onnxruntime, numpy and Pillow that ``bundle.json`` names.
    """


class ModelMemoryError(BundleError):
    """onnxruntime could not get the memory that the model needs: try a machine with more."""


class CandidateError(BundleError):
    """The trial process crashed or exceeded its time or memory limit: try again later."""


class MissingHeadError(BundleError):
    """The bundle holds an encoder without a classifier: label some images, train, and export again."""


class IndexFormatError(DeployError):
    """The directory is not an index of embeddings that this release can read: build the index again."""


class IndexMismatchError(DeployError):
    """The vectors cannot be compared: another encoder made them, or they have another dimension."""


class ProviderError(DeployError):
    """The session does not run on the execution providers that were requested."""


class ClusterError(DeployError):
    """Work was to run on a Ray cluster, and cannot: start the cluster, or run on this machine."""


class MissingExtraError(DeployError):
    """The request needs an optional dependency that is not installed; the message gives the command to install it."""


class ArgumentError(DeployError):
    """An argument has a value that is not allowed; the message gives the value and what is allowed."""


class ZeroVectorError(ArgumentError):
    """A vector is zero, so it has no direction and no cosine similarity to any other: leave its image out."""


class ImageError(DeployError):
    """One image cannot be used.

    Attributes:
        reason: one of ``empty_file``, ``not_an_image``, ``unsupported_format``, ``truncated``, ``corrupt``, ``bomb``,
            ``metadata_bomb``, ``unsupported_depth``, ``unsupported_layout``, ``wrong_channels``,
            ``fully_transparent``, ``unsupported_input``, ``io_error``; in a search or an index also ``no_direction``.

    Examples:
        >>> import deploy
        >>> encoder = deploy.load("models/bundle")
        >>> try:
        ...     encoder.embed(b"<html>")
        ... except deploy.ImageError as error:
        ...     print(error.reason)
        not_an_image
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling between processes
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


def require_positive(most: int = 2**31 - 1, /, **numbers: object) -> None:
    """Raise ArgumentError if one of the numbers is not an integer of 1 to ``most``."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or not 1 <= int(number) <= most:
            raise ArgumentError(f"{name}={number!r:.80}, and the least is 1; give an integer of 1 to {most:,}")


def require_truth(**flags: object) -> None:
    """Raise ArgumentError if one of the flags is not True or False: "no" and other texts would be true."""
    for name, flag in flags.items():
        if type(flag).__name__ not in ("bool", "bool_"):
            raise ArgumentError(f"{name}={flag!r:.80}; give True or False")


def require_choice(choices: Sequence[str], **values: object) -> None:
    """Raise ArgumentError if one of the values is not among the choices."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            raise ArgumentError(f"{name}={value!r:.80}; choose {', '.join(choices[:-1])} or {choices[-1]}")


def as_path(**path: object) -> Path:
    """Return the one value as a path; raise ArgumentError if it is something else."""
    require_path(**path)
    (value,) = path.values()
    return Path(cast("str", value))


def as_paths(**paths: object) -> list[Path]:
    """Return the one value, a path or several, as paths; raise ArgumentError for anything else."""
    ((name, given),) = paths.items()
    if isinstance(given, str | os.PathLike):
        given = [given]
    if isinstance(given, bytes | Mapping) or not isinstance(given, Iterable):
        raise ArgumentError(f"{name}={given!r:.80}; give a path, or a list of paths")
    return [as_path(**{name: path}) for path in given]


def require_path(**paths: object) -> None:
    """Raise ArgumentError if one of the values is not a path."""
    for name, path in paths.items():
        plain = os.fspath(path) if isinstance(path, str | os.PathLike) else None
        if not isinstance(plain, str) or "\0" in plain:
            raise ArgumentError(f"{name}={path!r:.80}; give a path, as a string or a pathlib.Path")
