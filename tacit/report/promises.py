"""From a run's plan and ledgers to the entries of its promises: one per unit of privacy, each with its own figures."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable, Sequence

from tacit.config import Experiment
from tacit.learning import SYNTHESIS
from tacit.privacy.client_plan import ClientPlan
from tacit.privacy.ledger import Entry
from tacit.privacy.plan import SUM, PrivacyPlan
from tacit.report.record import PrivacyEntry, SecureSum, Unit
from tacit.report.wording import KEPT, RELATIONS, not_covered, trusted


def privacy_entries(
    experiment: Experiment,
    plan: PrivacyPlan,
    ledgers: Iterable[Sequence[Entry]] | None,
    *,
    secure: SecureSum,
    simulation: bool,
) -> tuple[PrivacyEntry, ...]:
    """What the run promises for each unit, and what the site that paid most has paid.

    Args:
        experiment: whose plan it is.
        plan: what is promised.
        ledgers: the entries of each site's ledger that belong to this run; None = they are with the sites.
        secure: how updates were added up.
        simulation: one machine had all rows.
    """
    if not plan.is_private:
        return (PrivacyEntry.nothing(),)
    paid = None if ledgers is None else list(ledgers)
    entries = []
    if plan.unit == "record":
        entries.append(_record(experiment, plan, _most(paid, "training"), simulation))
    if plan.client is not None:
        entries.append(_client(experiment, plan.client, _most(paid, SUM), secure, simulation))
    return tuple(_void(entry) if experiment.insecure_seeded_noise else entry for entry in entries)


def _most(ledgers: Sequence[Sequence[Entry]] | None, purpose: str) -> int | None:
    """Debits for a purpose at the site that made most of them; None where nobody here can know."""
    if ledgers is None:
        return None
    return max((sum(entry.purpose == purpose for entry in entries) for entries in ledgers), default=0)


def _with_kept(unit: Unit, experiment: Experiment, simulation: bool) -> tuple[str, ...]:
    """The standard exclusions, and what is to be said of what sites keep for themselves."""
    kept = KEPT.get((unit, experiment.strategy.name))
    return (*not_covered(unit, simulation=simulation), *([kept] if kept else []))


_DP_SGD = "DP-SGD: Poisson-sampled, clipped per record, Gaussian noise at the site in every step"
_FOLLOWS = (
    ". So the discriminator is trained; the generator is trained by it alone, sees no record and costs nothing "
    "(post-processing)"
)


def _record(experiment: Experiment, plan: PrivacyPlan, debits: int | None, simulation: bool) -> PrivacyEntry:
    return PrivacyEntry(
        unit="record",
        relation=RELATIONS["record"],
        epsilon=plan.epsilon,
        delta=plan.delta,
        target_epsilon=plan.target_epsilon,
        accountant=_method(plan.accountant),
        noise_multiplier=plan.noise_multiplier,
        debits=plan.debits,
        trusted=trusted("record"),
        not_covered=_with_kept("record", experiment, simulation),
        mechanism=_DP_SGD + _FOLLOWS * (experiment.task.kind in SYNTHESIS),
        epsilon_spent=None if debits is None else plan.epsilon_after(debits),
    )


def _client(
    experiment: Experiment, plan: ClientPlan, debits: int | None, secure: SecureSum, simulation: bool
) -> PrivacyEntry:
    clipped = "each client's vector is cut at the clip norm and rounded to integers"
    strategy = experiment.strategy
    if strategy.name == "dp_ftrl":
        how = (
            f"{clipped}; the server adds noise to their sum that is made of discrete Gaussians and correlated over "
            f"{strategy.value('bands')} rounds (DP-FTRL). A client is in a sum at most once in {strategy.separation} "
            "rounds, which sites enforce, and the noise is over what its vector changes in all rounds together"
        )
    elif plan.placement == "central":
        how = f"{clipped}; the server adds discrete Gaussian noise to their sum"
    else:
        how = (
            f"{clipped}, and each client adds discrete Gaussian noise to its own; the noise of "
            f"{plan.num_shares} clients is counted, which is what is left when all that may vanish or collude do"
        )
    if strategy.name == "fedbuff":
        how += f". A client is in a sum at most once in {strategy.separation} rounds, which sites enforce"
    return PrivacyEntry(
        unit="client",
        relation=RELATIONS["client"],
        epsilon=plan.epsilon,
        delta=plan.delta,
        target_epsilon=plan.target_epsilon,
        accountant=_method("RDP"),
        noise_multiplier=plan.noise_multiplier,
        debits=plan.debits,
        trusted=trusted("client", noise=plan.placement, secure=secure),
        not_covered=_with_kept("client", experiment, simulation),
        mechanism=how,
        epsilon_spent=None if debits is None else plan.epsilon_after(debits),
        epsilon_replaced=plan.epsilon_replaced,
        max_colluding=experiment.secure_aggregation.max_corrupt if plan.placement == "distributed" else None,
    )


def _void(entry: PrivacyEntry) -> PrivacyEntry:
    """The same entry where the noise can be drawn again from a seed."""
    infinite = {"epsilon": math.inf, "epsilon_spent": math.inf, "epsilon_replaced": None}
    return entry.model_copy(update={**infinite, "epsilon_if_os_noise": entry.epsilon})


def _method(name: str) -> str:
    return f"{name} (dp-accounting {importlib.metadata.version('dp-accounting')})"
