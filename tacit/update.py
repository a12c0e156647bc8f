"""One type per stage of an update. Data flow through them in this order and never back.

    LocalUpdate -> EncodedUpdate -> MaskedUpdate -> (wire) -> Aggregate

`LocalUpdate` and `EncodedUpdate` are one participant's secret. They refuse to be pickled or printed and have no
method that makes bytes.

Guarantees:
    The only stage of an update that can be serialised is the masked one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ProtocolError

Floats = NDArray[np.float32] | NDArray[np.float64]
Integers = NDArray[np.int64]
Words = NDArray[np.uint32]


class _Secret:
    """Refuses to be printed, pickled or copied by accident."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} must not leave the process that made it")


@dataclass(frozen=True)
class Layout:
    """What stands where in the flat vector: the model's arrays in order, then metrics, then one number more, if any.

    Attributes:
        arrays: name and shape of each model array, in the order in which they are laid out.
        metrics: names of the metric sums that ride behind the model.
        last: what the last coordinate is: the aggregation weight; a bit that says whether the update was shorter
            than the clip norm; or there is none.
    """

    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    metrics: tuple[str, ...] = ()
    last: Literal["weight", "bit", ""] = "weight"

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, Floats],
        metrics: tuple[str, ...] = (),
        last: Literal["weight", "bit", ""] = "weight",
    ) -> Layout:
        """The layout of these arrays, in their own order."""
        return cls(tuple((name, tuple(a.shape)) for name, a in arrays.items()), metrics, last)

    @property
    def model_size(self) -> int:
        """Number of model coordinates."""
        return sum(prod(shape) for _, shape in self.arrays)

    @property
    def size(self) -> int:
        """Length of the whole vector."""
        return self.model_size + len(self.metrics) + bool(self.last)

    def flatten(self, arrays: Mapping[str, Floats]) -> NDArray[np.float64]:
        """The model block as one float64 vector of shape (model_size,)."""
        for name, shape in self.arrays:
            if name not in arrays or tuple(arrays[name].shape) != shape:
                raise ProtocolError("layout", f"array {name!r} is missing or has another shape")
        parts = [np.asarray(arrays[name], dtype=np.float64).ravel() for name, _ in self.arrays]
        return np.concatenate(parts) if parts else np.zeros(0)

    def unflatten(self, vector: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The named arrays of a model block of shape (model_size,)."""
        ends = np.cumsum([prod(shape) for _, shape in self.arrays])[:-1]
        blocks = np.split(vector, ends) if self.arrays else []
        return {name: block.reshape(shape) for (name, shape), block in zip(self.arrays, blocks, strict=True)}


@dataclass(frozen=True, repr=False)
class LocalUpdate(_Secret):
    """What training changed at one site.

    Attributes:
        delta: trained minus received model, per array.
        weight: this site's public aggregation weight, in (0, 1].
        metrics: metric sums of the *received* model, already private where the plan says so.
    """

    delta: Mapping[str, Floats]
    weight: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, repr=False)
class EncodedUpdate(_Secret):
    """A local update as signed integers: shape (layout.size,), Euclidean norm of the model block <= C_int.

    With a promise for clients that is the norm of the whole vector, before noise is added to it.

    Attributes:
        values: the vector.
        clipped: whether the update was longer than the clip norm. Never sent.
    """

    values: Integers
    clipped: bool


@dataclass(frozen=True, repr=False)
class MaskedUpdate:
    """The form that may leave a site: each word is uniform to whoever lacks the masks.

    Attributes:
        words: shape (length,), uint32, each below 2**bits.
        bits: width of one word on the wire, 8 to 32.
    """

    words: Words
    bits: int

    def __repr__(self) -> str:
        return f"<MaskedUpdate: {self.words.size} words of {self.bits} bits>"

    def to_bytes(self) -> bytes:
        """The packed words: ceil(length * bits / 8) bytes."""
        from tacit.secagg.ring import pack

        return pack(self.words, self.bits)

    @classmethod
    def from_bytes(cls, data: bytes, bits: int, length: int) -> MaskedUpdate:
        """Unpacks `length` words; `ProtocolError` if `data` has any other size."""
        from tacit.secagg.ring import unpack

        return cls(unpack(data, bits, length), bits)


@dataclass(frozen=True)
class Aggregate:
    """The exact integer sum over the clients of one cohort, and nothing about any of them.

    Attributes:
        values: shape (layout.size,), centred signed integers.
        num_clients: how many vectors are in the sum.
    """

    values: Integers
    num_clients: int
