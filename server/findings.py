"""The report of a federation's run, from what its coordinator has on disk: experiment, rounds, roster.

Made by a process of its own (`tacit report`), which `tacit server` starts when a run has ended: plotting and
accounting are nothing that a server has to keep in memory, and an error in them ends no run.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from server.epochs import in_force
from server.provisioning import CoordinatorKit
from server.runs import PAGE, STATEMENT, Run, Status, outcome_text
from server.state import read_rounds
from tacit import config
from tacit.errors import ConfigError, MissingExtra
from tacit.privacy.plan import PrivacyPlan
from tacit.report import record as r
from tacit.report.model_card import FILE as CARD
from tacit.report.model_card import write_model_card
from tacit.report.promises import privacy_entries
from tacit.report.rows import (
    Rows,
    learned_concepts,
    learned_importance,
    learned_outcomes,
    round_of,
    secure_sum_of,
    versions,
)
from tacit.report.statement import write_statement
from tacit.report.storage import write_json
from tacit.secagg.identity import fingerprint, readable

RECORD: Final = "report.json"


def write_report(run: Run, kit: Path, outcome: str = "") -> list[str]:
    """Writes report.json, privacy statement, model card and, where plotting is installed, report.html into its folder.

    Args:
        run: one that has begun.
        kit: the coordinator's.
        outcome: how it has ended, as in its record; "" = as its status says.

    Returns:
        A line for each file that cannot be made here, and why.

    Raises:
        ConfigError: nothing has left any site yet, or the run goes on.
        StorageError: a file is damaged, or cannot be written.
    """
    record = record_of(run, kit, outcome or outcome_of(run.status))
    write_json(record, run.folder / RECORD)
    write_statement(record, run.folder / STATEMENT)
    write_model_card(record, run.folder / CARD)
    from tacit.report.html import write_html

    try:
        write_html(record, run.folder / PAGE)
    except MissingExtra as error:
        (run.folder / PAGE).unlink(missing_ok=True)  # of an earlier end of this run, perhaps
        return [f"no {PAGE}: {error}"]
    return []


def record_of(run: Run, kit: Path, outcome: str) -> r.RunRecord:
    """The record of a run, without what only a simulation can know."""
    if not run.has_begun:
        raise ConfigError("has not begun: there is nothing to report", source=run.id)
    experiment = config.loads(run.experiment, source=str(run.folder / "experiment.toml"))
    rows, plan = read_rounds(run.folder / "rounds.jsonl"), PrivacyPlan.of(experiment)
    secure = secure_sum_of(experiment.secure_aggregation, rows)
    return r.RunRecord(
        run_id=run.id,
        started=datetime.fromtimestamp(run.status.begun or run.status.queued, UTC),
        outcome=outcome,
        engine="superlink",
        seed=experiment.seed,
        experiment=experiment.model_dump(mode="json", by_alias=True, exclude_none=True),
        rounds=tuple(round_of(row, experiment) for row in rows),
        final=r.Final(metrics=_last_metrics(rows)),
        learned=learned_outcomes(rows, experiment, plan),
        importance=learned_importance(rows, experiment, plan),
        concepts=learned_concepts(rows, experiment, plan),
        privacy=privacy_entries(experiment, plan, None, secure=secure, simulation=False),
        secure_aggregation=secure,
        federation=federation_of(CoordinatorKit.open(kit)),
        timings={"rounds": sum(row["seconds"] for row in rows)},
        versions=versions(),
        warnings=tuple(_warnings(experiment)),
    )


def federation_of(kit: CoordinatorKit) -> r.Federation | None:
    """What the members have agreed on, by the epoch that counts; None where none does."""
    signed = in_force(kit)
    if signed is None:
        return None
    roster = signed.roster
    return r.Federation(
        name=kit.federation.name,
        epoch=roster.epoch,
        digest=readable(roster.digest()),
        members=len(roster.active),
        signatures=0 if roster.root_key else len(signed.signatures),
        root_key=fingerprint(roster.root_key) if roster.root_key else "",
        root_holder=kit.federation.root_holder if roster.root_key else "",
        min_clients=roster.n_min,
        max_clients=roster.n_max,
        max_corrupt=roster.max_corrupt,
        max_dropouts=roster.max_dropouts,
    )


def outcome_of(status: Status) -> str:
    """A run's end in the words of a record.

    Raises:
        ConfigError: it has not ended.
    """
    if not status.has_ended:
        raise ConfigError(f"is {status.state}: its report is written when it has ended", source=status.name)
    return outcome_text(status.state, status.reason)


def _last_metrics(rows: Rows) -> r.Metrics:
    """What the server learned last: of the model that went into that round."""
    return next((dict(row["metrics"]) for row in reversed(rows) if row["metrics"]), {})


def _warnings(experiment: config.Experiment) -> Iterable[str]:
    if experiment.insecure_seeded_noise:
        yield "NOT PRIVATE: the noise follows from the seed (insecure_seeded_noise)"
