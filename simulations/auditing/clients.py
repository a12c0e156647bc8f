"""Canary clients: members of the federation that a coin has send a random vector as long as it may be, or zeros.

That is the neighbouring relation of a promise for clients. From one training come two figures: the bound of Steinke et
al. (2023) from guessed coins, and the estimate of Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar ("One-shot empirical
privacy estimation for federated learning", ICLR 2024) from the cosines of canaries with what was released. Theirs is
for one vector a client; here a canary sends a fresh direction in each round that it is in, so that all rounds speak.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.participant import Participant
from server.state import RunState, read_rounds
from simulations.auditing.decoding import Decoder, coordinates, cut
from simulations.auditing.one_run import Scores, attack_of
from simulations.auditing.watched import attempt, divided, train
from simulations.partition.folders import write_site
from simulations.run import write_policy
from tacit.config import Experiment, Federation, Site
from tacit.errors import ConfigError
from tacit.privacy.audit_estimates import mu_of, two_gaussians_epsilon
from tacit.privacy.plan import PrivacyPlan
from tacit.report.audit_record import Attack
from tacit.tasks import load_task
from tacit.tasks.weights import Arrays, build_model, initial_arrays
from tacit.update import LocalUpdate

CLIENTS: Final = 200
FEWEST: Final = 20
MANY: Final = 500
VIEW: Final = "the model after every round; all updates but those of the canaries"
TOO_LONG: Final = 100.0  # a canary's update, in clip norms: the client itself cuts it


@dataclass
class CanaryClients:
    """The last `count` members of a federation of `sites` real ones.

    Args:
        sites: how many real sites come before them.
        count: how many canaries.
        clip: norm that an update is cut at.
        seed: of coins and directions.
    """

    sites: int
    count: int
    clip: float
    seed: int
    honest: dict[int, dict[int, tuple[float, Scores]]] = field(default_factory=dict)

    @property
    def coins(self) -> NDArray[np.bool_]:
        """Which canaries send something, shape (count,)."""
        return np.random.default_rng([self.seed, 0]).random(self.count) < 0.5

    def direction(self, canary: int, round_number: int, size: int) -> Scores:
        """The unit vector of a canary in a round, uniform on the sphere; shape (size,)."""
        drawn = np.random.default_rng([self.seed, 1, canary, round_number]).standard_normal(size)
        return np.asarray(drawn / np.linalg.norm(drawn))

    def replace(self, client: Participant) -> None:
        """Has a canary send what its coin says; of a real site keeps what it sends, for the auditor knows that."""
        honest, canary = client.update, client.position - self.sites

        def update(run_id: str, round_number: int, arrays: Arrays) -> LocalUpdate:
            layout = client.run.encoder(arrays).layout
            if canary < 0:
                released = honest(run_id, round_number, arrays)
                flat = cut(layout.flatten(released.delta)[None], self.clip)[0]
                self.honest.setdefault(round_number, {})[client.position] = released.weight, flat
                return released
            length = TOO_LONG * self.clip * bool(self.coins[canary])
            vector = length * self.direction(canary, round_number, layout.model_size)
            return LocalUpdate(layout.unflatten(vector), client.weight, dict.fromkeys(layout.metrics, 0.0))

        setattr(client, "update", update)  # noqa: B010 - of this one site, in this one run


def audit_clients(
    experiment: Experiment,
    out: Path,
    canaries: int = 0,
    *,
    seed: int,
    guesses: int = 0,
    on_part: Callable[[str], None] = lambda part: None,
) -> Attack:
    """Trains once with canary clients beside the real ones, guesses their coins, and bounds epsilon.

    Args:
        experiment: what is audited.
        out: folder of this attack.
        canaries: how many; 0 = 200, or as many as delta allows.
        seed: of coins and directions.
        guesses: how many coins are guessed; 0 = a tenth, and 50 at least.
        on_part: told the name of each part.

    Raises:
        ConfigError: delta allows too few members.
    """
    folder = attempt(out)
    on_part("dividing the data among sites")
    prepared = divided(experiment, out)
    real = len(prepared.experiment.federation.sites)
    joined = with_clients(prepared.experiment, how_many(prepared.experiment, canaries))
    members = CanaryClients(
        real, len(joined.federation.sites) - real, joined.secure_aggregation.update_clip, seed
    )
    for site in joined.federation.sites[real:]:
        number = joined.federation.sites.index(site)
        target = prepared.folder / str(number)
        example = prepared.data_path(0)
        write_site(target, joined, site.label, data=example.name, durable=False)
        shutil.copyfile(example, target / example.name)  # never read
        write_policy(target, joined)
    on_part(f"training with {members.count} canary clients")
    state = train(prepared, joined, out, members.replace)
    on_part("guessing coins")
    plan = PrivacyPlan.of(joined)
    scores, cosines = score(joined, plan, members, state)
    here, away = cosines[members.coins], cosines[~members.coins]
    attack = attack_of("clients", plan, scores, members.coins, guesses=guesses, view=VIEW, seconds=0.0)
    estimate = estimated(here, away, attack.delta)
    return attack.model_copy(update={"estimate": estimate, "seconds": folder.seconds})


def estimated(here: Scores, away: Scores, delta: float) -> float:
    """Epsilon if cosines are Gaussian. Variances of few canaries are too uncertain to be told apart: they get one."""
    if min(here.size, away.size) < MANY:
        return mu_of(here, away).epsilon(delta)
    moments = [(float(s.mean()), max(float(s.std(ddof=1)), 1e-12)) for s in (away, here)]
    return two_gaussians_epsilon(moments[0], moments[1], delta)


def how_many(experiment: Experiment, wanted: int) -> int:
    """Canary clients that the federation has room for: delta stays below one over its members."""
    budget, sites = experiment.privacy.client, len(experiment.federation.sites)
    room = math.inf if budget is None else math.ceil(1 / budget.delta) - 1 - sites
    number = min(wanted or CLIENTS, room)
    if number < FEWEST:
        raise ConfigError(
            f"leaves room for {max(0, int(number))} canary clients, {FEWEST} are needed: try a smaller one",
            key="privacy.client.delta",
        )
    return int(number)


def with_clients(experiment: Experiment, count: int) -> Experiment:
    """The experiment with `count` members more; a cohort keeps its share of all members."""
    sites, training = experiment.federation.sites, experiment.training
    rows = max(site.rows for site in sites)
    more = tuple(Site(label=f"canary-{i:04d}", rows=rows) for i in range(count))
    cohort = math.ceil(training.clients_per_round * (len(sites) + count) / len(sites))
    return experiment.with_tables(
        federation=Federation(sites=(*sites, *more)),
        training=training.model_copy(update={"clients_per_round": cohort}),
    )


def score(
    experiment: Experiment, plan: PrivacyPlan, members: CanaryClients, state: RunState
) -> tuple[Scores, Scores]:
    """The decoder's score and the cosine of each canary, shape (count,) each."""
    private = plan.max_grad_norm is not None
    task = load_task(experiment)
    names = list(build_model(task, private=private).state_dict())
    before: Arrays = initial_arrays(task, private=private, seed=experiment.seed)
    names = [name for name in names if name in before]
    labels = [site.label for site in experiment.federation.sites]
    decoder, dots, square, rounds = Decoder(members.count), np.zeros(members.count), 0.0, 0
    for row in read_rounds(state.folder / "rounds.jsonl"):
        number = int(row["round"])
        after = state.model_of(number)
        step = np.concatenate([np.ravel(after[name] - before[name]) for name in names]).astype(np.float64)
        known = members.honest.get(number, {})
        present = [labels.index(label) for label in row["survivors"]]
        here = [site - members.sites for site in present if site >= members.sites]
        weight = len(here) + sum(known[site][0] for site in present if site in known)
        others = sum((w * flat for w, flat in known.values()), np.zeros(step.size))
        chosen = coordinates(step.size)
        directions = np.zeros((members.count, step[chosen].size))
        for canary in here:
            directions[canary] = members.clip * members.direction(canary, number, step.size)[chosen]
        observed = (weight * step - others)[chosen]
        decoder.add(directions / 2, observed - directions.sum(axis=0) / 2)
        dots += directions @ observed / members.clip
        square, rounds, before = square + float(observed @ observed), rounds + 1, after
    return decoder.estimates(), dots / math.sqrt(max(square * rounds, 1e-30))
