"""One training, many canary records, and as many coins: how often does an auditor guess right?

Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023. The auditor sees every update of
every site, which is what a promise for records covers: an update is private before it leaves its site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.participant import Participant
from client.schedule import learning_rate
from simulations.auditing.canaries import Canaries, Lengths
from simulations.auditing.decoding import Decoder, coordinates, cut, gradients
from simulations.auditing.watched import Seen, attempt, divided, train, watching, with_rows
from tacit.config import Experiment
from tacit.privacy.audit_bounds import CONFIDENCE, one_run_bound
from tacit.privacy.plan import PrivacyPlan
from tacit.report.audit_record import Attack, Method
from tacit.report.record import Unit
from tacit.tasks import Records, Task, load_task
from tacit.tasks.transfer import rate_factors
from tacit.tasks.weights import build_model, initial_arrays, load_arrays

CANARIES: Final = 1000
DELTA: Final = 1e-5  # of the bound, where nothing is claimed
LONG: Final = 10.0  # a canary's gradient before it is clipped, at least, in standard deviations of the noise
MOST_OTHERS: Final = 1000  # records of a site whose draws are estimated too; of more they count as noise
VIEW: Final = "every update of every site, in every round; all records but the coins"

Scores = NDArray[np.float64]
OnPart = Callable[[str], None]


def audit_records(
    experiment: Experiment,
    out: Path,
    canaries: int = 0,
    *,
    seed: int,
    guesses: int = 0,
    on_part: OnPart = lambda part: None,
) -> Attack:
    """Trains once with canary records at every site, guesses their coins from the updates, and bounds epsilon.

    Args:
        experiment: what is audited.
        out: folder of this attack.
        canaries: how many over all sites; 0 = as many as the updates can tell apart, at most 1000.
        seed: of coins and canaries.
        guesses: how many coins are guessed; 0 = a tenth, and 50 at least.
        on_part: told the name of each part.
    """
    folder = attempt(out)
    on_part("dividing the data among sites")
    prepared = divided(experiment, out)
    resolved = prepared.experiment
    task = load_task(resolved)
    counts = shares(canaries or told_apart(resolved, task), len(resolved.federation.sites))
    plan = PrivacyPlan.of(resolved)
    wanted = LONG * plan.noise_multiplier * (plan.max_grad_norm or 0.0)
    drawn = Canaries(counts, seed, first_lengths(resolved, task), wanted)
    rows = [site.rows + n / 2 for site, n in zip(resolved.federation.sites, counts, strict=True)]
    resolved = with_rows(resolved, rows)
    updates: list[Seen] = []
    watch = watching(updates)

    def prepare(client: Participant) -> None:
        drawn.give(client)
        watch(client)

    on_part("training with canary records")
    train(prepared, resolved, out, prepare)
    on_part("guessing coins")
    scores = score(resolved, task, drawn, updates)
    coins = np.concatenate([drawn.coins(i) for i in range(len(counts))])
    return attack_of(
        "one-run", plan, np.concatenate(scores), coins, guesses=guesses, view=VIEW, seconds=folder.seconds
    )


def told_apart(experiment: Experiment, task: Task) -> int:
    """How many canaries the updates of all sites have room for: half as many as they have coordinates."""
    parameters = sum(p.numel() for p in task.model().parameters() if p.requires_grad)
    return min(CANARIES, max(20, len(experiment.federation.sites) * parameters // 2))


def first_lengths(experiment: Experiment, task: Task) -> Lengths:
    """How long the gradients of records are at the model that the training begins with."""
    private = experiment.privacy.record is not None
    model = build_model(task, private=private)
    load_arrays(model, initial_arrays(task, private=private, seed=experiment.seed))

    def lengths(records: Records) -> Scores:
        return np.asarray(np.linalg.norm(gradients(model, task, records, None), axis=1), np.float64)

    return lengths


def shares(total: int, sites: int) -> list[int]:
    """A total in parts that differ by one at most."""
    return [total // sites + (i < total % sites) for i in range(sites)]


def score(experiment: Experiment, task: Task, canaries: Canaries, updates: Sequence[Seen]) -> list[Scores]:
    """The score of each canary, site by site."""
    plan = PrivacyPlan.of(experiment)
    clip = plan.max_grad_norm
    model = build_model(task, private=clip is not None)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    factors = rate_factors(model, experiment.training.rate_factors)
    scores = [np.zeros(count) for count in canaries.counts]
    for seen in updates:
        count = canaries.counts[seen.site]
        if not count:
            continue
        load_arrays(model, seen.arrays)
        own, others = (gradients(model, task, records, None) for records in canaries.known(seen.site))
        rate = learning_rate(experiment.training, seen.round)
        normaliser = plan.sampling_rate * experiment.federation.sites[seen.site].rows
        flat = np.concatenate([np.ravel(seen.delta[name]) / factors[name] for name in names])
        moved = -flat[coordinates(flat.size)] * normaliser / max(rate * plan.steps_per_round, 1e-12)
        # Nobody's word is taken for the clipping either: what was released says which it was.
        guesses = [
            decoded(plan, cut(own, bound), cut(others, bound), moved) for bound in dict.fromkeys((clip, None))
        ]
        scores[seen.site] += min(guesses, key=lambda guess: guess[1])[0]
    return scores


def decoded(plan: PrivacyPlan, canaries: Scores, others: Scores, observed: Scores) -> tuple[Scores, float]:
    """How often each canary was drawn into the batches of a round, less what is expected; and the surprise.

    A record that is in is in a share of the K batches that has mean q and variance q (1 - q) / K.
    """
    q = plan.sampling_rate
    drawn = q * (1 - q) / plan.steps_per_round
    by_coin = math.sqrt((drawn + q * q) / 2 - q * q / 4)
    directions = [by_coin * canaries]
    if drawn and len(others) <= MOST_OTHERS:
        directions.append(math.sqrt(drawn) * others)
    together = np.concatenate(directions)
    decoder = Decoder(len(together))
    decoder.add(together, observed - q * others.sum(axis=0) - q / 2 * canaries.sum(axis=0))
    estimates, surprise = decoder.solution()
    return estimates[: len(canaries)], surprise


def attack_of(
    method: Method,
    plan: PrivacyPlan,
    scores: Scores,
    coins: NDArray[np.bool_],
    *,
    guesses: int = 0,
    view: str,
    seconds: float,
) -> Attack:
    """The result of guesses: half of them "in", at the highest scores, half of them "out", at the lowest."""
    number = min(
        guesses or max(50, coins.size // 10), 2 * coins.size // 3
    )  # coins need not fall half and half
    ranked = np.argsort(scores, kind="stable")
    lowest, highest = ranked[: number // 2], ranked[ranked.size - (number - number // 2) :]
    correct = int(coins[highest].sum() + (~coins[lowest]).sum())
    unit, epsilon, delta = claim_of(plan, method)
    return Attack(
        method=method,
        unit=unit,
        claim=epsilon,
        delta=delta,
        canaries=coins.size,
        guesses=number,
        correct=correct,
        lower_bound=one_run_bound(correct, number, coins.size, delta),
        confidence=CONFIDENCE,
        scores_in=tuple(scores[coins].tolist()),
        scores_out=tuple(scores[~coins].tolist()),
        view=view,
        seconds=seconds,
    )


def claim_of(plan: PrivacyPlan, method: Method) -> tuple[Unit, float, float]:
    """Unit, epsilon and delta that an attack is held against."""
    if method == "clients":
        client = plan.client
        return ("none", math.inf, DELTA) if client is None else ("client", client.epsilon, client.delta)
    return ("record", plan.epsilon, plan.delta) if plan.unit == "record" else ("none", math.inf, DELTA)
