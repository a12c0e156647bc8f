"""What the size of a cohort decides: thresholds, word width, noise. Derived on both sides, never sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite, sqrt
from typing import Final

from tacit.config import SecureAggregation
from tacit.errors import ConfigError, ProtocolError
from tacit.secagg.degree import FAILURE_BITS, PRIVACY_BITS, ring_degree
from tacit.secagg.encoding import Reader, Writer
from tacit.secagg.ring import bits_for

PROTOCOL: Final = "tacit-1"
MAX_COMPLETE: Final = 200  # the largest cohort in which everyone is always everyone's neighbour
_RULES: Final = (
    "T = floor((n + c) / 2) + 1; D_eff = min(D, n - T, n - c - 2); "
    f"n <= {MAX_COMPLETE}: k = n - 1, t = T; "
    f"else: c_max = min j: (n - c) P[Hyp(n - 1, c, k) > j] <= 2^-{PRIVACY_BITS}, "
    f"d_max = min j: (n - c) P[Hyp(n - 1, D_eff, k) > j] <= 2^-{FAILURE_BITS}, "
    "k = min even k <= n / 2: c_max + d_max < k / 2, t = k / 2 + c_max + 1; no such k: k = n - 1, t = T; "
    "2^b > 2 (n C_int + 12 z C_int sqrt(n / (n - D_eff - c))); share = z C_int / sqrt(n - D_eff - c)"
)


@dataclass(frozen=True)
class Parameters:
    """The numbers of one cohort.

    Attributes:
        n: clients that sent keys.
        threshold: T, confirmations that release a sum.
        share_threshold: t, shares that open a secret.
        neighbours: k, peers that a client shares masks with; n - 1 is the complete graph.
        bits: b, width of a word.
        max_dropouts: D_eff, clients that may vanish once keys are sent.
        noise_share: standard deviation of the noise that each client adds, in integer units.
    """

    n: int
    threshold: int
    share_threshold: int
    neighbours: int
    bits: int
    max_dropouts: int
    noise_share: float

    @property
    def complete(self) -> bool:
        """Whether everyone is everyone's neighbour."""
        return self.neighbours == self.n - 1

    @property
    def present(self) -> int:
        """Neighbours that a client must find in U2 and in U3, itself not counted.

        On the ring t: that keeps its honest survivors in one piece. On the complete graph the client is itself
        one of the t that the rule |U2| >= n - D_eff >= T makes sure of anyway.
        """
        return self.share_threshold - 1 if self.complete else self.share_threshold

    def write(self, writer: Writer) -> None:
        """n, T, t, k, b, noise, D_eff."""
        for number in (self.n, self.threshold, self.share_threshold, self.neighbours, self.bits):
            writer.number(number)
        writer.real(self.noise_share).number(self.max_dropouts)


@dataclass(frozen=True)
class Rules:
    """What a federation agreed on for every cohort.

    Attributes:
        max_corrupt: c, members that may collude with the server; at least 1.
        max_dropouts: D, invited clients that may vanish.
        c_int: integer units that stand for the clip norm.
        noise_multiplier: z of noise inside the sum; 0 = none.
        min_cohort: n_min, the smallest cohort that is summed; 0 = what c allows.
        max_cohort: n_max, the largest; 0 = what a word of 32 bits allows.
        allow_no_corrupt: test switch that lets c be 0, so that two clients can be summed.
    """

    max_corrupt: int
    max_dropouts: int
    c_int: int
    noise_multiplier: float = 0.0
    min_cohort: int = 0
    max_cohort: int = 0
    allow_no_corrupt: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_corrupt < (0 if self.allow_no_corrupt else 1):
            raise ConfigError("must be at least 1", key="secure_aggregation.max_corrupt")
        if self.max_dropouts < 0:
            raise ConfigError("must be at least 0", key="secure_aggregation.max_dropouts")
        if not 1 <= self.c_int <= 2**24:
            raise ConfigError("an update has 1 to 2^24 integer units")
        if not (isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ConfigError("the noise multiplier must be a finite number of 0 or more")
        if self.min_cohort < 0 or self.max_cohort < 0 or 0 < self.max_cohort < self.min_cohort:
            raise ConfigError("the smallest and the largest cohort must be 0 or in that order")
        if self.min_cohort and self._dropouts(self.min_cohort) != self.max_dropouts:
            raise ConfigError(f"a cohort of {self.min_cohort} cannot lose {self.max_dropouts} clients")

    @classmethod
    def of(cls, settings: SecureAggregation, noise_multiplier: float = 0.0) -> Rules:
        """The rules of an experiment."""
        return cls(settings.max_corrupt, settings.max_dropouts, 2**settings.precision_bits, noise_multiplier)

    def fewest(self, num_invited: int) -> int:
        """The smallest cohort that may go on: all but D, n_min, and never without two honest vectors."""
        return max(num_invited - self.max_dropouts, self.max_corrupt + 2, self.min_cohort)

    def parameters(self, n: int) -> Parameters:
        """What follows for a cohort of n.

        Raises:
            ConfigError: n is outside the federation's limits, leaves no threshold or fewer than two honest
                vectors, or no word is wide enough.
        """
        return _parameters(self, n)

    def _dropouts(self, n: int) -> int:
        """D_eff, negative where n is too small."""
        return min(self.max_dropouts, n - _threshold(n, self.max_corrupt), n - self.max_corrupt - 2)

    def write(self, writer: Writer) -> Writer:
        """The formulas and their constants."""
        writer.text(PROTOCOL).text(_RULES)
        writer.number(self.max_corrupt).number(self.max_dropouts).number(self.c_int)
        writer.real(self.noise_multiplier)
        return writer.number(self.min_cohort).number(self.max_cohort)

    @classmethod
    def read(cls, reader: Reader) -> Rules:
        """The reverse of `write`. A c of 0 is read: who takes rules from the wire refuses it.

        Raises:
            ProtocolError: other formulas than ours, or constants that no federation can have agreed on.
        """
        if reader.text() != PROTOCOL or reader.text() != _RULES:
            raise ProtocolError("rules", "the peer derives its parameters by other rules")
        c, dropouts, c_int, noise = reader.number(), reader.number(), reader.number(), reader.real()
        fewest, most = reader.number(), reader.number()
        try:
            return cls(c, dropouts, c_int, noise, fewest, most, allow_no_corrupt=c == 0)
        except ConfigError as error:
            raise ProtocolError("rules", error.reason) from None


def _threshold(n: int, c: int) -> int:
    """T: two sets of T clients of n have an honest one in common."""
    return (n + c) // 2 + 1


@lru_cache(maxsize=64)
def _parameters(rules: Rules, n: int) -> Parameters:
    """`Rules.parameters`, kept: a ring takes a moment to size."""
    c, dropouts, threshold = rules.max_corrupt, rules._dropouts(n), _threshold(n, rules.max_corrupt)
    if n < rules.min_cohort or 0 < rules.max_cohort < n:
        raise ConfigError(
            f"{n} clients, the federation allows {rules.min_cohort} to {rules.max_cohort or 'any'}"
        )
    if dropouts < 0:
        raise ConfigError(f"{n} clients are too few for {c} corrupt ones and 2 honest vectors")
    bits = bits_for(n, dropouts, c, rules.c_int, rules.noise_multiplier)
    share = rules.noise_multiplier * rules.c_int / sqrt(n - dropouts - c)
    ring = ring_degree(n, c, dropouts) if n > MAX_COMPLETE else None
    degree, share_threshold = ring or (n - 1, threshold)
    return Parameters(n, threshold, share_threshold, degree, bits, dropouts, share)
