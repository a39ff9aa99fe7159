"""Which prepared images an export compares, and which of them its bundle shows: a function of how many there are."""

import numpy as np

PARITY_IMAGES = 64  # on which the exported encoder is compared with the trained one
GOLDEN_IMAGES = 8  # the first of them, of which small copies are in the bundle


def parity_positions(test: int, train: int) -> list[tuple[str, int]]:
    """Split and position of images spread evenly over the test split; training images fill up when it has too few.

    Args:
        test: images of the test split.
        train: images of the training split.

    Examples:
        >>> parity_positions(3, 2)
        [('test', 0), ('test', 1), ('test', 2), ('train', 0), ('train', 1)]
    """
    chosen: list[tuple[str, int]] = []
    for split, count in (("test", test), ("train", train)):
        wanted = min(PARITY_IMAGES - len(chosen), count)
        chosen += [(split, int(position)) for position in np.linspace(0, count - 1, wanted).round()]
    return chosen
