"""What the mean image of a collection costs, by doing with some of them what the stages do, in confined workers."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any

from deploy.errors import ImageError
from deploy.images.npy import stored_samples
from deploy.images.preprocess import decode
from deploy.session import available_cpus
from pipeline.config import PrepareConfig
from pipeline.costs.model import ImageCosts
from pipeline.prepare.canonical import canonical, store
from pipeline.validation.probe.pool import isolated_map
from pipeline.validation.probe.probe import probe

SAMPLED, SAMPLED_BYTES = 64, 64_000_000
MEMORY_MEGABYTES, TIMEOUT_SECONDS = 2048, 20.0  # of a worker; as validate's
UNKNOWN = ImageCosts(0.004, 0.003, 0.001, 100_000.0, 20_000.0)
"""Where no image can be decoded; about a photograph of 300 pixels on a core of 2026."""
Sizes = tuple[tuple[int, int], ...]


def sample(contents: Iterable[bytes]) -> list[bytes]:
    """The first of them: few, and not too many bytes."""
    chosen: list[bytes] = []
    for data in contents:
        if len(chosen) == SAMPLED or sum(map(len, chosen)) + len(data) > SAMPLED_BYTES:
            break
        chosen.append(data)
    return chosen


def measure_images(contents: Sequence[bytes], short_side: int, params: PrepareConfig) -> tuple[ImageCosts, Sizes]:
    """Means over the contents that can be decoded, with all cores at work, and how high and wide they are prepared."""
    answers = isolated_map(
        measure_image,
        enumerate(contents),
        options={"short_side": short_side, "prepare": params.model_dump(mode="json")},
        workers=available_cpus(),
        memory_megabytes=MEMORY_MEGABYTES,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    found = [_checked(answer) for _, answer in answers]
    known = [one for one in found if one is not None]
    if not known:
        return UNKNOWN, ()
    means = [sum(values) / len(known) for values in zip(*known, strict=True)]
    probed, prepared, decoded, stored, *_ = means
    sizes = tuple((int(height), int(width)) for *_, height, width in known)
    return ImageCosts(probed, prepared, decoded, sum(map(len, contents)) / len(contents), stored), sizes


def measure_image(data: bytes, short_side: int, prepare: dict[str, Any]) -> list[float] | None:
    """Seconds to probe, to prepare and to decode again, and bytes, height and width when prepared; the second time,
    with warm caches."""
    params = PrepareConfig(**prepare)
    for _ in range(2):
        times = [perf_counter()]
        probe(data, background=params.background, channels=params.channels)
        times.append(perf_counter())
        try:
            image, _ = canonical(data, params)
        except ImageError:
            return None
        _, encoded, pixels = store(image, short_side, params)
        times.append(perf_counter())
        stored_samples(encoded) if params.channels else decode(encoded)
        times.append(perf_counter())
    return [*(after - before for before, after in pairwise(times)), *map(float, (len(encoded), *pixels.shape[:2]))]


def _checked(answer: Any) -> list[float] | None:
    """None also for a file that its worker did not survive, and for an answer that makes no sense."""
    sensible = isinstance(answer, list) and len(answer) == 6 and all(isinstance(one, float) for one in answer)
    return answer if sensible and all(0 <= one < 1e10 for one in answer) and min(answer[-2:]) >= 1 else None
