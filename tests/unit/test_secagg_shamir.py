import os
import random
from itertools import combinations
from math import prod

import pytest

from tacit.errors import ProtocolError
from tacit.secagg import shamir
from tacit.secagg.shamir import PRIME, SHARE_BYTES, join, split

SECRETS = {"zero": bytes(32), "largest": b"\xff" * 32, "one": bytes(31) + b"\1", "any": bytes(range(32))}


def interpolate(shares, at):
    """Lagrange's formula written out, in the field's own arithmetic."""
    points = list(shares)
    total = 0
    for i in points:
        others = [j for j in points if j != i]
        top, bottom = prod(at - j for j in others), prod(i - j for j in others)
        total += int.from_bytes(shares[i]) * top * pow(bottom, PRIME - 2, PRIME)
    return total % PRIME


def coefficients(*values):
    """A source of random bytes that draws these numbers, one by one."""
    left = [value.to_bytes(33) for value in values]
    return lambda size: left.pop(0)


def strong_probable_prime(number, base):
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    powers = [pow(base, odd << i, number) for i in range(twos)]
    return powers[0] == 1 or number - 1 in powers


def test_p_is_the_first_prime_above_2_to_the_256():
    bases = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]
    assert PRIME == 2**256 + 297
    assert all(strong_probable_prime(PRIME, base) for base in bases)
    assert not any(strong_probable_prime(2**256 + k, 3) for k in range(1, 297, 2))


@pytest.mark.parametrize(
    ("secret", "drawn", "points", "values"),
    [
        # Worked by hand. 1234 + 166 x + 94 x^2 is a well-known textbook example with these six points.
        (1234, (94, 166), (1, 2, 3, 4, 5, 6), (1494, 1942, 2578, 3402, 4414, 5614)),
        (7, (), (1, 2), (7, 7)),
        (0, (1,), (1, 5, 1000), (1, 5, 1000)),
        (2**256 - 1, (PRIME - 1,), (1, 298), (2**256 - 2, 2**256 - 299)),
        (2**256 - 1, (298,), (1, 2), (0, 298)),
        (0, (PRIME - 1,), (1, 2), (PRIME - 1, PRIME - 2)),
    ],
)
def test_A8_shares_worked_by_hand(secret, drawn, points, values):
    shares = split(secret.to_bytes(32), points, len(drawn) + 1, coefficients(*drawn))
    assert shares == [value.to_bytes(SHARE_BYTES) for value in values]
    assert join(dict(list(zip(points, shares, strict=True))[-len(drawn) - 1 :])) == secret.to_bytes(32)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(("n", "threshold"), [(1, 1), (2, 2), (5, 1), (5, 3), (5, 5)])
def test_any_t_shares_give_the_secret_and_fewer_do_not(name, n, threshold):
    points = random.Random(n).sample(range(1, 2**32), n)
    shares = dict(zip(points, split(SECRETS[name], points, threshold, os.urandom), strict=True))
    for size in range(1, n + 1):
        for chosen in combinations(points, size):
            some = {point: shares[point] for point in chosen}
            if size >= threshold:
                assert join(some) == SECRETS[name]
            elif interpolate(some, 0) >> 256 == 0:
                assert join(some) != SECRETS[name]


@pytest.mark.parametrize(("n", "threshold"), [(10, 6), (100, 56), (200, 134), (277, 223)])
def test_A15_cohorts_of_the_table(n, threshold):
    source = random.Random(n)
    points = [index + 1 for index in sorted(source.sample(range(10_000), n))]
    secret = source.randbytes(32)
    shares = dict(zip(points, split(secret, points, threshold, source.randbytes), strict=True))
    for _ in range(3):
        some = {point: shares[point] for point in source.sample(points, threshold)}
        assert join(some) == secret
        assert interpolate(some, 0) == int.from_bytes(secret)
        absent = next(point for point in points if point not in some)
        assert interpolate(some, absent) == int.from_bytes(shares[absent])
        del some[next(iter(some))]
        assert interpolate(some, 0) != int.from_bytes(secret)


def test_fewer_than_t_shares_fit_every_secret():
    """With 2 shares of 3 fixed, each secret leaves exactly one polynomial, so the shares tell none from another."""
    points = [3, 9]
    shares = dict(zip([3, 9, 4], split(SECRETS["any"], [3, 9, 4], 3, os.urandom), strict=True))
    for other in (0, 1, 2**256 - 1):
        a, b = (
            (int.from_bytes(shares[x]) - other) * pow(x, -1, PRIME) for x in points
        )  # a x + b through the two
        slope = (a - b) * pow(points[0] - points[1], -1, PRIME) % PRIME
        drawn = slope, (a - slope * points[0]) % PRIME
        assert split(other.to_bytes(32), [*points, 4], 3, coefficients(*drawn))[:2] == [shares[3], shares[9]]


def test_coefficients_are_drawn_again_until_they_are_below_p_and_no_bit_of_them_is_lost():
    good = [2**256 + 296, 2**256, 5]
    drawn = [PRIME, good[0], 2**257 - 1, PRIME + 1, good[1], good[2]]
    high_bits = [(value | 0x15 << 258).to_bytes(33) for value in drawn]  # the seven bits above are not used
    shares = split(bytes(32), [1, 2, 3, 4], 4, lambda size: high_bits.pop(0))
    assert not high_bits
    for x, share in enumerate(shares, 1):
        assert int.from_bytes(share) == (good[0] * x**3 + good[1] * x**2 + good[2] * x) % PRIME


def test_every_coefficient_is_fresh():
    asked = []

    def source(size):
        asked.append(size)
        return os.urandom(size)

    first, second = (split(bytes(32), range(1, 101), 56, source) for _ in range(2))
    assert set(asked) == {SHARE_BYTES}
    assert len(asked) >= 2 * 55
    assert len({*first, *second}) == 200


def test_a_wrong_share_gives_another_secret_or_none():
    points = [1, 2, 3]
    shares = dict(zip(points, split(SECRETS["any"], points, 3, os.urandom), strict=True))
    for bit in (0, 1, 100, 255):
        wrong = (int.from_bytes(shares[2]) ^ 1 << bit).to_bytes(33)
        assert join({**shares, 2: wrong}) != SECRETS["any"]
    assert join({1: shares[2], 2: shares[1], 3: shares[3]}) != SECRETS["any"]
    assert join({1: shares[1], 2: shares[2], 4: shares[3]}) != SECRETS["any"]


@pytest.mark.parametrize(
    "share",
    [
        b"",
        bytes(32),
        bytes(34),
        PRIME.to_bytes(33),
        (PRIME + 5).to_bytes(33),
        b"\xff" * 33,
        b"\2" + bytes(32),
    ],
)
def test_C1_a_share_has_one_spelling(share):
    good = split(SECRETS["any"], [1, 2], 2, os.urandom)
    for shares in ({1: share, 2: good[1]}, {1: good[0], 2: share}, {1: share}):
        with pytest.raises(ProtocolError) as error:
            join(shares)
        assert error.value.reason == "share"
    with pytest.raises(ProtocolError):
        shamir.check_share(share)
    assert shamir.check_share((PRIME - 1).to_bytes(33)) == PRIME - 1


@pytest.mark.parametrize("secret", [2**256, 2**256 + 1, PRIME - 1])
def test_C1_a_value_beyond_256_bits_is_a_failure(secret):
    for shares in ({1: secret}, {1: (secret + 5) % PRIME, 2: (secret + 10) % PRIME}):
        with pytest.raises(ProtocolError) as error:
            join({point: value.to_bytes(33) for point, value in shares.items()})
        assert error.value.reason == "share"


def test_no_shares_give_no_secret():
    with pytest.raises(ProtocolError):
        join({})


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [
        (bytes(31), [1, 2], 2),
        (bytes(33), [1, 2], 2),
        (bytes(32), [1, 2], 3),
        (bytes(32), [1, 2], 0),
        (bytes(32), [], 0),
        (bytes(32), [0, 1], 2),
        (bytes(32), [-1, 1], 2),
        (bytes(32), [1, 1], 2),
        (bytes(32), [1, 2**32 + 1], 2),
        (bytes(32), [1, PRIME], 2),
    ],
)
def test_what_cannot_be_shared_is_an_error(secret, points, threshold):
    with pytest.raises(ValueError, match=r"secret|points"):
        split(secret, points, threshold, os.urandom)


@pytest.mark.parametrize("point", [0, -1, 2**32 + 1, PRIME])
def test_what_is_no_point_is_an_error(point):
    with pytest.raises(ValueError, match="points"):
        join({1: bytes(33), point: bytes(33)})
