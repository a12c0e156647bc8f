"""The `ServerApp`: the same in simulation and in deployment.

The experiment comes as TOML text in the run configuration; where the run is kept, in `TACIT_STATE`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
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
from strategies.rounds import Rounds
from strategies.scaling import learn_scaling
from strategies.secure_grid import SecureAggregationGrid
from strategies.sum_grid import Agreement, IdealSumGrid
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
    from server.flower_wire import steady  # half a second of what a simulation has no use for

    experiment = config.loads(str(context.run_config["experiment"]), source="experiment")
    if "TACIT_STATE" not in os.environ:
        raise ConfigError("names no folder for the run", key="TACIT_STATE")
    folder = Path(os.environ["TACIT_STATE"]).resolve()  # a link, perhaps, that will name the next run
    durable = getattr(grid, "durable", True)  # a simulation's grid may say no
    state = RunState(folder, experiment.to_toml(), experiment.checkpoints.keep, durable=durable)
    try:
        serve(steady(grid), experiment, state)
    except TacitError as error:
        with suppress(StorageError):  # of a full disk, say: the first error counts
            state.fail(str(error))
            if isinstance(error, RunFailed):  # of a spoilt sum, say: opened again it would be as spoilt
                attempts_of(state).drop()
        raise
    finally:
        state.close()


def serve(grid: Grid, experiment: Experiment, state: RunState) -> None:
    """Plan, members, grid, strategy, rounds, result."""
    if not experiment.federation.num_members:
        raise ConfigError("declares no sites", key="federation.sites")
    plan, task = PrivacyPlan.of(experiment), load_task(experiment)
    log = AuditLog(audit_file(state.folder), durable=state.durable)
    check_monitor(experiment, task)
    nodes = nodes_of(grid, experiment)
    strategy = make_strategy(experiment)
    grid = wrap(grid, experiment, plan, strategy, nodes, state)
    if needs_statistics(experiment) and not state.scaling:
        state.scaling = learn_scaling(grid, experiment, plan, nodes, state.run_id)
    store = AuditedStore(state, state.run_id, log, attempts_of(state))
    rounds = Rounds(experiment, plan, strategy, grid, nodes, store, state.run_id, state.scaling)
    private = plan.max_grad_norm is not None  # record-level noise alone changes what a model may be made of
    first, _ = first_arrays(experiment, task, private=private)
    progress = rounds.run(first)
    stopped = rounds.stops(progress)
    chosen = progress.best_round if stopped else progress.round
    forget(state.folder / NOISE_FILE)  # its last model is kept: no round is to come
    state.finish(progress, "stopped early" if stopped else "finished", chosen)
    attempts_of(state).drop()


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


def attempts_of(state: RunState) -> AttemptFile:
    """What is kept of the attempt at a secure sum that a run is making."""
    return AttemptFile(state.folder / "attempt")


def check_monitor(experiment: Experiment, task: Task) -> None:
    """Raises `ConfigError` when early stopping would wait for a metric that never comes."""
    evaluation = experiment.evaluation
    if evaluation.patience and evaluation.monitor not in task.metric_names:
        known = ", ".join(task.metric_names)
        raise ConfigError(f"must be one of the task's: {known}", key="evaluation.monitor")


def wrap(
    grid: Grid,
    experiment: Experiment,
    plan: PrivacyPlan,
    strategy: Strategy,
    nodes: Mapping[str, int],
    state: RunState,
) -> Grid:
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
    # The sites of a federation come back, and answer a second time as they did. A simulated one ends with its process.
    remember = "TACIT_NODES" in os.environ

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
    counters = kit / COUNTERS_FILE if remember else None
    coordinator = coordinator_of(kit, SumFile(state.folder / "sums.json", counters))
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
