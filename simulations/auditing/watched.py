"""A training as an auditor runs it: the real `ClientApp` at every site, some of which are given canaries.

What a site does with its records, how it clips, noises, encodes and pays, and what the server makes of it is the
product's own path. The auditor decides what some sites hold, and sees what they release.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.app import participant
from client.participant import Participant
from server.state import RunState
from simulations.run import Clock, Simulation, claimed, one_thread, prepare, run_engine
from simulations.sites import PreparedSites
from simulations.trial import try_task
from tacit.config import Experiment, Federation, Site
from tacit.errors import ConfigError, TacitError
from tacit.tasks.weights import Arrays
from tacit.update import LocalUpdate

Prepare = Callable[[Participant], None]


class Seen(NamedTuple):
    """One update that a site has released, with the global model that it answers."""

    site: int
    round: int
    arrays: Arrays
    delta: dict[str, NDArray[np.float64]]


class WatchedApp(ClientApp):
    """The real app; each participant is prepared when it is first met.

    Args:
        app: the real one.
        prepare: may replace what a participant reads, or how it answers.
    """

    def __init__(self, app: ClientApp, prepare: Prepare) -> None:
        super().__init__()
        self._app, self._prepare, self._met = app, prepare, set[int]()

    def __call__(self, message: Message, context: Context) -> Message:
        """The real app's answer."""
        if context.node_id not in self._met:
            try:
                self._prepare(participant(context))
            except TacitError:  # the app meets the same, and answers with its reason
                return self._app(message, context)
            self._met.add(context.node_id)
        return self._app(message, context)


def watching(updates: list[Seen]) -> Prepare:
    """Keeps every update that a site releases. (What encoding does to it later knows no records.)"""

    def prepare(client: Participant) -> None:
        honest, site = client.update, client.position

        def update(run_id: str, round_number: int, arrays: Arrays) -> LocalUpdate:
            released = honest(run_id, round_number, arrays)
            kept = {name: np.array(values, dtype=np.float64) for name, values in released.delta.items()}
            updates.append(Seen(site, round_number, dict(arrays), kept))
            return released

        setattr(client, "update", update)  # noqa: B010 - of this one site, in this one run

    return prepare


def audited(experiment: Experiment) -> Experiment:
    """The experiment as it is audited: the same training, the same sum without cryptography, no baselines."""
    secure = experiment.secure_aggregation
    # Masks cancel to the last bit: the sum that is released is the ideal one.
    secure = secure.model_copy(update={"engine": "ideal"})
    settings = {"baselines": False, "faults": "", "executor": "serial", "durable_ledgers": False}
    return experiment.with_tables(
        secure_aggregation=secure,
        simulation=experiment.simulation.model_copy(update=settings),
        checkpoints=experiment.checkpoints.model_copy(update={"keep": 0}),
    )


def divided(experiment: Experiment, out: Path) -> PreparedSites:
    """The experiment's own sites, under `out`."""
    prepared = prepare(audited(experiment), out, durable=False)
    if prepared.experiment.federation.population is not None:
        raise ConfigError("has no site that canaries could be given to", key="federation.population")
    try_task(prepared.experiment, prepared.data_path(0))
    return prepared


def with_rows(experiment: Experiment, rows: list[float]) -> Experiment:
    """The same federation with other declared sizes, as far as delta allows: a declared size is a public constant."""
    record, most = experiment.privacy.record, math.inf
    if record is not None:
        most = math.ceil(1 / record.delta) - 1
    sites = zip(experiment.federation.sites, rows, strict=True)
    declared = [Site(label=site.label, rows=max(1, int(min(n, most)))) for site, n in sites]
    return experiment.with_tables(federation=Federation(sites=tuple(declared)))


def train(prepared: PreparedSites, experiment: Experiment, out: Path, watch: Prepare) -> RunState:
    """One whole training of prepared sites, and what the server has of it."""
    resolved = PreparedSites(prepared.folder, prepared.sites, experiment, prepared.fingerprint)
    started = datetime.now(UTC)
    simulation = Simulation(
        resolved, out, "local", started, Clock(), around=lambda app: WatchedApp(app, watch)
    )
    with one_thread():
        run_engine(simulation)
    return RunState(simulation.state, experiment.to_toml(), 0, read_only=True)


class Attempt(NamedTuple):
    """A folder of an attack's own, and a clock."""

    out: Path
    started: float

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.started


def attempt(out: Path) -> Attempt:
    """An empty folder of a run, new or emptied."""
    with claimed(out, resume=False):
        return Attempt(out, time.perf_counter())
