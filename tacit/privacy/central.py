"""Noise at a trusted server: the same bound and the same draw as a client's share, placed on the sum.

With `dp_ftrl` it is correlated over rounds (`tacit.privacy.banded`). C times the sums x plus discrete Gaussians z is
the mechanism. Its rows come one by one, and each may depend on what was released before (Denisov et al. 2022, Theorem
2.1). Here that needs no rotation: whoever is left out moves row t of C x by an integer vector, and the squares of
their norms add up to at most k |c|^2 C_int^2 whatever was released; at each order a row costs in proportion to that
square (Canonne, Kamath, Steinke 2020), and so do all together (Feldman and Zrnic 2021, Theorem 3.1). What is released,

    r_t = floor((y_t - c_1 r_(t-1) - ... - c_(p-1) r_(t-p+1)) / c_0 + 1/2)    with y = C x + z, all of it integers,

is made of y and earlier releases alone. x_t is an integer, so that it is also x_t plus the noise

    n_t = floor((z_t - c_1 n_(t-1) - ... - c_(p-1) n_(t-p+1)) / c_0 + 1/2),

and that is how it is computed: exactly, with the rounding of one round taken back in the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tacit.config import Experiment
from tacit.errors import StorageError
from tacit.privacy.banded import UNIT, UNIT_BITS, coefficients, inverse
from tacit.privacy.discrete import add_noise, discrete_gaussian
from tacit.privacy.noise import Keys, SeededKeys, Stream, SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.update import Aggregate, Integers


@dataclass(frozen=True, repr=False)
class Released:
    """What came of a round.

    Attributes:
        round: which one; 0 = none yet.
        total: the sum with its noise; its number of clients is what it is divided by.
        noise: of the last rounds, the newest first; at most bands - 1 of them.
        facts: what the server's record says of the round, as text.
        proof: what the receipt of the sum says, as text; empty where it has none.
    """

    round: int = 0
    total: Aggregate = field(default_factory=lambda: Aggregate(np.zeros(0, dtype=np.int64), 0))
    noise: tuple[Integers, ...] = ()
    facts: str = ""
    proof: str = ""


class NoiseMemory:
    """What a server remembers of its noise from round to round. This one forgets with its process.

    Attributes:
        last: what came of the last round that was kept.
    """

    def __init__(self) -> None:
        self.last = Released()

    def keep(self, released: Released) -> None:
        """Makes a round the last, unless it is. When it returns, and no sooner, anything of its sum may be used."""
        if released.round > self.last.round:
            self._write(released)
            self.last = released

    def _write(self, released: Released) -> None:
        """Called before a round counts as released."""


class NoNoise:
    """What a server does with each sum before anything of it is used: it adds nothing.

    Attributes:
        std: scale of the noise, in integer units.
    """

    std: float = 0.0

    def released(self, round_number: int, size: int) -> Released | None:
        """What a round has released already, so that nobody is asked again; None = nothing.

        Args:
            round_number: of the round that is to be made.
            size: length of its vectors.

        Raises:
            StorageError: no sum of this round can be given its noise.
        """
        return None

    def added(self, aggregate: Aggregate, round_number: int) -> Released:
        """The sum with its noise; each call draws its own."""
        return Released(round_number, aggregate)

    def keep(self, released: Released) -> None:
        """To be called between a sum's noise and its first use; raises `StorageError` where it fails."""


@dataclass(frozen=True)
class CentralNoise(NoNoise):
    """Noise of its own for each sum.

    Attributes:
        std: scale of the noise, in integer units.
        keys: where it comes from.
    """

    std: float = field()  # or the base's 0 were its default
    keys: Keys

    @classmethod
    def of(
        cls, experiment: Experiment, plan: PrivacyPlan, memory: Callable[[], NoiseMemory] = NoiseMemory
    ) -> NoNoise:
        """The noise that the plan asks of the server.

        Args:
            experiment: of the run.
            plan: of the same.
            memory: makes that of noise that is correlated over rounds.
        """
        if plan.client is None or plan.central_noise_multiplier == 0:
            return NoNoise()
        keys = SeededKeys(experiment.seed) if experiment.insecure_seeded_noise else SystemKeys()
        strategy, scale = experiment.strategy, plan.client.share_std
        if strategy.name != "dp_ftrl":
            return cls(scale, keys)
        bands, momentum = int(strategy.value("bands")), strategy.value("server_momentum")
        lasting = inverse(bands, momentum, experiment.training.rounds)
        return CorrelatedNoise(
            std=math.hypot(scale / UNIT * float(np.linalg.norm(lasting)), 1.0),  # 1: of rounding
            keys=keys,
            scale=scale,
            c=coefficients(bands, momentum),
            cohort=experiment.cohort_size,
            memory=memory(),
        )

    def added(self, aggregate: Aggregate, round_number: int) -> Released:
        """See `NoNoise`.

        Guarantees:
            The exact sum is in nothing that this returns.
        """
        stream = Stream(self.keys.key("central", round_number))
        noised = Aggregate(add_noise(aggregate.values, self.std, stream), aggregate.num_clients)
        return Released(round_number, noised)


@dataclass(frozen=True)
class CorrelatedNoise(CentralNoise):
    """The same where each round takes back part of what earlier rounds have added.

    What was kept of a round is what the round is, and nobody is asked for it again. The same noise on two sums would
    give their difference exactly. New noise on a second sum would be another look at the noise of the rounds before,
    for which their clients pay nothing.

    The mean is over a full cohort, also where a client is missing: the noise of a round is taken back in equal units.

    Attributes:
        std: the largest that the noise of a round has, in integer units.
        scale: of z, in units of 2^-8.
        c: first column of C in these units.
        cohort: what a sum is divided by.
        memory: of what was released.

    Guarantees:
        No noise is in two different sums, and no round releases two sums, over attempts, restarts and resumed runs.
        What is released is a function of C times the sums plus discrete Gaussians, exactly.
    """

    scale: float
    c: Integers
    cohort: int
    memory: NoiseMemory

    def released(self, round_number: int, size: int) -> Released | None:
        """See `NoNoise`."""
        last = self.memory.last
        if round_number not in (last.round, last.round + 1):
            raise StorageError(
                f"the noise is that of round {last.round}, and round {round_number} was to be next: put back the "
                "newest copy of the run's folder, or begin a new run"
            )
        if last.round and last.total.values.size != size:
            raise StorageError(
                f"the noise is that of vectors of {last.total.values.size} numbers, and the model's have {size}; has "
                "the task's code changed?"
            )
        return last if last.round == round_number else None

    def added(self, aggregate: Aggregate, round_number: int) -> Released:
        """The sum with this round's noise, or what the round has released already."""
        if (known := self.released(round_number, aggregate.values.size)) is not None:
            return known
        before, stream = self.memory.last, Stream(self.keys.key("correlated", round_number))
        z = discrete_gaussian(stream, aggregate.values.size, self.scale)
        for c, earlier in zip(self.c[1:], before.noise, strict=False):
            z -= c * earlier
        noise = (z + UNIT // 2) >> UNIT_BITS  # rounds down, as floor does
        total = Aggregate(aggregate.values + noise, self.cohort)
        return Released(round_number, total, (noise, *before.noise)[: len(self.c) - 1])

    def keep(self, released: Released) -> None:
        """See `NoNoise`."""
        self.memory.keep(released)
