"""Public keys of X25519 that nobody may agree on anything with."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tacit.secagg import keys

P = 2**255 - 19
A = 486662  # of Curve25519, RFC 7748 section 4.1


def doubled(x: int, z: int) -> tuple[int, int]:
    """Twice the point with u = x / z, on the curve or its twist: RFC 7748 section 5."""
    a, b = (x + z) ** 2 % P, (x - z) ** 2 % P
    e = a - b
    return a * b % P, e * (b + (A + 2) // 4 * e) % P


def test_B5_the_points_refused_are_those_whose_order_divides_8_and_the_library_refuses_them_too():
    for encoded in keys._SMALL_ORDER:
        point = int.from_bytes(encoded, "little"), 1
        for _ in range(3):
            point = doubled(*point)
        assert point[1] == 0  # infinity
        with pytest.raises(ValueError, match="shared key"):
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(encoded))
    # Order 2: u = 0. Order 4: those that double to 0, (u^2 - 1)^2 = 0. Order 8: those that double to 1 or -1.
    assert len(keys._SMALL_ORDER) == 1 + 2 + num_roots_of_halving(1) + num_roots_of_halving(P - 1)


def num_roots_of_halving(target: int) -> int:
    """How many u double to `target`: (u^2 - 1)^2 = 4 u (u^2 + A u + 1) target is (u + 1 / u) quadratic."""
    # Divided by u^2, with w = u + 1 / u:  w^2 - 4 - 4 target (w + A) = 0.
    roots = 0
    for w in quadratic(-4 * target % P, (-4 - 4 * target * A) % P):
        roots += len(quadratic(-w % P, 1))  # u^2 - w u + 1 = 0
    return roots


def quadratic(b: int, c: int) -> set[int]:
    """Roots of x^2 + b x + c modulo p."""
    square = (b * b - 4 * c) % P
    root = pow(square, (P + 3) // 8, P)
    if root * root % P != square:
        root = root * pow(2, (P - 1) // 4, P) % P
    if root * root % P != square:
        return set()
    return {(-b + root) * pow(2, -1, P) % P, (-b - root) * pow(2, -1, P) % P}
