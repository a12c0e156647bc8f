"""Canary records: made up, told apart by their gradients, and put into training or left out by a coin each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.participant import Participant
from tacit.tasks import Records

# Of a canary's features, in standard deviations of the site's own: the first that makes gradients long enough.
SPREADS: Final = (3.0, 10.0, 30.0, 100.0)
CANDIDATES: Final = 4  # drawn for each canary; those with the longest gradients are taken

Coins = NDArray[np.bool_]
Lengths = Callable[[Records], NDArray[np.float64]]


@dataclass
class Canaries:
    """Some canaries for each site.

    Args:
        counts: how many for each site, by position in the federation.
        seed: of coins and features. They are the auditor's secret, and no noise.
        lengths: of the gradient of each of some records, at the first model, shape (rows,).
        wanted: length from which a gradient that nobody clips cannot be overlooked; 0 where nothing is clipped.
    """

    counts: list[int]
    seed: int
    lengths: Lengths
    wanted: float = 0.0
    _drawn: dict[int, tuple[Records, Records]] = field(default_factory=dict)

    def coins(self, site: int) -> Coins:
        """Who is in; shape (counts[site],)."""
        return self._random(site, 0).random(self.counts[site]) < 0.5

    def of(self, site: int, own: Records) -> tuple[Records, Records]:
        """All canaries of a site, and its own records as they were when the canaries were drawn."""
        if site not in self._drawn:
            random = self._random(site, 1)
            self._drawn[site] = self._longest(own, self.counts[site], random), own
        return self._drawn[site]

    def known(self, site: int) -> tuple[Records, Records]:
        """What `of` has given: the auditor knows all but the coins."""
        return self._drawn[site]

    def give(self, client: Participant) -> None:
        """Has a participant train on its own records and on those of its canaries that are in."""
        honest, site = client.records, client.position

        def records(split: str) -> Records:
            own = honest(split)
            if split != "train":
                return own
            canaries, _ = self.of(site, own)
            chosen = torch.from_numpy(self.coins(site))
            return Records(
                torch.cat([own.features, canaries.features[chosen]]),
                torch.cat([own.targets, canaries.targets[chosen]]),
            )

        setattr(client, "records", records)  # noqa: B010 - of this one site, in this one run

    def _longest(self, own: Records, count: int, random: np.random.Generator) -> Records:
        """Canaries with long gradients: a clip norm that is missing shows in those that it would have cut."""
        for spread in SPREADS:
            drawn = canaries_like(own, CANDIDATES * count, spread, random)
            lengths = self.lengths(drawn)
            longest = torch.from_numpy(np.argsort(-lengths, kind="stable")[:count].copy())
            if count == 0 or lengths[longest].min() >= self.wanted:
                break
        return Records(drawn.features[longest], drawn.targets[longest])

    def _random(self, site: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, site, purpose])


def canaries_like(own: Records, count: int, spread: float, random: np.random.Generator) -> Records:
    """Records that fit the model and look like nobody: Gaussian features of so many spreads, a target at random.

    Features that are whole numbers (codes, tokens) are shuffled between records, each place by itself.
    """
    features, rows = own.features, own.num_rows
    if features.dtype.is_floating_point:
        # Over all features: one that is constant at this site varies elsewhere.
        own_spread = max(float(features.double().std(correction=0)), 1e-3) if rows else 1.0
        drawn = random.standard_normal((count, *features.shape[1:])) * (spread * own_spread)
        made = torch.from_numpy(drawn).to(features.dtype)
    else:
        places = features.reshape(rows, -1)
        chosen = torch.from_numpy(random.integers(rows, size=(count, places.shape[1])))
        made = places.gather(0, chosen).reshape(count, *features.shape[1:])
    return Records(made, _targets(own.targets, count, random))


def _targets(targets: Tensor, count: int, random: np.random.Generator) -> Tensor:
    """Classes at random among those that are there (0 and 1 at least); else targets of records at random."""
    if targets.ndim == 1 and not targets.dtype.is_floating_point:
        most = max(int(targets.max()) if len(targets) else 0, 1)
        return torch.from_numpy(random.integers(most + 1, size=count)).to(targets.dtype)
    return targets[torch.from_numpy(random.integers(len(targets), size=count))]
