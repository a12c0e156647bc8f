"""Shamir's secret sharing of 32 bytes over the integers modulo p = 2^256 + 297, the first prime above 2^256.

A. Shamir, How to share a secret, Communications of the ACM 22 (1979). The numbers are Python integers, so the
time taken depends a little on them, and the copies that Python makes of them cannot be wiped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from operator import mul
from typing import Final

from tacit.errors import ProtocolError

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33

_MAX_POINT: Final = 2**32  # a roster index plus 1
_LOW_BITS: Final = 2**257 - 1
_REDUCE_EVERY: Final = (
    32  # steps of Horner's scheme; at small points a longer number is cheaper than a division
)


def split(
    secret: bytes | bytearray, points: Sequence[int], threshold: int, random_bytes: Callable[[int], bytes]
) -> list[bytes]:
    """One share of `secret` for each point, of which any `threshold` give it back.

    Args:
        secret: 32 bytes, read as a big-endian number.
        points: where the polynomial is evaluated: distinct, 1 to 2^32.
        threshold: how many shares open the secret; the degree of the polynomial plus 1.
        random_bytes: gives that many random bytes; the source of all coefficients but the secret.

    Returns:
        Shares in the order of `points`: 33 bytes each, big-endian, below p.

    Guarantees:
        Fewer than `threshold` shares say nothing about the secret: with them every secret is as likely as before.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"{threshold} of {len(points)} shares cannot open a secret")
    _check_points(points)
    falling = [_uniform(random_bytes) for _ in range(threshold - 1)] + [int.from_bytes(secret)]
    return [_evaluate(falling, x).to_bytes(SHARE_BYTES) for x in points]


def join(shares: Mapping[int, bytes | bytearray]) -> bytes:
    """The secret that these shares are of, by Lagrange's formula at 0.

    Args:
        shares: by point. All of them are used: give exactly as many as the threshold.

    Returns:
        32 bytes. With a wrong share, or too few, it is some other secret: check it against what is known of it.

    Raises:
        ProtocolError: a share is not canonical, there is none, or the result is no number of 256 bits.
    """
    if not shares:
        raise ProtocolError("share", "no shares to join")
    values = map(check_share, shares.values())
    secret: int = sum(map(mul, values, _weights_at_zero(tuple(shares)))) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ProtocolError("share", "the shares join to a number of more than 256 bits")
    return secret.to_bytes(SECRET_BYTES)


def check_share(share: bytes | bytearray) -> int:
    """The number that a share is.

    Raises:
        ProtocolError: it has not 33 bytes, or is not below p.
    """
    value = int.from_bytes(share)
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ProtocolError("share", "a share is not in its canonical form")
    return value


def _uniform(random_bytes: Callable[[int], bytes]) -> int:
    """A number below p: 257 random bits, drawn again until they are one. About every second draw is."""
    while (value := int.from_bytes(random_bytes(SHARE_BYTES)) & _LOW_BITS) >= PRIME:
        pass
    return value


def _evaluate(falling: Sequence[int], x: int) -> int:
    """The polynomial at `x`, by Horner's scheme; coefficients from the highest degree down."""
    value = 0
    for start in range(0, len(falling), _REDUCE_EVERY):
        for coefficient in falling[start : start + _REDUCE_EVERY]:
            value = value * x + coefficient
        value %= PRIME
    return value


@lru_cache(maxsize=16)  # on the complete graph all secrets are joined over the same points, on the ring none
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's coefficients at 0: the product of x_j / (x_j - x_i) over j other than i, for each i."""
    _check_points(points)
    numerator = prod(points) % PRIME
    below = [x * prod(other - x for other in points if other != x) % PRIME for x in points]
    # One inversion for all (Montgomery's trick): from the inverse of the product of the first i to that of i - 1.
    products = list(accumulate(below, lambda a, b: a * b % PRIME))
    inverse = pow(products[-1], -1, PRIME)
    weights = []
    for before, own in zip([*products[-2::-1], 1], reversed(below), strict=True):
        weights.append(numerator * inverse * before % PRIME)
        inverse = inverse * own % PRIME
    return tuple(reversed(weights))


def _check_points(points: Sequence[int]) -> None:
    """At point 0 the share would be the secret itself."""
    if len(set(points)) != len(points) or not all(1 <= x <= _MAX_POINT for x in points):
        raise ValueError("the points of shares are distinct numbers from 1 to 2^32")
