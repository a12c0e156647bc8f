"""One round's training at a site, by strategy: what is sent, and what the site keeps.

all others     the update of the model
fedper, fedbn  the update of what travels; the trained rest is kept (Arivazhagan et al. 2019; Li et al. 2021)
ditto          the update of the common model; a model of the site's own is kept (Li et al. 2021, algorithm 1)
scaffold       the update, of corrected steps; the site's control variate is kept (Karimireddy et al. 2020, option II)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tacit.algorithms import PERSONAL
from tacit.secagg.ring import clip_norm
from tacit.tasks.weights import Arrays

if TYPE_CHECKING:
    from client.participant import Participant

Deltas = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Local:
    """One round at one site.

    Attributes:
        client: the site.
        round: its number.
        arrays: the model that came in.
        before: what the site has kept until now; None = nothing yet.
    """

    client: Participant
    round: int
    arrays: Arrays
    before: Arrays | None

    @cached_property
    def evaluated(self) -> Arrays:
        """The model whose metrics count at this site, before the round: its own, where it has one."""
        name = self.client.run.experiment.strategy.name
        if name == "ditto":
            return self.arrays if self.before is None else self.before
        if name not in PERSONAL:
            return self.arrays
        return {**self.arrays, **(self.client.run.first_own if self.before is None else self.before)}

    def trained(self) -> tuple[Deltas, Deltas]:
        """What is sent, and what the site keeps of it."""
        name = self.client.run.experiment.strategy.name
        if name == "scaffold":
            return self._scaffold()
        if name == "ditto":
            return self._train(self.arrays), self._ditto()
        start = self.evaluated
        delta = self._train(start)
        sent = {name: delta[name] for name in self.arrays}
        return sent, {name: start[name] + delta[name] for name in start if name not in self.arrays}

    def _train(self, start: Arrays, own: str = "", **steps: Any) -> Deltas:
        client = self.client
        trainer, job = client.run.trainer, client.job._replace(site=client.site.label + own)
        train = trainer.steps_from if steps else trainer.train
        return train(start, job, self.round, client.run.keys, **steps)

    def _ditto(self) -> Deltas:
        """v - eta (gradient at v + lambda (v - w)), as many steps as for the common model; draws of their own."""
        own, mu = self.evaluated, self.client.run.experiment.strategy.value("personal_mu")
        delta = self._train(own, own="/own", pull=(mu, self.arrays))
        return {name: own[name] + delta[name] for name in own}

    def _scaffold(self) -> tuple[Deltas, Deltas]:
        """Line 10: y - eta (gradient + c - c_i); line 12, option II, in units of an update: u_i - u - (y - x).

        The variate follows from the update as it is sent, which may have been cut: so does the sum that the server has.
        """
        client, training = self.client, self.client.run.experiment.training
        u, steps = client.variate, training.local_steps * training.learning_rate
        own = (
            {name: np.zeros_like(array) for name, array in u.items()} if self.before is None else self.before
        )
        correction = {name: (u[name] - own[name]) / np.float32(steps) for name in u}
        delta = self._train(self.arrays, correction=correction)
        encoder = client.encoder(self.arrays)
        sent = encoder.layout.unflatten(clip_norm(encoder.layout.flatten(delta), encoder.clip)[0])
        return delta, {name: own[name] - u[name] - sent[name] for name in u}
