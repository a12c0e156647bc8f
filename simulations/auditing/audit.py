"""All attacks on one experiment, one after the other, and their report.

DIR/audit.json  audit.html      what was measured beside what was claimed
DIR/records/  clients/  ...     the run of each attack, as `tacit simulate` writes one
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np

from simulations.auditing.clients import audit_clients
from simulations.auditing.inversion import audit_inversion
from simulations.auditing.membership import SHADOWS, audit_membership, other_scaling
from simulations.auditing.one_run import audit_records
from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.privacy.plan import PrivacyPlan
from tacit.report.audit_page import write_audit_page
from tacit.report.audit_record import Attack, AuditRecord, Inversion
from tacit.report.rows import versions
from tacit.report.storage import write_json
from tacit.tasks import load_task

TRAININGS: Final = {"one-run": 1, "clients": 1, "membership": 1 + SHADOWS, "inversion": 0}  # of each attack
METHODS: Final = tuple(TRAININGS)
Method = Literal["one-run", "clients", "membership", "inversion", "all"]


def audit(
    experiment: Experiment,
    out: Path,
    *,
    method: str = "all",
    canaries: int = 0,
    guesses: int = 0,
    seed: int | None = None,
    on_part: Callable[[str], None] = lambda part: None,
) -> AuditRecord:
    """Makes the attacks that were asked for and writes `out`/audit.json and audit.html.

    Args:
        experiment: what is audited.
        out: folder; a run of each attack is kept in it.
        method: one of `METHODS`, or "all": those that fit the experiment.
        canaries: see `audit_records` and `audit_clients`; 0 = as many as suit.
        guesses: how many coins are guessed; 0 = a tenth, and 50 at least.
        seed: of the coins; None = a new one.
        on_part: told what happens.

    Raises:
        TacitError: an attack that was asked for by name is not possible.
    """
    coins = int(np.random.default_rng().integers(2**32)) if seed is None else seed
    started, skipped = datetime.now(UTC), []
    attacks: list[Attack] = []
    inversion: Inversion | None = None
    for name in METHODS if method == "all" else (method,):
        if method == "all" and (reason := unsuited(experiment, name)):
            skipped.append(f"{name}: {reason}")
            continue

        def told(part: str, name: str = name) -> None:
            on_part(f"{name}: {part}")

        folder = out / {"one-run": "records"}.get(name, name)
        try:
            if name == "inversion":
                inversion = audit_inversion(experiment, folder, seed=coins, on_part=told)
            elif name == "membership":
                attacks.append(
                    audit_membership(experiment, folder, seed=coins, guesses=guesses, on_part=told)
                )
            else:
                attack = audit_records if name == "one-run" else audit_clients
                attacks.append(
                    attack(experiment, folder, canaries, seed=coins, guesses=guesses, on_part=told)
                )
        except ConfigError as error:
            if method != "all":
                raise
            skipped.append(f"{name}: {error}")
    record = AuditRecord(
        name=experiment.name,
        started=started,
        seed=coins,
        **_size(experiment, out),
        attacks=tuple(attacks),
        inversion=inversion,
        skipped=tuple(skipped),
        versions=versions(),
    )
    write_json(record, out / "audit.json")
    write_audit_page(record, out / "audit.html")
    return record


def trainings(experiment: Experiment, method: str) -> dict[str, int]:
    """How often each attack of `audit` trains a whole federation, by its name."""
    names = [name for name in METHODS if not unsuited(experiment, name)] if method == "all" else [method]
    return {name: TRAININGS[name] for name in names}


def unsuited(experiment: Experiment, method: str) -> str:
    """Why an attack cannot be, or says nothing about what this experiment claims; empty where it does."""
    record, client = experiment.privacy.record is not None, experiment.privacy.client is not None
    if method == "clients" and record and not client:
        return "nothing is promised for clients; --method clients says how much of them leaks"
    if method == "membership" and (refused := other_scaling(experiment)):
        return refused
    if method in ("one-run", "membership") and client and not record:
        return f"nothing is promised for records; --method {method} says how much of them leaks"
    return ""


def _size(experiment: Experiment, out: Path) -> dict[str, int]:
    """Sites, parameters and rounds, from the first run that was prepared."""
    from tacit import config

    found = sorted(out.glob("*/sites/experiment.toml"))
    resolved = config.load(found[0]) if found else experiment
    model = load_task(resolved).model()
    return {
        "sites": len(resolved.federation.sites),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "rounds": PrivacyPlan.of(resolved).rounds,
    }
