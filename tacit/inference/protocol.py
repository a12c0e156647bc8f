"""Tensors of the Open Inference Protocol (v2, gRPC) as NumPy arrays, and back. Whatever comes is checked first.

https://github.com/kserve/open-inference-protocol: a tensor is a name, a datatype, a shape, and its numbers either in
typed contents or, all tensors of a message alike, as raw little-endian bytes; a text is its length in four bytes and
its UTF-8.

Guarantees:
    A tensor whose content does not fill its shape exactly is refused, whatever the shape claims.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ProtocolError

TYPES: Final = {
    "BOOL": "?",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
CONTENTS: Final = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def decoded(tensor: Any, raw: bytes | None) -> NDArray[Any]:
    """An input tensor: numbers, or texts with dtype object.

    Args:
        tensor: `InferInputTensor`.
        raw: its part of `raw_input_contents`; None = it has typed contents.

    Raises:
        ProtocolError: "input", datatype, shape and content do not belong together.
    """
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    if datatype not in TYPES and datatype != "BYTES":
        raise ProtocolError("input", f"{name!r} has an unknown datatype")
    if any(side < 0 for side in shape):
        raise ProtocolError("input", f"{name!r} has a negative side")
    count = math.prod(shape)
    values: NDArray[Any]
    if raw is None:
        if datatype not in CONTENTS:
            raise ProtocolError("input", f"{name!r}: {datatype} travels as raw contents only")
        content = getattr(tensor.contents, CONTENTS[datatype])
        _check_count(name, len(content), count)
        values = _texts(name, content) if datatype == "BYTES" else _typed(name, content, TYPES[datatype])
    elif datatype == "BYTES":
        parts = _split(name, raw, count)
        values = _texts(name, parts)
    else:
        kind = np.dtype(TYPES[datatype])
        _check_count(name, len(raw), count * kind.itemsize, "bytes")
        values = np.frombuffer(raw, dtype=kind)
    return values.reshape(shape)


def encoded(values: NDArray[Any], datatype: str) -> bytes:
    """An output's raw contents."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values.ravel()]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.ascontiguousarray(values, dtype=TYPES[datatype]).tobytes()


def _typed(name: str, content: Sequence[Any], kind: str) -> NDArray[Any]:
    try:
        return np.array(list(content), dtype=kind)
    except OverflowError:
        raise ProtocolError("input", f"{name!r} has a number that its datatype cannot hold") from None


def _split(name: str, raw: bytes, count: int) -> list[bytes]:
    """The texts in raw contents: each a length of four bytes, and as many bytes."""
    parts: list[bytes] = []
    place = 0
    while place < len(raw) and len(parts) <= count:
        if place + 4 > len(raw):
            raise ProtocolError("input", f"{name!r} is cut short")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4
        if place + length > len(raw):
            raise ProtocolError("input", f"{name!r} is cut short")
        parts.append(raw[place : place + length])
        place += length
    _check_count(name, len(parts), count)
    return parts


def _texts(name: str, parts: Iterable[bytes]) -> NDArray[Any]:
    try:
        return np.array([part.decode() for part in parts], dtype=object)
    except UnicodeDecodeError:
        raise ProtocolError("input", f"{name!r} is not UTF-8") from None


def _check_count(name: str, have: int, wanted: int, what: str = "values") -> None:
    if have != wanted:
        raise ProtocolError("input", f"{name!r} has {have} {what} where its shape asks for {wanted}")
