"""The pipeline's blocks of params.yaml, typed and frozen; those of training are in ``simclr_core.config``.

A field's description is the only one there is: the first sentence is the comment in params.yaml, all of it the help in
the launchpad and in docs/reference. See ``pipeline.knobs``.
"""

from posixpath import normpath
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from simclr_core.params import Block
from simclr_core.values import Cron, Distinct, TimeZone

OCCUPIED = {
    *(".dvc", ".git", ".simclr", "data", "history", "inbox", "models", "reports", "storage", "weights"),
    *("schedules", "logs", ".telemetry", ".logs_queue", ".nux", "dvc_plots"),
    *("dvc.yaml", "dvc.lock", "params.yaml", "overrides.csv", "dagster.yaml", "dg.toml", "definitions.py"),
    *("workspace.yaml", ".dvcignore", ".gitignore"),
}
"""Folders and files of a workspace that hold something else than releases."""


SEPARATE = "a separate folder, such as registry, not the workspace, one around it, or one in use or in such a one"


class IngestConfig(Block):
    """How new files become raw batches."""

    settle_seconds: float = Field(
        default=2.0,
        ge=0,
        description="seconds a file must stay unchanged before it is ingested. One that changed more recently is still "
        "being written: a command waits for it, the sensor leaves it for later",
    )
    shard_megabytes: int = Field(
        default=256, ge=1, le=4096, description="size at which a new tar file of raw images begins, in MB"
    )
    include: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="patterns of the only files to take, as in .gitignore; []: all. Such as '*.jpg' or 'camera 7/'; "
        "capitals do not matter",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="patterns of files to leave out, as in .gitignore; []: none. Such as 'masks/' or '*_thumb.*', and "
        "'!' before an exception. What earlier batches hold stays",
    )
    classes: Annotated[tuple[str, ...], Distinct] | None = Field(
        default=None,
        strict=False,
        min_length=1,
        description="the only labels allowed, so that a typo is an error; null: every label is a class",
    )
    class_folders: bool = Field(
        default=False,
        description="whether the first folder of a training image is its class. Folders named as those of an inbox "
        "(unlabeled, labeled, test, train, val) keep their meaning",
    )
    hold_out: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="share of the labeled training images that is held out for testing instead. Which ones, their "
        "content decides, so that it stays the same from run to run",
    )

    @field_validator("include", "exclude")
    @classmethod
    def _have_a_meaning(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if patterns:  # most have none, and every command reads this block
            from pathspec import GitIgnoreSpec

            for pattern in patterns:
                try:
                    says_something = any(
                        one.include is not None for one in GitIgnoreSpec.from_lines([pattern]).patterns
                    )
                except ValueError:
                    says_something = False
                if not says_something or {".", ".."} & set(
                    pattern.removeprefix("!").split("/")
                ):  # no path of a source has these
                    raise ValueError(f"patterns as in .gitignore, which {pattern!r} is not")
        return patterns


class DriftConfig(Block):
    """When a new batch counts as different from the earlier ones. See ``pipeline.validation.drift``."""

    enabled: bool = Field(default=True, description="compare the newest batch with the earlier ones")
    min_images: int = Field(
        default=50,
        ge=10,
        description="accepted training images a batch needs to be judged. Of earlier ones, twice that number is needed",
    )
    distance: float = Field(
        default=0.1,
        gt=0,
        description="smallest shift that counts as drift, in standard deviations of the earlier images. For file "
        "format and pixel layout, a Jensen-Shannon distance",
    )
    auroc: float = Field(
        default=0.6,
        gt=0.5,
        lt=1,
        description="smallest AUROC that counts as drift, of a classifier of new against earlier images. 0.5 is chance",
    )
    accepted: tuple[str, ...] = Field(
        default=(), strict=False, description="batch names to accept although they look like a data bug"
    )


class NearDuplicatesConfig(Block):
    """Which images are near duplicates, and what follows. See ``pipeline.validation.verdict.near_duplicates``."""

    enabled: bool = Field(default=True, description="look for images that are nearly the same")
    distance: int = Field(
        default=3, ge=0, le=3, description="largest distance between the perceptual hashes of two copies, in bits of 64"
    )
    within_training: Literal["keep", "quarantine"] = Field(
        default="keep",
        description="what to do with copies within the training set. With quarantine, one of each group is kept. A "
        "training image that is nearly a test image is always quarantined",
    )
    max_label_conflicts: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of labeled near copies that may contradict each other; above it, validation warns",
    )
    placeholder_copies: int = Field(
        default=20,
        ge=2,
        description="a flat picture that this many files show counts as a placeholder. Such as one that says "
        '"image not available"',
    )


class ValidateConfig(Block):
    """What an image must be to be trained on, and when validation fails."""

    max_megabytes: float = Field(default=50.0, gt=0, description="largest file, in MB")
    max_megapixels: float = Field(
        default=80.0,
        gt=0,
        le=178,  # where Pillow stops
        description="largest image, in megapixels. The header decides: an image above this is never decoded",
    )
    min_side: int = Field(default=8, ge=1, description="smallest shorter side, in pixels")
    max_aspect: float = Field(default=10.0, ge=1, description="largest ratio of the longer side to the shorter side")
    min_standard_deviation: float = Field(
        default=2.0,
        ge=0,
        description="standard deviation of the most varied channel, 0 to 255; below this an image is blank",
    )
    animated: Literal["quarantine", "first_frame"] = Field(
        default="quarantine",
        description="what to do with animated images and multi-page TIFFs. With first_frame, their first frame is used",
    )
    suspect_streams: Literal["quarantine", "keep"] = Field(
        default="quarantine", description="what to do with JPEGs that decode from a damaged stream"
    )
    near_duplicates: NearDuplicatesConfig = NearDuplicatesConfig()
    engine: Literal["local", "ray"] = Field(
        default="local",
        description="moved to .simclr/compute.yaml; ray still means RAY_ADDRESS",
    )
    timeout_seconds: float = Field(default=20.0, gt=0, description="time limit for probing one file, in seconds")
    memory_megabytes: int = Field(
        default=2048, ge=512, description="memory limit of one probing worker, in MB of address space"
    )
    min_images: int = Field(default=64, ge=0, description="accepted training images needed to continue")
    max_quarantine_rate: float = Field(
        default=0.05, ge=0, le=1, description="largest share of files that may be quarantined"
    )
    drift: DriftConfig = DriftConfig()


class PrepareConfig(Block):
    """How accepted images are stored for training."""

    short_side: int | None = Field(
        default=None,
        ge=8,
        description="shorter side in pixels to which larger images are reduced; null: what pretraining needs. "
        "That is pretrain.resize, or else pretrain.image_size. Smaller images are kept as they are",
    )
    max_enlarged: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="largest share of training images that may be smaller than pretrain.image_size. With more, the "
        "network would mostly see enlarged pixels, and nothing is prepared",
    )
    background: Literal["white", "black", "gray", "checker", "mean"] = Field(
        default="white",
        description="what transparent parts of an image are put on. checker is a pattern of two grays, mean the mean "
        "color of what is visible of the image. Training, serving and validation see the same",
    )
    letterbox: bool = Field(
        default=False,
        description="show the whole image in a square, on the background, instead of the square in its center. "
        "Crops of a long image may then show background alone",
    )
    channels: int | None = Field(
        default=None,
        ge=1,
        le=16,
        description="channels of the images, each of up to 16 bits; null: images become 8-bit RGB. With a number, "
        "arrays (.npy), TIFFs, and gray, RGB and RGBA images with this number of channels keep their depth, and others "
        "are quarantined",
    )
    jpeg_quality: int = Field(default=95, ge=50, le=100, description="JPEG quality of the prepared images")
    shard_megabytes: int = Field(
        default=256, ge=1, le=4096, description="size at which a new tar file of prepared images begins, in MB"
    )

    @model_validator(mode="after")
    def _no_letterbox_of_channels(self) -> Self:
        if self.channels is not None and self.letterbox:
            raise ValueError("letterbox is true, and images with channels have no background; set letterbox to false")
        return self


class EmbeddingDriftConfig(Block):
    """When a new batch looks different to the released encoder. See ``pipeline.embedding_drift``."""

    enabled: bool = Field(
        default=True, description="compare the newest batch with the earlier ones by their embeddings"
    )
    # 3,000 images of 28 pixels cost a small encoder a second.
    reference_images: int = Field(
        default=2000,
        ge=20,
        le=5000,
        description="earlier images to compare with; 3,000 of 224 pixels take a ResNet-50 minutes on a CPU. Memory "
        "grows with their square",
    )
    batch_images: int = Field(default=1000, ge=10, le=5000, description="images of the newest batch to compare")
    min_images: int = Field(
        default=50, ge=10, description="images a batch needs to be judged. Of earlier ones, twice that number is needed"
    )
    auroc: float = Field(
        default=0.6,
        gt=0.5,
        lt=1,
        description="smallest AUROC that counts as drift, of a classifier of new against earlier embeddings. "
        "0.5 is chance",
    )
    novel_share: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="share of new images unlike any earlier one that counts as drift; 0.01 is chance",
    )


class RetrainingConfig(Block):
    """When new images start a run. See ``pipeline.retraining.decide``."""

    sources: tuple[str, ...] = Field(
        default=("inbox",),
        strict=False,
        min_length=1,
        description="folders, globs, or fsspec URLs to ingest from. A relative one is in the workspace",
    )
    emptied_sources: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="those of the sources that you empty on purpose, such as after each run; []: none. Of the others, "
        "the watchdog reports that files are gone until they are back or `simclr confirm-source` says that it is right",
    )
    schedule: Cron = Field(
        default="0 3 * * 0",  # every Sunday at three
        description="cron expression; the schedule and the sensor are off until switched on in the UI",
    )
    timezone: TimeZone = Field(default="UTC", description="time zone of the schedule, such as Europe/Berlin")
    min_new_images: int = Field(default=1000, ge=1, description="new images needed before the sensor starts a run")
    min_new_images_after_drift: int = Field(
        default=200, ge=1, description="new images needed when the last report found drift"
    )
    quiet_minutes: float = Field(
        default=10.0, ge=0, description="minutes without a new file before the sensor starts a run"
    )
    full_listing_minutes: float = Field(
        default=60.0,
        ge=0,
        description="minutes after which the sensor looks at every file again. In between it looks into the folders "
        "that have changed, where a file overwritten in place does not show; commands look at every file. 0: always",
    )
    max_age_days: float = Field(
        default=30.0, gt=0, description="days after its release at which an encoder is shown as overdue"
    )

    @model_validator(mode="after")
    def _empties_sources(self) -> Self:
        if unknown := set(self.emptied_sources) - set(self.sources):
            raise ValueError(f"emptied_sources among sources, and {min(unknown)!r} is not there; name it as sources do")
        return self


class GatesConfig(Block):
    """What a candidate must show before it is released. Gains and losses are percentage points of top-1 accuracy."""

    confidence: float = Field(
        default=0.95, ge=0.5, lt=1, description="confidence of the one-sided tests on the same test images"
    )
    power: float = Field(
        default=0.8,
        ge=0.5,
        lt=1,
        description="probability with which a test has to find a difference. An undecided gate says which difference "
        "the test images would show that often, and how many images would settle it",
    )
    min_served_cosine: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="smallest cosine between the embeddings of a file and of what training saw of it. "
        "Of up to 32 files; below it, serving does not see what was trained on",
    )
    abstain: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="what follows if the test images are too few to decide. That is whether the encoder is better than "
        "its baselines, and no worse than the champion; with warn, it is released, and the release says so",
    )
    approval: Literal["none", "borderline", "required"] = Field(
        default="none",
        description="when a person has to approve a release. With borderline, where a gate was undecided, which then "
        "stops nothing, where nothing could judge the candidate, or where the newest batch has drifted; see "
        "`simclr release approve`",
    )
    approval_days: int = Field(default=14, ge=1, le=365, description="days for which a candidate waits for a person")
    baselines: Annotated[tuple[Literal["random_init", "pixels", "majority", "start"], ...], Distinct] = Field(
        default=("random_init", "pixels", "majority", "start"),
        strict=False,
        description="what has to be beaten. These are random weights, raw pixels, the answer that is "
        "most frequent, and the weights that pretraining began with, if they are measured",
    )
    min_gain: float = Field(
        default=2.0,
        gt=0,
        le=100,
        description="smallest gain over a baseline that matters, in percentage points. An encoder that is shown to "
        "gain less, and not shown to gain anything, is refused",
    )
    release_if: Literal["not_worse", "better"] = Field(
        default="not_worse",
        description="required outcome of the comparison with the champion. With better, kNN or the linear probe must "
        "have gained beyond chance",
    )
    max_loss: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="percentage points of kNN or linear probe accuracy that a candidate may lose. The paired test has "
        "to rule a larger loss out; on few test images it cannot",
    )
    max_low_label_loss: float = Field(
        default=3.0,
        ge=0,
        le=100,
        description="largest loss of fine-tuned accuracy, in percentage points. A larger one to the champion is "
        "refused when it is shown beyond chance, as is any to training from scratch; one that is neither shown nor "
        "ruled out is a warning",
    )
    max_latency_milliseconds: float | None = Field(
        default=None, gt=0, description="largest median time for one image, in milliseconds; null: no limit"
    )
    max_latency_ratio: float = Field(
        default=1.5, gt=0, description="largest time for one image as a multiple of the champion's, measured in turns"
    )
    max_megabytes: float | None = Field(default=None, gt=0, description="largest ONNX file, in MB; null: no limit")
    max_size_ratio: float = Field(default=1.5, gt=0, description="largest ONNX file as a multiple of the champion's")
    old_index: Literal["report", "require"] = Field(
        default="report",
        description="whether the champion's index must answer the candidate's queries. With report, the result stops "
        "nothing",
    )
    max_old_index_loss: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="largest loss of kNN accuracy in the champion's index, in percentage points",
    )

    @property
    def undecided_stops(self) -> bool:
        """Whether a gate that cannot decide stops the release: not where a person is asked instead."""
        return self.abstain == "refuse" and self.approval == "none"


class ReleaseConfig(Block):
    """Where released encoders go, and in whose name."""

    registry: str = Field(
        default="registry", description="folder that servers read; a relative one is in the workspace"
    )

    @field_validator("registry")
    @classmethod
    def _separate(cls, value: str) -> str:
        if value.startswith("~"):
            raise ValueError("a folder without ~ before it, such as /srv/registry")
        if not set(value) - {".", "/", " "} or normpath(value).split("/")[0] in OCCUPIED:
            raise ValueError(SEPARATE)
        return value

    require_remote: bool = Field(default=False, description="never release data that only this DVC cache holds")
    author: str = Field(default="simclr-bot", description="author of the commits and tags of a release")
    email: str = Field(default="simclr-bot@localhost", description="e-mail address of that author")


class StorageConfig(Block):
    """How much disk a workspace may take."""

    min_free_gigabytes: float = Field(default=2.0, ge=0, description="free disk needed to start a run, in GB")
    max_cache_gigabytes: float | None = Field(
        default=None,
        gt=0,
        description="DVC cache above which files that no release needs are removed, in GB; null: no limit",
    )
    keep_releases: int = Field(default=5, ge=1, description="bundles to keep in the registry besides the served one")
    keep_run_records: int = Field(
        default=200,
        ge=10,
        description="finished runs that the UI shows. The next run and `simclr gc` remove the events and logs of "
        "earlier ones, but not of a run from which an asset has its present result",
    )
    keep_tensorboards: int = Field(
        default=20,
        ge=1,
        description="trainings that TensorBoard shows; the next run and `simclr gc` remove earlier ones",
    )
    keep_runs: int = Field(
        default=5,
        ge=1,
        description="runs whose data are kept though nothing was released from them. The branches runs/* of earlier "
        "ones become refs/simclr/retired/*, and `simclr gc` removes their data",
    )
