"""What can go wrong between a folder of images and a released encoder.

PipelineError (ValueError)
├── WorkspaceError      no workspace here, or a folder that cannot become one
├── ParamsError         params.yaml has faults; all of them are listed
├── IngestError         nothing to read, or labels.csv cannot be understood
│   └── UnfinishedError  an interrupted training would begin again with the new images
├── ValidationError     the validate stage cannot run
├── OverridesError      overrides.csv has faults, or a decision is not possible
├── GateError           the data contract was broken: see reports/validation.html
├── BusyError           another run holds the workspace
├── ReleaseError        an encoder cannot be released, promoted or rolled back; nothing half-done is served
├── AlertError          an alert could not be delivered
├── ServiceError        the UI or a service around it cannot be started
├── DvcError            dvc itself failed
└── StageFailedError    a stage of dvc.yaml failed
"""

from deploy.errors import DeployError
from simclr_core.errors import SimclrError


class PipelineError(ValueError):
    """Root of every error this package raises on purpose; the message says what to do."""


class WorkspaceError(PipelineError):
    """There is no workspace, or the folder cannot become one."""


class ParamsError(PipelineError):
    """``params.yaml``, or an override of it, has faults."""


class IngestError(PipelineError):
    """A source holds nothing to read, or its labels cannot be understood."""


class UnfinishedError(IngestError):
    """A training was interrupted, and with a new batch it would begin again."""


class ValidationError(PipelineError):
    """The validate stage cannot run at all."""


class OverridesError(PipelineError):
    """``overrides.csv`` has faults, or what is asked for cannot be decided by a person."""


class GateError(PipelineError):
    """A critical expectation failed, so nothing may be trained on this data."""


class BusyError(PipelineError):
    """Another process is changing the workspace."""


class ReleaseError(PipelineError):
    """An encoder cannot be released, promoted or rolled back."""


class AlertError(PipelineError):
    """An alert could not be delivered, or its address is not one."""


class ServiceError(PipelineError):
    """The UI, or a service that it needs, cannot be started."""


class DvcError(PipelineError):
    """A ``dvc`` command failed."""


class StageFailedError(PipelineError):
    """A stage's command exited with an error, or a gate after it did not pass."""


FORESEEN = (PipelineError, SimclrError, DeployError)
"""What a person gets as one line that says what to do; any other exception is a fault of ours, with its traceback."""
