"""What the size of a cohort decides: thresholds, word width, noise. Derived on both sides, never sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Final

from tacit.config import SecureAggregation
from tacit.errors import ConfigError, ProtocolError
from tacit.secagg.encoding import Reader, Writer
from tacit.secagg.ring import bits_for

PROTOCOL: Final = "preview"
_RULES: Final = (
    "T = floor((n + c) / 2) + 1; t = T; k = n - 1; D_eff = min(D, n - T, n - c - 2); "
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
        allow_no_corrupt: test switch that lets c be 0, so that two clients can be summed.
    """

    max_corrupt: int
    max_dropouts: int
    c_int: int
    noise_multiplier: float = 0.0
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

    @classmethod
    def of(cls, settings: SecureAggregation, noise_multiplier: float = 0.0) -> Rules:
        """The rules of an experiment."""
        return cls(settings.max_corrupt, settings.max_dropouts, 2**settings.precision_bits, noise_multiplier)

    def fewest(self, num_invited: int) -> int:
        """The smallest cohort that may go on: all but D, and never without two honest vectors."""
        return max(num_invited - self.max_dropouts, self.max_corrupt + 2)

    def parameters(self, n: int) -> Parameters:
        """What follows for a cohort of n.

        Raises:
            ConfigError: n leaves no threshold, or fewer than two honest vectors, or no word is wide enough.
        """
        c = self.max_corrupt
        threshold = (n + c) // 2 + 1
        dropouts = min(self.max_dropouts, n - threshold, n - c - 2)
        if dropouts < 0:
            raise ConfigError(f"{n} clients are too few for {c} corrupt ones and 2 honest vectors")
        bits = bits_for(n, dropouts, c, self.c_int, self.noise_multiplier)
        share = self.noise_multiplier * self.c_int / sqrt(n - dropouts - c)
        return Parameters(n, threshold, threshold, n - 1, bits, dropouts, share)

    def write(self, writer: Writer) -> None:
        """The formulas and their constants."""
        writer.text(PROTOCOL).text(_RULES)
        writer.number(self.max_corrupt).number(self.max_dropouts).number(self.c_int)
        writer.real(self.noise_multiplier)

    @classmethod
    def read(cls, reader: Reader) -> Rules:
        """The reverse of `write`. A c of 0 is read: who takes rules from the wire refuses it.

        Raises:
            ProtocolError: other formulas than ours, or constants that no federation can have agreed on.
        """
        if reader.text() != PROTOCOL or reader.text() != _RULES:
            raise ProtocolError("rules", "the peer derives its parameters by other rules")
        c, dropouts, c_int, noise = reader.number(), reader.number(), reader.number(), reader.real()
        try:
            return cls(c, dropouts, c_int, noise, allow_no_corrupt=c == 0)
        except ConfigError as error:
            raise ProtocolError("rules", error.reason) from None
