"""The shapes that bugs of an image pipeline give to a whole batch, seen in its statistics compared with those of
earlier images.

Each asks for something that nearly all images of the batch show and most earlier ones do not. A batch of which that is
true on purpose, such as scans of black-and-white prints, is for a person to approve.
"""

from collections.abc import Mapping

import numpy as np

from pipeline.validation.drift.distances import Array, wasserstein

NEARLY_ALL, MOST = 0.95, 0.5
GRAY = 2.0  # mean difference of the largest and smallest channel, 0..255: JPEG adds a little to none
DARK, LIGHT = 25.0, 230.0  # mean brightness, 0..255: a tenth from the end, beyond nights and snow
MANY_SIZES = 10
LEAST_SWAP = 0.3  # standard deviations of red minus blue
BETTER = 3.0  # times

Numbers = Mapping[str, Array]


def shapes(earlier: Numbers, earlier_sizes: Array, new: Numbers, new_sizes: Array) -> dict[str, bool]:
    """Which shapes the new images have, and the earlier ones do not; for each of them whether it is there.

        gray, dark, light   nearly all of them are
        one_size            nearly all have one resolution, where the earlier images have many
        swapped_channels    red and blue are exchanged

    Args:
        earlier, new: the statistics of ``drift.NUMBERS``, each [n].
        earlier_sizes, new_sizes: width and height, [n, 2].
    """
    return {
        "gray": _became(earlier["saturation"] < GRAY, new["saturation"] < GRAY),
        "one_size": _one_size(earlier_sizes, new_sizes),
        "dark": _became(earlier["luma_mean"] < DARK, new["luma_mean"] < DARK),
        "light": _became(earlier["luma_mean"] > LIGHT, new["luma_mean"] > LIGHT),
        "swapped_channels": _swapped(earlier, new),
    }


def _became(earlier: Array, new: Array) -> bool:
    return bool(new.mean() >= NEARLY_ALL and earlier.mean() <= MOST)


def _one_size(earlier: Array, new: Array) -> bool:
    before, now = (np.unique(sizes, axis=0, return_counts=True)[1] for sizes in (earlier, new))
    varied = len(before) >= MANY_SIZES and before.max() <= MOST * before.sum()
    return bool(varied and now.max() >= NEARLY_ALL * now.sum())


def _swapped(earlier: Numbers, new: Numbers) -> bool:
    """Exchanged once more, red and blue fit several times better, and so does what an exchange leaves alone."""
    as_it_is = _distance(earlier["red_minus_blue"], new["red_minus_blue"])
    if as_it_is < LEAST_SWAP:
        return False
    exchanged = {"red_mean": "blue_mean", "blue_mean": "red_mean", "green_mean": "green_mean"}
    distances = [_distance(earlier[ours], new[theirs]) for ours, theirs in exchanged.items()]
    distances.append(_distance(earlier["saturation"], new["saturation"]))
    distances.append(_distance(earlier["red_minus_blue"], -new["red_minus_blue"]))
    return BETTER * max(distances) <= as_it_is


def _distance(earlier: Array, new: Array) -> float:
    """In standard deviations of the earlier images, or gray levels where they hardly vary."""
    values = np.concatenate([earlier, new])
    newer = np.arange(values.size) >= earlier.size
    return float(wasserstein(values, newer)) / max(1.0, float(earlier.std()))
