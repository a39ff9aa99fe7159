"""The ``validate`` block of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from simclr_core.params import Block


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
