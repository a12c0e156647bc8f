"""Noise at a trusted server: the same bound and the same draw as a client's share, placed on the sum."""

from __future__ import annotations

from dataclasses import dataclass

from tacit.config import Experiment
from tacit.privacy.discrete import add_noise
from tacit.privacy.noise import Keys, SeededKeys, Stream, SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.update import Aggregate


@dataclass(frozen=True)
class CentralNoise:
    """What the server adds to each sum before anything of it is used.

    Attributes:
        std: scale of the noise, in integer units.
        keys: where it comes from.
    """

    std: float
    keys: Keys

    @classmethod
    def of(cls, experiment: Experiment, plan: PrivacyPlan) -> CentralNoise | None:
        """The noise that the plan asks of the server; None where it asks for none."""
        if plan.central_noise_multiplier == 0:
            return None
        seeded = experiment.insecure_seeded_noise
        return cls(
            plan.central_noise_multiplier * 2**experiment.secure_aggregation.precision_bits,
            SeededKeys(experiment.seed) if seeded else SystemKeys(),
        )

    def added(self, aggregate: Aggregate, round_number: int) -> Aggregate:
        """The sum with noise; each call draws its own.

        Guarantees:
            The exact sum is in nothing that this returns.
        """
        stream = Stream(self.keys.key("central", round_number))
        return Aggregate(add_noise(aggregate.values, self.std, stream), aggregate.num_clients)
