"""What can go wrong when a bundle is loaded or an image is read.

DeployError (ValueError)
├── ArtifactError
│   ├── MissingArtifactError    the directory, or its MANIFEST.sha256, is not there
│   └── CorruptArtifactError    a file differs from what its manifest promises
├── RegistryError               a registry serves nothing, or its CURRENT names no version
├── BundleError
│   ├── BundleFormatError       bundle.json is of another format version, or a part of the bundle cannot be read
│   ├── BundleInterfaceError    the graph has other inputs, outputs or metadata than bundle.json promises
│   ├── GoldenMismatchError     this machine computes other embeddings of the golden images
│   ├── CandidateError          a bundle crashed, or took more time or memory than it may, when it was tried out
│   └── MissingHeadError        classes were asked of an encoder without a classification head
├── IndexFormatError            an index was written by another release, or its files do not fit each other
├── IndexMismatchError          vectors of another encoder or dimension than those of the index
├── ProviderError               an execution provider is not there, or onnxruntime silently took another one
├── MissingExtraError           an optional dependency is not installed; the message names the command
├── ArgumentError               an argument has a value that is not allowed
└── ImageError                  one image cannot be used; ``reason`` says why in one word
"""


class DeployError(ValueError):
    """Root of every error this package raises on purpose."""


class ArtifactError(DeployError):
    """A published directory cannot be trusted."""


class MissingArtifactError(ArtifactError):
    """The directory, or its manifest, does not exist."""


class CorruptArtifactError(ArtifactError):
    """A file of the directory is missing, unlisted, or has other bytes than when it was published."""


class RegistryError(DeployError):
    """The registry does not say which of its versions serves."""


class BundleError(DeployError):
    """The files are as they were published, but the bundle cannot be used."""


class BundleFormatError(BundleError):
    """The bundle was written by another release, or not by this project."""


class BundleInterfaceError(BundleError):
    """The ONNX graph and ``bundle.json`` contradict each other."""


class GoldenMismatchError(BundleError):
    """The embeddings of the golden images differ from those that were exported by more than the tolerance."""


class CandidateError(BundleError):
    """Trying a bundle out ended its process, or would have taken more than it may."""


class MissingHeadError(BundleError):
    """The bundle holds an encoder only."""


class IndexFormatError(DeployError):
    """The directory is no index of embeddings that this release can read."""


class IndexMismatchError(DeployError):
    """Vectors cannot be compared: another encoder made them, or they have another dimension."""


class ProviderError(DeployError):
    """The session does not run where it was asked to run."""


class MissingExtraError(DeployError):
    """What was asked needs an optional dependency."""


class ArgumentError(DeployError):
    """An argument has a value that is not allowed."""


class ImageError(DeployError):
    """One image cannot be used.

    Attributes:
        reason: one of ``empty_file``, ``not_an_image``, ``unsupported_format``, ``truncated``, ``corrupt``, ``bomb``,
            ``metadata_bomb``, ``unsupported_depth``, ``fully_transparent``, ``unsupported_input``, ``io_error``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives pickling between processes
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])
