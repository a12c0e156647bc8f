"""The `ServerApp`: the same in simulation and in deployment.

The experiment comes as TOML text in the run configuration; where the run is kept, in `TACIT_STATE`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from server.attempts import AttemptFile
from server.noise import FILE as NOISE_FILE
from server.noise import NoiseFile, forget
from server.receipts import AuditedStore, ReceiptFile, audit_file, spelled_epsilon
from server.state import RunState
from server.sums import COUNTERS_FILE, SumFile
from strategies.coordinator import Coordinator, SumMemory
from strategies.exchange import find_members
from strategies.factory import make_strategy
from strategies.grids import PlainGrid
from strategies.overlap import AtOnce, Stoppable
from strategies.rounds import Rounds
from strategies.scaling import learn_scaling
from strategies.secure_grid import SecureAggregationGrid
from strategies.sum_grid import Agreement, IdealSumGrid, SumGrid
from tacit import config
from tacit.algorithms import SINGLE_UPDATES
from tacit.audit import SERVER_FILE, AuditLog
from tacit.config import Experiment
from tacit.encoding import encoder_of, needs_statistics
from tacit.errors import ConfigError, ProtocolError, RunFailed, StorageError, TacitError
from tacit.personal import first_arrays
from tacit.population import Labels, Nodes
from tacit.privacy.central import CentralNoise
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.identity import Identity
from tacit.secagg.members import Member, Unenrolled
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import SignedRoster
from tacit.tasks import Task, load_task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs one experiment to its end, or goes on with it."""
    experiment = config.loads(str(context.run_config["experiment"]), source="experiment")
    if "TACIT_STATE" not in os.environ:
        raise ConfigError("names no folder for the run", key="TACIT_STATE")
    folder = Path(os.environ["TACIT_STATE"]).resolve()  # a link, perhaps, that will name the next run
    durable = getattr(grid, "durable", True)  # a simulation's grid may say no
    state = RunState(folder, experiment.to_toml(), experiment.checkpoints.keep, durable=durable)
    try:
        serve(grid, experiment, state)
    except TacitError as error:
        with suppress(StorageError):  # of a full disk, say: the first error counts
            state.fail(str(error))
            if isinstance(error, RunFailed):  # of a spoilt sum, say: opened again it would be as spoilt
                attempts_of(state, next_round(state) % experiment.strategy.at_once).drop()
        raise
    finally:
        state.close()


def serve(grid: Grid, experiment: Experiment, state: RunState) -> None:
    """Plan, members, grid, strategy, rounds, result."""
    if not experiment.federation.num_members:
        raise ConfigError("declares no sites", key="federation.sites")
    plan, task = PrivacyPlan.of(experiment), load_task(experiment)
    log, at_once = AuditLog(audit_file(state.folder), durable=state.durable), experiment.strategy.at_once
    check_monitor(experiment, task)
    nodes = nodes_of(steadied(grid), experiment)
    strategy = make_strategy(experiment)
    store = AuditedStore(state, state.run_id, log, lambda number: attempts_of(state, number % at_once))
    with lanes(grid, experiment, plan, strategy, nodes, state) as grid:
        if needs_statistics(experiment) and not state.scaling:
            state.scaling = learn_scaling(grid, experiment, plan, nodes, state.run_id)
        rounds = Rounds(experiment, plan, strategy, grid, nodes, store, state.run_id, state.scaling)
        private = (
            plan.max_grad_norm is not None
        )  # record-level noise alone changes what a model may be made of
        first, _ = first_arrays(experiment, task, private=private)
        progress = rounds.run(first)
    stopped = rounds.stops(progress)
    chosen = progress.best_round if stopped else progress.round
    forget(state.folder / NOISE_FILE)  # its last model is kept: no round is to come
    state.finish(progress, "stopped early" if stopped else "finished", chosen)
    for lane in range(at_once):
        attempts_of(state, lane).drop()


def nodes_of(grid: Grid, experiment: Experiment) -> Mapping[str, int]:
    """Node id of each declared site; of a population that is simulated, by number.

    By the registration of `tacit server`, where there is one: a node cannot claim the label of another then, and a
    site that is away is no reason to wait. Else from the nodes themselves.
    """
    labels = experiment.federation.labels
    if isinstance(labels, Labels):
        return Nodes(labels, min(grid.get_node_ids()))
    if "TACIT_NODES" not in os.environ:
        return find_members(grid, labels, experiment.secure_aggregation.deadline_seconds)
    registered = json.loads(Path(os.environ["TACIT_NODES"]).read_text(encoding="utf-8"))
    if missing := [label for label in labels if label not in registered]:
        raise ConfigError(f"the federation has no {', '.join(missing)}", key="federation.sites")
    return {label: int(registered[label]) for label in labels}


def attempts_of(state: RunState, lane: int = 0) -> AttemptFile:
    """What is kept of the attempt at a secure sum that a run is making; where it makes several, in one of its lanes."""
    return AttemptFile(state.folder / (f"attempt-{lane}" if lane else "attempt"))


def sums_of(state: RunState, lane: int = 0) -> SumFile:
    """What the server remembers of the secure sums of a run; where it makes several at a time, in one of its lanes."""
    kit = Path(os.environ.get("TACIT_FEDERATION", "."))
    name = f"sums-{lane}.json" if lane else "sums.json"
    return SumFile(state.folder / name, kit / COUNTERS_FILE if is_federation() else None)


def next_round(state: RunState) -> int:
    """The round that a run has come to; 0 before the first."""
    progress = state.load()
    return 0 if progress is None else progress.round + 1


def check_monitor(experiment: Experiment, task: Task) -> None:
    """Raises `ConfigError` when early stopping would wait for a metric that never comes."""
    evaluation = experiment.evaluation
    if evaluation.patience and evaluation.monitor not in task.metric_names:
        known = ", ".join(task.metric_names)
        raise ConfigError(f"must be one of the task's: {known}", key="evaluation.monitor")


@contextmanager
def lanes(
    grid: Grid,
    experiment: Experiment,
    plan: PrivacyPlan,
    strategy: Strategy,
    nodes: Mapping[str, int],
    state: RunState,
) -> Iterator[Grid]:
    """The grid of a run's rounds; in a federation, where they may be under way at a time, a lane for each of these."""
    stop, at_once = threading.Event(), experiment.strategy.at_once
    if at_once == 1 or not is_federation():
        yield wrap(steadied(grid), experiment, plan, strategy, nodes, state)
        return
    first = wrap(Stoppable(steadied(grid), stop), experiment, plan, strategy, nodes, state)
    grids = [first]
    for lane in range(1, at_once):
        own = Stoppable(steadied(grid), stop)
        if isinstance(first, SecureAggregationGrid):
            grids.append(first.beside(own, sums_of(state, lane), attempts_of(state, lane)))
        else:
            grids.append(wrap(own, experiment, plan, strategy, nodes, state))
    overlapping = AtOnce(first, grids, stop)
    try:
        yield overlapping
    finally:
        overlapping.close()


def steadied(grid: Grid) -> Grid:
    """See `server.flower_wire`."""
    from server.flower_wire import (
        steady,
    )  # half a second of what not everybody who imports this has a use for

    return steady(grid)


def is_federation() -> bool:
    """Whether sites are processes of their own: they come back, and answer a second time as they did.

    A simulated one ends with its process.
    """
    return "TACIT_NODES" in os.environ


def wrap(
    grid: Grid,
    experiment: Experiment,
    plan: PrivacyPlan,
    strategy: Strategy,
    nodes: Mapping[str, int],
    state: RunState,
) -> SumGrid | PlainGrid:
    """The grid that the strategy speaks to: with the secure sum inside, or without."""
    settings, noise_file = experiment.secure_aggregation, state.folder / NOISE_FILE
    central = CentralNoise.of(
        experiment, plan, lambda: NoiseFile(noise_file, state.run_id, durable=state.durable)
    )
    if not settings.enabled and not central.std:
        labels = {node: label for label, node in nodes.items()}
        robust = experiment.strategy.name in SINGLE_UPDATES
        fewest = experiment.cohort_size - settings.max_dropouts if robust else 0
        return PlainGrid(grid, labels, settings.deadline_seconds, fewest)
    task = load_task(experiment)
    remember = is_federation()

    def agreement(members: Mapping[int, Member]) -> Agreement:
        return Agreement(
            run=state.run_id,
            config=experiment.to_toml(),
            members=members,
            rules=Rules.of(settings, plan.sum_noise_multiplier),
            encoder=lambda arrays, clip: encoder_of(experiment, plan, task, arrays, clip),
            deadline_seconds=settings.deadline_seconds,
            waits=remember,
            central=central,
            epsilon=lambda round_number: spelled_epsilon(plan.epsilon_after(round_number)),
        )

    if settings.engine == "ideal" or not settings.enabled:
        return IdealSumGrid(grid, agreement(anyone(nodes)))
    kit = Path(os.environ.get("TACIT_FEDERATION", "."))
    coordinator = coordinator_of(kit, sums_of(state))
    if remember:
        coordinator = replace(coordinator, attempts=attempts_of(state))
    roster = coordinator.roster
    enrolled = {member.label: member for member in roster.members if member.index in roster.active}
    if missing := [label for label in nodes if label not in enrolled]:
        raise ConfigError(f"the roster has no {', '.join(missing)}", key="federation.sites")
    members = {node: enrolled[label] for label, node in nodes.items()}
    return SecureAggregationGrid(grid, strategy, agreement(members), coordinator)


def anyone(nodes: Mapping[str, int]) -> Mapping[int, Member]:
    """The members by node, where nobody is enrolled."""
    if isinstance(nodes, Nodes):
        return Unenrolled(nodes)
    return {node: Member(i, label, b"") for i, (label, node) in enumerate(nodes.items())}


def coordinator_of(folder: Path, memory: SumMemory) -> Coordinator:
    """This server, by the roster and the key in a folder.

    Raises:
        ConfigError: they are not there, or do not belong together.
    """
    path = folder / "roster.json"
    try:
        roster = roster_in(folder)
        identity = Identity.load(folder / "server.key")
    except (OSError, ProtocolError, StorageError) as error:
        raise ConfigError(
            f"a secure sum needs the federation's roster and this server's key: {error}", source=path
        ) from None
    if identity.public != roster.server_key:
        raise ConfigError("names another server key than server.key", source=path)
    return Coordinator(roster, identity, memory, ReceiptFile(folder / SERVER_FILE))


def roster_in(folder: Path) -> Roster:
    """The roster of a simulation's sites; of a coordinator's kit, the epoch that counts."""
    if (folder / "federation.toml").exists():
        from server.epochs import in_force
        from server.provisioning import CoordinatorKit

        if (signed := in_force(CoordinatorKit.open(folder))) is None:
            raise StorageError("not signed by all members yet")
        return signed.roster
    return SignedRoster.decode((folder / "roster.json").read_bytes()).roster
