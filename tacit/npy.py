"""Reads arrays as numpy's file format has them when `numpy.save` writes plain numbers, and nothing else.

`numpy.load` reads more than that: zip archives, headers of older versions that it takes apart as Python, and arrays
whose header says more than there is, for which it reserves memory first.
"""

from __future__ import annotations

import io
import math
import re
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ProtocolError

_MAX_DIMENSIONS: Final = 32
_HEADER: Final = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)\{'descr': '(?P<dtype>[<>|][biufc]\d\d?)', 'fortran_order': (?P<order>False|True), "
    rb"'shape': \((?P<shape>[\d, ]{0,640})\), \} *\n",
    re.DOTALL,
)


def read_npy(data: bytes) -> NDArray[Any]:
    """The array in these bytes.

    Raises:
        ProtocolError: "model", they are no array of plain numbers, or not as long as their header says.
    """
    header = _HEADER.match(data)
    if header is None or header.end() != 10 + int.from_bytes(header["size"], "little"):
        raise ProtocolError("model", "an array cannot be read: it is not in numpy's format")
    shape = tuple(map(int, re.findall(rb"\d+", header["shape"])))
    try:
        dtype = np.dtype(header["dtype"].decode())
    except TypeError:
        raise ProtocolError("model", "an array is of no type that there is") from None
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(data) - header.end():
        raise ProtocolError("model", "an array is not as long as its header says")
    flat = np.frombuffer(data, dtype, offset=header.end())
    try:
        return flat.reshape(shape, order="F" if header["order"] == b"True" else "C").copy()
    except ValueError:  # no number in it, and a shape beyond what numpy counts
        raise ProtocolError("model", "an array has no shape that there is") from None


@lru_cache(maxsize=8)
def header_of_bytes(size: int) -> bytes:
    """How numpy's file format begins for `size` bytes in a row, dtype uint8."""
    empty = np.broadcast_to(np.uint8(0), (size,))
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(empty))
    return file.getvalue()
