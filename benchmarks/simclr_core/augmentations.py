"""Views per second of SimCLR's augmentations against lightly, torchvision v2 and kornia, interleaved in one run.

    python -m benchmarks.simclr_core.augmentations --json benchmarks/results/FILE.json

One recipe for all: crop, flip, color jitter, grayscale, and at 224 pixels blur. Each gets decoded images in the form
it takes (lightly Pillow images, torchvision uint8 tensors one at a time, kornia and we whole batches) and gives float
views in [0, 1]; decoding and normalization are left out for everyone. kornia gets its images as floats already.
"""

import json
import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from benchmarks import measure
from simclr_core.augmentation.augmentations import Augmentation

THREADS = (1, 2)
ROUNDS = 7
SCALE = (0.08, 1.0)

Work = Callable[[], object]


class Case(NamedTuple):
    side: int  # of the images, pixels
    size: int  # of the views
    strength: float  # of the jitter
    blur: float  # probability
    batch: int  # images that those who work on batches get at once
    single: int  # images that the others get in a round


CASES = (Case(32, 32, 0.5, 0.0, 256, 64), Case(256, 224, 1.0, 0.5, 32, 16))


def pictures(case: Case) -> Tensor:
    """Smooth colors with noise, uint8 [n, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(case.batch, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (case.side, case.side), mode="bilinear")
    return (255 * (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=generator))).to(torch.uint8)


def ours(case: Case, mode: Literal["exact", "fused"]) -> tuple[Work, int]:
    form = torch.channels_last if case.side > 64 else torch.contiguous_format  # as TrainingImages gives them
    images = pictures(case).contiguous(memory_format=form)
    sizes, samples = torch.full((case.batch, 2), case.side), torch.arange(case.batch)
    recipe = Augmentation(case.size, SCALE, jitter_strength=case.strength, blur=case.blur, mode=mode)
    epochs = count()

    def work() -> object:
        epoch = next(epochs)
        return [recipe.view(images, sizes, 0, epoch, samples, view) for view in (0, 1)]

    return work, 2 * case.batch


def torchvision(case: Case) -> tuple[Work, int]:
    from torchvision.transforms import v2

    strength, kernel = case.strength, _kernel(case.size)
    jitter = v2.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    steps = [
        v2.RandomResizedCrop(case.size, SCALE, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([jitter], 0.8),
        v2.RandomGrayscale(0.2),
        *([v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], case.blur)] if case.blur else []),
        v2.ToDtype(torch.float32, scale=True),
    ]
    transform, images = v2.Compose(steps), pictures(case)[: case.single]
    return lambda: [torch.stack([transform(image) for image in images]) for _ in range(2)], 2 * case.single


def lightly(case: Case) -> tuple[Work, int]:
    from lightly.transforms.simclr_transform import SimCLRTransform

    transform = SimCLRTransform(
        case.size, cj_strength=case.strength, min_scale=SCALE[0], gaussian_blur=case.blur, normalize=None
    )
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pictures(case)[: case.single]]
    return lambda: [torch.stack(views) for views in zip(*map(transform, images), strict=True)], 2 * case.single


def kornia(case: Case) -> tuple[Work, int]:
    from kornia import augmentation

    strength, kernel = case.strength, _kernel(case.size)
    jitter = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    steps = [
        augmentation.RandomResizedCrop((case.size, case.size), SCALE),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(*jitter, p=0.8),
        augmentation.RandomGrayscale(p=0.2),
        *([augmentation.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=case.blur)] if case.blur else []),
    ]
    transform, images = torch.nn.Sequential(*steps), pictures(case) / 255
    return lambda: [transform(images) for _ in range(2)], 2 * case.batch


CONTENDERS: dict[str, Callable[[Case], tuple[Work, int]]] = {
    "exact": lambda case: ours(case, "exact"),
    "fused": lambda case: ours(case, "fused"),
    "torchvision": torchvision,
    "lightly": lightly,
    "kornia": kornia,
}


def _kernel(size: int) -> int:
    return size // 10 // 2 * 2 + 1


def microseconds(case: Case) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU microseconds per view of each round; the contenders take turns."""
    made = {name: make(case) for name, make in CONTENDERS.items()}
    wall: dict[str, list[float]] = {name: [] for name in made}
    cpu: dict[str, list[float]] = {name: [] for name in made}
    for number in range(ROUNDS + 1):
        for name, (work, views) in made.items():
            clock, cores = time.perf_counter(), time.process_time()
            work()
            if number:  # the first round warms up
                wall[name].append(1e6 * (time.perf_counter() - clock) / views)
                cpu[name].append(1e6 * (time.process_time() - cores) / views)
    return wall, cpu


def compared() -> dict[str, Any]:
    results = []
    for case in CASES:
        for threads in THREADS:
            torch.set_num_threads(threads)
            wall, cpu = microseconds(case)
            row: dict[str, Any] = {"image": case.side, "view": case.size, "blur": case.blur, "threads": threads}
            for name, taken in wall.items():
                row[name] = {
                    "views_per_second": round(1e6 / statistics.median(taken)),
                    "spread": [round(1e6 / max(taken)), round(1e6 / min(taken))],
                    "cpu_microseconds_per_view": round(statistics.median(cpu[name]), 1),
                }
            for mode in ("exact", "fused"):
                pairs = {peer: zip(cpu[mode], cpu[peer], strict=True) for peer in ("torchvision", "lightly", "kornia")}
                row[f"{mode}_times_less_cpu"] = {
                    peer: round(statistics.median(theirs / mine for mine, theirs in pair), 2)
                    for peer, pair in pairs.items()
                }
            results.append(row)
            print(json.dumps(row), flush=True)
    return measure.header("augmentations", "torch", "torchvision", "lightly", "kornia") | {"results": results}


def main() -> None:
    arguments = measure.parser(__doc__).parse_args()
    results = compared()
    measure.write(results, arguments.json)


if __name__ == "__main__":
    main()
