"""The pipeline's blocks of params.yaml, typed and frozen; those of training are in ``simclr_core.config``."""

from typing import Annotated, Literal

from pydantic import Field

from simclr_core.params import Block


class IngestConfig(Block):
    """How files become raw batches."""

    settle_seconds: Annotated[float, Field(ge=0)] = 2.0  # a file changed more recently is still being written
    shard_megabytes: Annotated[int, Field(ge=1, le=4096)] = 256
    # The only labels there may be, so that a mistyped one is an error; without it every label is a class.
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None


class DriftConfig(Block):
    """When a new batch is called different from the earlier ones; see ``drift``."""

    enabled: bool = True
    min_images: Annotated[int, Field(ge=10)] = 50  # accepted training images of a batch; fewer are not judged
    distance: Annotated[float, Field(gt=0)] = 0.1  # standard deviations of the earlier images, or Jensen-Shannon
    auroc: Annotated[float, Field(gt=0.5, lt=1)] = 0.6  # of a classifier that tells new images from earlier ones
    accepted: Annotated[tuple[str, ...], Field(strict=False)] = ()  # batches that look like a bug's work and are right


class NearDuplicatesConfig(Block):
    """Which pictures are called nearly the same, and what becomes of them; see ``near_duplicates``."""

    enabled: bool = True
    distance: Annotated[int, Field(ge=0, le=3)] = 3  # bits of 64 in which their perceptual hashes may differ
    within_training: Literal["keep", "quarantine"] = "keep"  # or all but one of a group; across the splits: always
    placeholder_copies: Annotated[int, Field(ge=2)] = 20  # files that show the same flat picture


class ValidateConfig(Block):
    """What an image must be to be trained on, what probing one may cost, and when a whole batch is refused."""

    max_megabytes: Annotated[float, Field(gt=0)] = 50.0  # of one file
    max_megapixels: Annotated[float, Field(gt=0, le=89)] = 80.0  # by the header, before decoding; Pillow stops at 89
    min_side: Annotated[int, Field(ge=1)] = 8  # pixels
    max_aspect: Annotated[float, Field(ge=1)] = 10.0  # longer side over shorter side
    min_standard_deviation: Annotated[float, Field(ge=0)] = 2.0  # of the liveliest channel, 0..255; below: no content
    animated: Literal["quarantine", "first_frame"] = "quarantine"  # and multi-page TIFF
    suspect_streams: Literal["quarantine", "keep"] = "quarantine"  # JPEG that decodes, from a damaged stream
    near_duplicates: NearDuplicatesConfig = NearDuplicatesConfig()
    engine: Literal["local", "ray"] = "local"  # where images are probed: here, or on the Ray cluster of RAY_ADDRESS
    timeout_seconds: Annotated[float, Field(gt=0)] = 20.0  # for one file
    memory_megabytes: Annotated[int, Field(ge=512)] = 2048  # address space of one worker
    min_images: Annotated[int, Field(ge=0)] = 64  # accepted training images
    max_quarantine_rate: Annotated[float, Field(ge=0, le=1)] = 0.05  # of all files
    drift: DriftConfig = DriftConfig()


class PrepareConfig(Block):
    """How accepted images become canonical ones."""

    short_side: Annotated[int, Field(ge=8)] = 256  # pixels; larger images are reduced to it, smaller ones kept
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    shard_megabytes: Annotated[int, Field(ge=1, le=4096)] = 256


class EmbeddingDriftConfig(Block):
    """What the champion compares of the newest batch with earlier ones; see ``pipeline.embedding_drift``.

    3,000 images of 28 pixels cost a small encoder a second; of 224 pixels, a ResNet-50 on a processor some minutes.
    """

    enabled: bool = True
    reference_images: Annotated[int, Field(ge=20, le=5000)] = 2000  # earlier ones; memory grows with their square
    batch_images: Annotated[int, Field(ge=10, le=5000)] = 1000
    min_images: Annotated[int, Field(ge=10)] = 50  # of a batch, and twice as many earlier ones; fewer are not judged
    auroc: Annotated[float, Field(gt=0.5, lt=1)] = 0.6  # of a classifier that tells new embeddings from earlier ones
    novel_share: Annotated[float, Field(gt=0, lt=1)] = 0.05  # of new images, unlike any earlier; by chance it is 0.01


class RetrainingConfig(Block):
    """When new images start a run by themselves; see ``pipeline.retraining.decide``."""

    sources: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("inbox",)  # folders, globs, fsspec URLs
    schedule: str = "0 3 * * 0"  # cron: every Sunday at three
    timezone: str = "UTC"
    min_new_images: Annotated[int, Field(ge=1)] = 1000  # the sensor waits for as many
    min_new_images_after_drift: Annotated[int, Field(ge=1)] = 200  # as many are enough when the last report saw drift
    quiet_minutes: Annotated[float, Field(ge=0)] = (
        10.0  # nothing may have arrived for as long: a copy is still going on
    )
    max_age_days: Annotated[float, Field(gt=0)] = 30.0  # an encoder released longer ago is shown as overdue


class GatesConfig(Block):
    """What a candidate has to show before it may replace the champion. Losses are percentage points of top-1."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95  # of the one-sided paired test
    release_if: Literal["not_worse", "better"] = "not_worse"
    max_loss: Annotated[float, Field(ge=0, le=100)] = 2.0  # kNN and probe: a greater loss has to be ruled out
    max_low_label_loss: Annotated[float, Field(ge=0, le=100)] = 3.0  # fine-tuned accuracy, beyond both intervals
    max_latency_milliseconds: Annotated[float, Field(gt=0)] | None = None  # of one image, median
    max_latency_ratio: Annotated[float, Field(gt=0)] = 1.5  # to the champion's, measured beside it
    max_megabytes: Annotated[float, Field(gt=0)] | None = None  # of the ONNX file
    max_size_ratio: Annotated[float, Field(gt=0)] = 1.5
    old_index: Literal["report", "require"] = "report"  # must the champion's index answer the candidate's queries?
    max_old_index_loss: Annotated[float, Field(ge=0, le=100)] = 5.0


class ReleaseConfig(Block):
    """Where released encoders go, and in whose name."""

    registry: str = "registry"  # a folder that servers read; relative to the workspace
    require_remote: bool = False  # true: refuse to release what only this machine's DVC cache holds
    author: str = "simclr-bot"
    email: str = "simclr-bot@localhost"


class StorageConfig(Block):
    """How much disk a workspace may take."""

    min_free_gigabytes: Annotated[float, Field(ge=0)] = 2.0  # a run does not start with less
    max_cache_gigabytes: Annotated[float, Field(gt=0)] | None = None  # above, what no release needs is collected
    keep_releases: Annotated[int, Field(ge=1)] = 5  # bundles kept in the registry, beside the one that serves
