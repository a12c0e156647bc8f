"""Parameters, graph and ring (sections 8 and 9 of `docs/protocol.md`)."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, comb, sqrt

from tests.reference.canonical import data, each, h, number, real, require, text
from tests.reference.keys import prg

FORMULAS = " ".join(
    (
        "T = floor((n + c) / 2) + 1; D_eff = min(D, n - T, n - c - 2);",
        "n <= 200: k = n - 1, t = T; else:",
        "c_max = min j: (n - c) P[Hyp(n - 1, c, k) > j] <= 2^-104,",
        "d_max = min j: (n - c) P[Hyp(n - 1, D_eff, k) > j] <= 2^-20,",
        "k = min even k <= n / 2: c_max + d_max < k / 2, t = k / 2 + c_max + 1;",
        "no such k: k = n - 1, t = T;",
        "2^b > 2 (n C_int + 12 z C_int sqrt(n / (n - D_eff - c)));",
        "share = z C_int / sqrt(n - D_eff - c)",
    )
)


@dataclass(frozen=True)
class Rules:
    """c, D, C_int, z and the limits of n (0: none)."""

    c: int
    D: int
    C_int: int
    z: float = 0.0
    n_min: int = 0
    n_max: int = 0

    def canonical(self) -> bytes:
        """The field of an invitation."""
        numbers = each([self.c, self.D, self.C_int])
        return text("tacit-1") + text(FORMULAS) + numbers + real(self.z) + each([self.n_min, self.n_max])


@dataclass(frozen=True)
class Parameters:
    """What n and the rules give."""

    n: int
    T: int
    t: int
    k: int
    b: int
    share: float
    D_eff: int

    @property
    def ring(self) -> bool:
        """Whether the graph is a ring."""
        return self.k < self.n - 1

    @property
    def present(self) -> int:
        """Neighbours that a client must find, itself not counted."""
        return self.t if self.ring else self.t - 1

    def canonical(self) -> bytes:
        """The end of ctx1."""
        return each([self.n, self.T, self.t, self.k, self.b]) + real(self.share) + number(self.D_eff)


def most(population: int, special: int, drawn: int, factor: int, bits: int) -> int:
    """The smallest j with factor * P[Hyp(population, special, drawn) > j] <= 2^-bits, in integers."""
    above, j = 0, min(special, drawn)
    while j > 0:
        more = above + comb(special, j) * comb(population - special, drawn - j)
        if factor * more << bits > comb(population, drawn):
            break
        above, j = more, j - 1
    return j


def ring_of(n: int, c: int, dropouts: int) -> tuple[int, int] | None:
    """k and t of a ring, if there is one."""
    for k in range(2, n // 2 + 1, 2):
        c_max = most(n - 1, c, k, n - c, 104)
        if c_max < k // 2 and c_max + most(n - 1, dropouts, k, n - c, 20) < k // 2:
            return k, k // 2 + c_max + 1
    return None


def allowed_dropouts(n: int, rules: Rules) -> int:
    """D_eff; negative where n is too small."""
    return min(rules.D, n - ((n + rules.c) // 2 + 1), n - rules.c - 2)


def check_rules(rules: Rules) -> None:
    """Rules that a federation can have agreed on."""
    require(rules.c >= 1 and rules.z >= 0 and 1 <= rules.C_int <= 2**24, "rules")
    require(rules.n_max == 0 or rules.n_min <= rules.n_max, "rules")
    require(rules.n_min == 0 or allowed_dropouts(rules.n_min, rules) == rules.D, "rules")


def derive(n: int, rules: Rules) -> Parameters:
    """The parameters of n clients."""
    check_rules(rules)
    require(n >= rules.n_min and (rules.n_max == 0 or n <= rules.n_max), "cohort-size")
    T = (n + rules.c) // 2 + 1
    D_eff = allowed_dropouts(n, rules)
    require(D_eff >= 0, "cohort-size")
    ring = ring_of(n, rules.c, D_eff) if n > 200 else None
    k, t = ring or (n - 1, T)
    sure = n - D_eff - rules.c
    sigma = rules.z * rules.C_int * sqrt(n / sure)
    b = max(8, (2 * (n * rules.C_int + ceil(12 * sigma))).bit_length())
    require(b <= 32, "rules")
    return Parameters(n, T, t, k, b, rules.z * rules.C_int / sqrt(sure), D_eff)


def ring_order(members: list[int], ctx1: bytes) -> list[int]:
    """The members in the order of the ring."""
    order = sorted(members)
    # Words are refused rarely: twice as many as there are places are always enough here.
    words = iter(prg(h("graph", data(ctx1)), 2 * len(order) + 64))
    for i in range(len(order) - 1, 0, -1):
        bound = 2**32 - 2**32 % (i + 1)
        j = next(word for word in words if word < bound) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def neighbours(members: list[int], parameters: Parameters, ctx1: bytes) -> dict[int, list[int]]:
    """The neighbours of each member, by increasing index."""
    if not parameters.ring:
        return {u: [v for v in sorted(members) if v != u] for u in members}
    order, half = ring_order(members, ctx1), parameters.k // 2
    steps = [step for step in range(-half, half + 1) if step]
    return {u: sorted(order[(i + step) % len(order)] for step in steps) for i, u in enumerate(order)}
