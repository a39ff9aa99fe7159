"""Columns of numbers as a browser takes them: one answer of bytes, of which typed arrays are views.

    uint32        length of the header
    header        JSON in UTF-8: what the caller says, and of each column name, type, offset after the header, and the
                  ``values`` that its codes stand for; spaces after it, so that what follows begins at a multiple of 8
    columns       little-endian, each from a multiple of 8

A code of 0 is a missing value, 1 the first of ``values``. Numbers are float32, NaN where they are missing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNED = 8
CODES = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True)
class Coded:
    """A column of text: ``codes`` [n] of any integers, 0 for a missing value, and the ``values`` from code 1 on.
    Without values the codes only say which are equal."""

    codes: NDArray[Any]
    values: Sequence[str] = ()


def pack(columns: Mapping[str, NDArray[np.float32] | Coded], said: Mapping[str, Any]) -> bytes:
    """The bytes for the page.

    Examples:
        >>> packed = pack({"x": np.array([1, 2], np.float32)}, {"count": 2})
        >>> header = int.from_bytes(packed[:4], "little")
        >>> json.loads(packed[4 : 4 + header])["columns"]
        [{'name': 'x', 'type': 'float32', 'offset': 0}]
        >>> np.frombuffer(packed[4 + header :], np.float32).tolist()
        [1.0, 2.0]
    """
    described, parts, offset = [], [], 0
    for name, column in columns.items():
        one: dict[str, Any] = {"name": name}
        if isinstance(column, Coded):
            most = int(column.codes.max(initial=0))
            array: NDArray[Any] = column.codes.astype(next(kind for kind in CODES if most <= np.iinfo(kind).max))
            one["values"] = list(column.values)
        else:
            array = column.astype(np.float32)
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        described.append(one | {"type": array.dtype.name, "offset": offset})
        content += bytes(-len(content) % ALIGNED)
        parts.append(content)
        offset += len(content)
    header = json.dumps({**said, "columns": described}).encode()
    header += b" " * (-(4 + len(header)) % ALIGNED)
    return b"".join([len(header).to_bytes(4, "little"), header, *parts])
