"""Whether a federation can run an experiment: said at `tacit submit`, not by each site in the first round."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf
from pathlib import Path

from server.epochs import in_force, proposal
from server.provisioning import CoordinatorKit
from tacit.config import Experiment, Federation, Site
from tacit.errors import ConfigError, ProtocolError
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.contexts import schema_digest
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import Roster


def ready_for(experiment: Experiment, kit: Path) -> Experiment:
    """The experiment as this federation runs it: with its sites declared.

    Raises:
        ConfigError: it cannot; names the key.
    """
    roster = roster_of(kit)
    if not experiment.federation.sites:
        experiment = experiment.with_tables(federation=declared(roster))
    check_kind(experiment)
    check_sites(experiment, roster)
    check_rules(experiment, roster)
    return experiment


def are_enough(experiment: Experiment, online: set[str] | frozenset[str]) -> bool:
    """Whether a round could be made of the sites that are connected; where sites take turns, of those of each turn.

    Args:
        experiment: with its sites declared.
        online: their labels.
    """
    size, secure, separation = (
        experiment.cohort_size,
        experiment.secure_aggregation,
        experiment.strategy.separation,
    )
    fewest = min(Rules.of(secure).fewest(size), size) if secure.enabled else size
    labels = [site.label for site in experiment.federation.sites]
    return all(len(online.intersection(labels[turn::separation])) >= fewest for turn in range(separation))


def roster_of(folder: Path) -> Roster:
    """The members of the epoch that counts, or while the first is being signed, of that.

    Raises:
        ConfigError: there is none yet.
        StorageError: a file is damaged.
    """
    kit = CoordinatorKit.open(folder)
    signed = in_force(kit) or proposal(kit)
    if signed is None:
        raise ConfigError("no roster yet: tacit provision collect makes it", source=folder)
    return signed.roster


def declared(roster: Roster) -> Federation:
    """All members who may take part today, with the sizes that they have declared."""
    usable = _usable(roster)
    if empty := [label for label, rows in usable.items() if not rows]:
        raise ConfigError(f"declare no rows: {', '.join(empty)}", key="federation.sites")
    return Federation(sites=tuple(Site(label=label, rows=rows) for label, rows in usable.items()))


def check_kind(experiment: Experiment) -> None:
    """Raises `ConfigError` for what only a simulation can do."""
    if experiment.simulation.faults:
        raise ConfigError("real sites play no faults: tacit simulate does", key="simulation.faults")
    if experiment.secure_aggregation.enabled and experiment.secure_aggregation.engine != "protocol":
        raise ConfigError('must be "protocol": "ideal" is for simulations', key="secure_aggregation.engine")
    if experiment.task.is_tabular and experiment.data.columns is None:
        raise ConfigError(
            "is needed: no site can infer what all of them have. tacit partition and tacit simulate write it out",
            key="data.schema",
        )


def check_sites(experiment: Experiment, roster: Roster) -> None:
    """Raises `ConfigError` unless every declared site is a member that may take part, with the size it declared."""
    usable = _usable(roster)
    for site in experiment.federation.sites:
        if site.label not in usable:
            raise ConfigError(f"the roster has no {site.label!r} that may take part", key="federation.sites")
        if site.rows != usable[site.label]:
            raise ConfigError(
                f"{site.label!r} declared {usable[site.label]} rows in the roster, not {site.rows}",
                key="federation.sites",
            )


def check_rules(experiment: Experiment, roster: Roster) -> None:
    """Raises `ConfigError` when the members would refuse the experiment's numbers."""
    secure, privacy = experiment.secure_aggregation, experiment.privacy
    plan = PrivacyPlan.of(experiment)
    if not secure.enabled:
        return
    size = experiment.cohort_size
    if not roster.n_min <= size <= roster.n_max:
        raise ConfigError(
            f"a cohort of {size}, but the roster allows {roster.n_min} to {roster.n_max}",
            key="training.clients_per_round",
        )
    if Rules.of(secure).fewest(size) < roster.n_min - roster.max_dropouts:
        raise ConfigError(
            f"the roster allows {roster.max_dropouts} drop-outs of {roster.n_min}",
            key="secure_aggregation.max_dropouts",
        )
    if secure.max_corrupt < roster.max_corrupt:
        raise ConfigError(f"the roster says {roster.max_corrupt}", key="secure_aggregation.max_corrupt")
    known_noise = experiment.insecure_seeded_noise
    try:
        roster.check_run(
            clip=secure.update_clip,
            noise=plan.sum_noise_multiplier,
            rounds=experiment.training.rounds,
            epsilon_record=inf if privacy.record is None or known_noise else privacy.record.epsilon,
            epsilon_client=inf if privacy.client is None or known_noise else privacy.client.epsilon,
        )
        if roster.model_schemas:  # to know the model's own takes torch
            roster.check_model_schema(schema_of(experiment))
    except ProtocolError as error:
        raise ConfigError(f"the members have agreed otherwise: {error}") from None


def schema_of(experiment: Experiment) -> bytes:
    """The digest of the model's schema, as a roster lists it."""
    from tacit.personal import travelling_shapes
    from tacit.tasks import load_task
    from tacit.tasks.weights import build_model

    private = PrivacyPlan.of(experiment).max_grad_norm is not None
    model = build_model(load_task(experiment), private=private)
    return schema_digest(travelling_shapes(experiment, model))


def _usable(roster: Roster) -> dict[str, int]:
    """Declared rows of the members who may take part today, by label."""
    today, usable = datetime.now(UTC).date(), {}
    for entry in roster.enrolled:
        try:
            roster.check_member(entry.member.index, today)
        except ProtocolError:
            continue
        usable[entry.member.label] = entry.num_rows
    return usable
