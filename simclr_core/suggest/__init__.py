"""Which images a person should label next, by frozen features and the labels there are.

Belongs here: one module for each way to choose, each a function of arrays, and ``choose``, which reads what they need.
Paths, files and what a person reads are for ``pipeline.suggest``.
"""

from typing import Literal, get_args

By = Literal["typical", "diverse", "uncertain", "novel", "mistakes"]
WAYS: tuple[By, ...] = get_args(By)
