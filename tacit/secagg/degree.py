"""How many neighbours a client needs on the ring, and how many shares open a secret there.

On the ring a client has the k/2 clients before it and the k/2 after it, in an order that nobody chose. Its
neighbours are then a uniformly random set of k of the other n - 1, and how many of them belong to a fixed set
of s clients is hypergeometric. Two numbers are quantiles of it, by a union bound over the n - c honest clients:

    c_max = the smallest j with (n - c) P[Hyp(n - 1, c, k) > j] <= 2^-104     corrupt neighbours of a client
    d_max = the smallest j with (n - c) P[Hyp(n - 1, D, k) > j] <= 2^-20      neighbours that vanish
    t     = k/2 + c_max + 1
    k     = the smallest even number with t <= k - d_max, that is with c_max + d_max < k/2

Why this t. Of t neighbours that are still there t - c_max = k/2 + 1 are honest, so at least one of them is
among the k/2 on either side. Every honest survivor thus has an edge to the next one along the ring, in both
directions: the honest survivors are one component, whoever the server lets vanish. A client sees to that
itself (M2, M3) by counting t neighbours *without itself*. With t = k/2 + c_max it could have all its honest
neighbours on one side, and a server could cut an arc out of the ring and learn the sum over it.
Nobody's b and mask_sk both: k + 1 clients hold shares of each (the dealer is one), an honest one opens one of
the two and a corrupt one both, so that at most k + 1 + c_max are opened, fewer than 2t = k + 2 c_max + 2.

Why 2^-104. The server chooses U1 after it has seen everyone's keys, and the clients it controls draw their
nonces last: it may try orders offline. 2^64 of them leave 2^-40. Failure costs an attempt, no privacy, and
nobody can try for it but by vanishing; a corrupt client that withholds its answer is one of the D.

Source: the random k-regular graph is that of Bell, Bonawitz, Gascon, Lepoint and Raykova (CCS 2020), whose
sections 3.3 and 3.4 bound connectivity by probability; here it is certain once c_max holds.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb
from typing import Final

PRIVACY_BITS: Final = 104
FAILURE_BITS: Final = 20


@lru_cache(maxsize=64)
def ring_degree(n: int, c: int, dropouts: int, privacy_bits: int = PRIVACY_BITS) -> tuple[int, int] | None:
    """k and t for a ring of n clients, or None where k would pass n/2.

    c_max and d_max never fall when k grows, so that the gap c_max + d_max - k/2 falls by at most one from an
    even k to the next: a k with a gap of g >= 0 rules out all below k + 2 (g + 1). The smallest k takes a dozen
    steps instead of hundreds.

    Args:
        n: clients that sent keys.
        c: corrupt clients among them, at most.
        dropouts: clients that vanish, at most.
        privacy_bits: c_max is passed with a probability of at most 2 to the minus this.
    """
    k = 2
    while k <= n // 2:
        corrupt = most(n - 1, c, k, n - c, privacy_bits)
        gap = corrupt + most(n - 1, dropouts, k, n - c, FAILURE_BITS) - k // 2
        if gap < 0:
            return k, k // 2 + corrupt + 1
        k += 2 * (gap + 1)
    return None


def most(others: int, special: int, drawn: int, union: int, bits: int) -> int:
    """The smallest j with union P[Hyp(others, special, drawn) > j] <= 2^-bits.

    Exact: every term is an integer over comb(others, drawn), summed from the largest j down. No floating-point
    number is involved, so that every machine finds the same j.

    Args:
        others: clients that a neighbour is drawn from.
        special: those among them that are counted, at most `others`.
        drawn: neighbours.
        union: how many clients the bound is to hold for at once.
        bits: minus the binary logarithm of the probability.
    """
    whole, rest = comb(others, drawn), others - special
    j = min(special, drawn)
    term = comb(special, j) * comb(rest, drawn - j)
    tail = term
    while j > 0 and (union * tail) << bits <= whole:
        term = term * j * (rest - drawn + j) // ((special - j + 1) * (drawn - j + 1))
        j -= 1
        tail += term
    return j
