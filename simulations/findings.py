"""From a finished simulation to its report: exact metrics, baselines, what was paid, and the files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.statistics import scaled
from server.state import RunState, read_rounds
from simulations.evaluate import Harness, Metrics, site_mean
from simulations.faulty_app import PLAYED, read_played
from simulations.kept_baselines import kept
from simulations.sites import partition_table
from tacit.privacy.plan import PrivacyPlan
from tacit.report import record as r
from tacit.report.html import write_html
from tacit.report.model_card import FILE as CARD
from tacit.report.model_card import write_model_card
from tacit.report.promises import privacy_entries
from tacit.report.rows import (
    concepts_from,
    importance_from,
    learned_concepts,
    learned_importance,
    learned_outcomes,
    outcomes_of,
    round_of,
    secure_sum_of,
    versions,
)
from tacit.report.statement import write_statement
from tacit.report.storage import write_json, write_text
from tacit.tasks import load_task
from tacit.tasks.cells import cells_of
from tacit.tasks.concepts import concepts_of
from tacit.tasks.groupnorm import has_batchnorm
from tacit.tasks.importance import importance_of

if TYPE_CHECKING:
    from simulations.run import Simulation
    from tacit.privacy.ledger import Entry

EXCERPT = 20  # ledger entries in the report


def write_findings(
    simulation: Simulation, on_part: Callable[[str], None], shared: Path | None = None
) -> r.RunRecord:
    """Evaluates, trains the baselines, builds the record and writes every file of the report."""
    clock, out, experiment = simulation.clock, simulation.out, simulation.experiment
    state = RunState(simulation.state, experiment.to_toml(), experiment.checkpoints.keep, read_only=True)
    harness = Harness(experiment, simulation.prepared.folder, scaled(load_task(experiment), state.scaling))
    with clock.part("evaluation"):
        on_part("evaluation")
        rows = read_rounds(simulation.state / "rounds.jsonl")
        rounds = [_round(row, harness, state) for row in rows]
        final = _final(harness, state, simulation)
        latency = harness.latency(state.model_of(int(state.result["model_round"])))
    with clock.part("baselines"):
        on_part("baselines")
        wanted = experiment.simulation.baselines
        baselines = kept(shared, experiment, lambda: _baselines(harness)) if wanted else r.Baselines()
        if (best := _best(harness)) is not None:
            baselines = baselines.model_copy(update={"best": best})
    on_part("report")
    plan = PrivacyPlan.of(experiment)
    ledgers, secure = _ledgers(simulation), _secure_sum(simulation)
    record = r.RunRecord(
        run_id=state.run_id,
        started=simulation.started,
        outcome=str(state.result["outcome"]),
        engine=simulation.engine,  # type: ignore[arg-type]
        executor="; ".join(simulation.executor),
        seed=experiment.seed,
        experiment=experiment.model_dump(mode="json", by_alias=True, exclude_none=True),
        rounds=tuple(rounds),
        final=final,
        learned=learned_outcomes(rows, experiment, plan),
        importance=learned_importance(rows, experiment, plan),
        concepts=learned_concepts(rows, experiment, plan),
        baselines=baselines,
        privacy=privacy_entries(experiment, plan, ledgers.values(), secure=secure, simulation=True),
        secure_aggregation=secure,
        partition=tuple(_slice(row) for row in partition_table(simulation.prepared)),
        distances=simulation.prepared.distances,
        faults=tuple(_faults(simulation, rows)),
        timings={**clock.seconds, **latency},
        versions=versions(),
        warnings=_warnings(simulation),
        ledger=tuple(_excerpt(ledgers)),
    )
    write_text("".join(json.dumps(row) + "\n" for row in record.ledger), out / "ledger.jsonl")
    shutil.copyfile(simulation.state / "model.safetensors", out / "model.safetensors")
    if state.scaling:  # without it nobody could read a record as the model was trained to
        write_text(state.scaling, out / "scaling.json")
    write_text(experiment.to_toml(), out / "experiment.toml")
    write_statement(record, out / "privacy-statement.md")
    write_model_card(record, out / CARD)
    with clock.part("report"):
        write_html(record, out / "report.html")
    write_json(record, out / "report.json")
    return record


def _round(row: dict[str, Any], harness: Harness, state: RunState) -> r.Round:
    number = int(row["round"])
    # What sites keep goes with the last round alone.
    known = state.has_model(number) and not harness.own
    metrics = harness.overall(state.model_of(number)) if known else {}
    return round_of(row, harness.experiment, metrics)


def _final(harness: Harness, state: RunState, simulation: Simulation) -> r.Final:
    arrays = state.model_of(int(state.result["model_round"]))
    experiment, task = simulation.experiment, harness.task
    sites = harness.per_site_own(arrays)
    metrics = site_mean(sites) if harness.own else harness.overall(arrays)
    whole = harness.has_test and not harness.own  # one model that all sites have
    cells = cells_of(experiment, task, always=True) if whole else None
    importance = importance_of(experiment, task) if whole else None
    outcomes = tables = None
    if cells is not None and (tables := cells.tables(harness.summed(arrays, cells))) is not None:
        outcomes = outcomes_of(cells, tables, experiment)
    concepts = concepts_of(experiment, task) if whole else None
    return r.Final(
        metrics=metrics,
        sites=_site_results(harness, sites),
        outcomes=outcomes,
        importance=importance_from(importance, harness.summed(arrays, importance)) if importance else None,
        concepts=concepts_from(concepts, harness.summed(arrays, concepts)) if concepts else None,
    )


def _site_results(harness: Harness, metrics: dict[str, Metrics]) -> tuple[r.SiteResult, ...]:
    return tuple(
        r.SiteResult(
            label=site.label,
            rows=site.train.num_rows + site.test.num_rows,
            test_rows=site.test.num_rows,
            metrics=metrics[site.label],
        )
        for site in harness.sites
        if site.label in metrics
    )


def _baselines(harness: Harness) -> r.Baselines:
    if not harness.has_test:
        return r.Baselines()
    pooled, own = harness.pooled(), harness.local()
    pooled_sites = harness.per_site(pooled)
    local_sites = {
        site.label: harness.metrics(own[site.label], [site.test])
        for site in harness.sites
        if site.test.num_rows
    }
    majority = harness.majority()
    return r.Baselines(
        pooled=r.Baseline(metrics=harness.overall(pooled), sites=_site_results(harness, pooled_sites)),
        local=r.Baseline(metrics=site_mean(local_sites), sites=_site_results(harness, local_sites)),
        majority=r.Baseline(metrics=site_mean(majority), sites=_site_results(harness, majority))
        if majority
        else None,
    )


def _best(harness: Harness) -> r.Baseline | None:
    found = harness.best()
    return None if found is None else r.Baseline(metrics=found[0], sites=_site_results(harness, found[1]))


def _ledgers(simulation: Simulation) -> dict[str, tuple[Entry, ...]]:
    """Entries of each site's ledger, by label."""
    from client.site import Site

    if simulation.experiment.federation.population is not None:
        from simulations.virtual import LEDGERS, LedgerFile

        with LedgerFile(simulation.prepared.folder / LEDGERS, durable=False) as file:
            return dict(file.busiest(EXCERPT))
    entries: dict[str, tuple[Entry, ...]] = {}
    for i, site in enumerate(simulation.prepared.sites):
        folder = simulation.prepared.folder / str(i)
        if (folder / "ledger").exists():
            with Site.open(folder).ledger() as ledger:
                entries[site.label] = ledger.entries
    return entries


def _excerpt(ledgers: dict[str, tuple[Entry, ...]]) -> list[dict[str, Any]]:
    """The last entry of each site, as many sites as fit."""
    rows = []
    # A site that refused from the start has a ledger without entries.
    paid = [(label, entries) for label, entries in ledgers.items() if entries]
    for label, entries in paid[:EXCERPT]:
        last = entries[-1]
        rows.append(
            {
                "site": label,
                "entries": len(entries),
                "sequence": last.sequence,
                "time": last.time,
                "round": last.round,
                "purpose": last.purpose,
                "event": last.event.to_dict(),
                "hash": last.hash,
            }
        )
    return rows


def _secure_sum(simulation: Simulation) -> r.SecureSum:
    settings = simulation.experiment.secure_aggregation
    clipped = _clipped_fraction(simulation) if settings.enabled else None
    return secure_sum_of(settings, read_rounds(simulation.state / "rounds.jsonl"), clipped)


def _clipped_fraction(simulation: Simulation) -> float | None:
    """Share of updates that were cut, as the simulated sites counted them in this process."""
    from client.participant import participant_of

    if simulation.engine != "local":
        return None
    if simulation.experiment.federation.population is not None:
        rows = read_rounds(simulation.state / "rounds.jsonl")
        vectors = sum(len(row["survivors"]) for row in rows)
        return sum(row["num_clipped"] for row in rows) / vectors if vectors else None
    text = simulation.experiment.to_toml()
    sites = [
        participant_of(text, simulation.prepared.folder / str(i), True)
        for i in range(len(simulation.prepared.sites))
    ]
    updates = sum(site.num_updates for site in sites)
    return sum(site.num_clipped for site in sites) / updates if updates else None


def _slice(row: dict[str, Any]) -> r.SiteSlice:
    counts: dict[str, int] = {}
    for split in row["label_counts"].values():
        for name, count in split.items():
            counts[name] = counts.get(name, 0) + count
    return r.SiteSlice(
        label=row["label"], rows=row["rows"], train=row["train_rows"], test=row["test_rows"], labels=counts
    )


def _faults(simulation: Simulation, rows: list[dict[str, Any]]) -> Iterator[r.PlayedFault]:
    """Each planned fault, at each site in each round, with what came of it."""
    planned = simulation.faults
    if planned is None:
        return
    played: dict[tuple[int, int, str], dict[int, str]] = {}
    for line in read_played(simulation.state / PLAYED):
        place = line["fault"], line["round"], line["site"]
        played.setdefault(place, {})[line["attempt"]] = line["happened"]
    for row in rows:
        strikes = [
            (s.number, label, s) for label, found in planned.strikes(row["round"]).items() for s in found
        ]
        order = {label: i for i, label in enumerate(planned.labels)}
        for number, label, strike in sorted(strikes, key=lambda found: (found[0], order[found[1]])):
            yield r.PlayedFault(
                fault=number,
                round=row["round"],
                site=label,
                phase=strike.phase,
                kind=strike.fault.kind,
                happened=_happened(row, label, played.get((number, row["round"], label), {})),
            )


def _happened(row: dict[str, Any], label: str, attempts: dict[int, str]) -> str:
    if not attempts:
        return "not asked"
    several = row["attempts"] not in (None, 1)
    parts = [f"attempt {number}: {text}" if several else text for number, text in sorted(attempts.items())]
    parts.append("in the sum" if label in row["survivors"] else "not in the sum")
    return "; ".join([*parts, "blamed"] if label in row["blamed"] else parts)


def _warnings(simulation: Simulation) -> tuple[str, ...]:
    experiment = simulation.experiment
    seeded = experiment.insecure_seeded_noise
    notes = ["NOT PRIVATE: the noise follows from the seed (--insecure-seeded-noise)"] if seeded else []
    if experiment.privacy.record is not None and has_batchnorm(load_task(experiment).model()):
        notes.append("BatchNorm mixes records: it was replaced by GroupNorm for this private run")
    if simulation.faults is not None:
        notes.append(
            f"faults were played, from {simulation.faults.source}: the figures are those of such a run"
        )
    return (*notes, *simulation.prepared.warnings)
