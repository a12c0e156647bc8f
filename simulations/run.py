"""One simulation from experiment file to report: prepare sites, run the rounds, evaluate, write everything down.

DIR/sites/<i>/      what each simulated site has and keeps: data, policy, ledger
DIR/server/         what the server keeps: rounds, checkpoints, result
DIR/report.json  report.html  privacy-statement.md  model-card.md  ledger.jsonl
DIR/model.safetensors  experiment.toml  scaling.json    the model and what rebuilds it (`tacit.inference.trained`)
DIR/faults.toml         the fault list that was played, if any; server/faults.jsonl says what came of it
DIR/faults-drawn.toml   the same with nothing left to draw, where the seed had a say in it
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import tomli_w

from simulations.enrolment import enrol
from simulations.faults import MOST_WRITTEN, FaultList
from simulations.sites import PreparedSites, prepare_sites
from tacit.config import Experiment
from tacit.errors import ConfigError, RunFailed
from tacit.report.record import RunRecord

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

MARK = ".tacit-run"  # says that a folder is a run's, and is locked while one goes on in it
FAULTS, DRAWN = "faults.toml", "faults-drawn.toml"
ROUNDS_PER_HOUR = 10**9  # more than any simulated hour has: nobody counts them
REPORTS = (
    "report.json", "report.html", "privacy-statement.md", "model-card.md", "ledger.jsonl", "model.safetensors",
    # What was exported of an earlier run is not this one's.
    "scaling.json", "model.onnx", "model.pt2", "synthetic.csv", "synthetic.json",
)  # fmt: skip


@dataclass
class Clock:
    """Seconds per part of a run, for the report."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time inside the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Simulation:
    """What has been prepared and run; the report is made of it.

    Attributes:
        prepared: sites on disk and the resolved experiment.
        out: the run's folder.
        engine: "local" or "ray".
        started: when.
        clock: seconds per part.
        faults: what is played, if anything.
        executor: how the local engine has trained its cohorts, and why; known once it has.
        around: puts something around the `ClientApp`: an audit that watches sites and gives some of them canaries.
    """

    prepared: PreparedSites
    out: Path
    engine: str
    started: datetime
    clock: Clock
    faults: FaultList | None = None
    executor: list[str] = field(default_factory=list)
    around: Callable[[ClientApp], ClientApp] | None = None

    @property
    def experiment(self) -> Experiment:
        """With its sites declared."""
        return self.prepared.experiment

    @property
    def state(self) -> Path:
        """The server's folder."""
        return self.out / "server"


def simulate(
    experiment: Experiment,
    out: Path,
    *,
    engine: str = "local",
    resume: bool = False,
    baselines: Path | None = None,
    on_part: Callable[[str], None] = lambda part: None,
) -> RunRecord:
    """Runs a whole simulation and writes its report.

    Args:
        experiment: what to run.
        out: the run's folder. An earlier run in it is replaced, or continued with `resume`.
        engine: "local" or "ray".
        resume: go on after the last complete round.
        baselines: folder of those that a sweep shares among its runs; None = they are this run's own.
        on_part: told the name of each part as it begins: sites, rounds, baselines, report.

    Raises:
        TacitError: the run did not do what was asked. What was complete stays in `out`.
    """
    check_virtual(experiment, engine)
    faults = fault_list(experiment, engine)
    clock, started = Clock(), datetime.now(UTC)
    with claimed(out, resume=resume), one_thread():
        from simulations.trial import try_task

        with clock.part("sites"):
            on_part("sites")
            check_unchanged(faults, out)
            prepared = prepare(experiment, out, durable=experiment.simulation.durable_ledgers)
            if faults is not None:
                faults = faults.among([site.label for site in prepared.sites])
                (out / FAULTS).write_text(faults.text, encoding="utf-8")
                write_drawn(faults, experiment.training.rounds, out)
            try_task(prepared.experiment, prepared.data_path(0))
            remove(out, REPORTS)  # from here on they would be another run's, or an older part of this one's
        simulation = Simulation(prepared, out, engine, started, clock, faults)
        with clock.part("rounds"):
            on_part("rounds")
            run_engine(simulation)
        from simulations.findings import write_findings

        return write_findings(simulation, on_part, baselines)


def check_virtual(experiment: Experiment, engine: str) -> None:
    """Raises `ConfigError` where an experiment asks something of virtual clients that needs real folders."""
    if experiment.partition.kind != "virtual":
        return
    secure, columns = experiment.secure_aggregation, experiment.data.columns
    summed = (secure.enabled and secure.engine == "ideal") or (
        not secure.enabled and experiment.privacy.client is not None
    )
    if not summed:
        raise ConfigError(
            'virtual clients are added up by the ideal sum: set engine = "ideal"',
            key="secure_aggregation.engine",
        )
    if engine != "local":
        raise ConfigError("virtual clients need --engine local", key="partition.kind")
    if experiment.simulation.faults:
        raise ConfigError("plays no faults at virtual clients", key="simulation.faults")
    if columns is not None and columns.scaling == "federated":
        raise ConfigError("is not learned from virtual clients; declare ranges", key="data.schema.scaling")


def fault_list(experiment: Experiment, engine: str) -> FaultList | None:
    """What an experiment asks to be played, if anything; `ConfigError` where this engine cannot."""
    if experiment.simulation.faults and engine != "local":
        raise ConfigError(f'needs --engine local: "{engine}" plays no faults yet', key="simulation.faults")
    return FaultList.load(experiment)


def check_unchanged(faults: FaultList | None, out: Path) -> None:
    """Raises `ConfigError` when a run that is continued began with another list in the same file."""
    path = out / FAULTS
    if faults is not None and path.exists() and path.read_text(encoding="utf-8") != faults.text:
        raise ConfigError(f"is not what the run began with: {path}", source=faults.source)


def write_drawn(faults: FaultList, rounds: int, out: Path) -> None:
    """Writes the list out entry by entry where something of it was drawn, unless that would be a book."""
    expected = sum(rounds * len(faults.labels) for fault in faults.faults if fault.is_drawn)
    if expected and expected <= MOST_WRITTEN:
        (out / DRAWN).write_text(faults.written_out(rounds), encoding="utf-8")


@contextmanager
def claimed(out: Path, *, resume: bool) -> Iterator[None]:
    """Makes `out` ours for the length of a block: new or empty, or an earlier run, continued or replaced.

    Raises:
        ConfigError: it holds something else, another simulation works in it, there is nothing to resume, or
            it cannot be written.
    """
    try:
        mark = _claim(out, resume=resume)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), source=error.filename or out, key="--out") from None
    with mark:
        yield


def _claim(out: Path, *, resume: bool) -> BinaryIO:
    """The locked mark; its lock ends with the process at the latest."""
    ours = (out / MARK).exists()
    if resume and not ours:
        raise ConfigError("there is no run to resume", source=out, key="--resume")
    if not ours and out.exists() and any(out.iterdir()):
        raise ConfigError(
            "is not empty and holds no earlier run; choose another folder", source=out, key="--out"
        )
    out.mkdir(parents=True, exist_ok=True)
    mark = (out / MARK).open("wb")
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        mark.close()
        raise ConfigError("another simulation is running in it", source=out, key="--out") from None
    if not resume:
        remove(out, (*REPORTS, FAULTS, DRAWN, "server", "sites"))
    return mark


def remove(out: Path, names: Iterable[str]) -> None:
    """Removes files and folders of an earlier run, as far as they are there."""
    for name in names:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch and of numpy's linear algebra.

    More of them cost a small model time, and figures would follow the number of cores. Those of the linear algebra also
    go on looking for work after each product, on the cores that workers train on.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def prepare(experiment: Experiment, out: Path, *, durable: bool = True) -> PreparedSites:
    """Loads the data, divides them among sites, and gives each simulated site its policy."""
    from simulations.array_sources import load_arrays
    from simulations.sources import load_source

    private = experiment.privacy.record is not None or experiment.privacy.client is not None
    declared = experiment.data.columns is not None or experiment.data.arrays is not None
    if private and not declared and experiment.data.source in ("csv", "parquet"):
        raise ConfigError(
            "a private run needs a declared schema: one inferred from the rows is a statistic of them",
            key="data.schema",
        )
    arrays = load_arrays(experiment.data, experiment.seed)
    table, schema = load_source(experiment.data, experiment.seed) if arrays is None else arrays.table()
    prepared = prepare_sites(experiment, table, schema, out, durable=durable, arrays=arrays)
    for i in range(len(prepared.sites)):
        write_policy(prepared.folder / str(i), prepared.experiment)
    secure = prepared.experiment.secure_aggregation
    if secure.enabled and secure.engine == "protocol":
        enrol(prepared.folder, prepared.experiment)
    return prepared


def write_policy(folder: Path, experiment: Experiment) -> None:
    """What a real site would have to allow for this experiment, and no more; an operator's own is left alone."""
    path = folder / "policy.toml"
    if path.exists():
        return
    secure = experiment.secure_aggregation
    protected = secure.enabled and secure.engine == "protocol"
    policy = {
        "require_secure_aggregation": protected,
        "allow_single_updates": not protected,
        "allowed_tasks": [experiment.task.kind],
        "max_rounds_per_hour": ROUNDS_PER_HOUR,
        "max_model_parameters": 10**12,
        "max_update_norm": max(secure.update_clip, _largest_clip(experiment)),
    }
    unfinished = folder / ".policy.toml"
    unfinished.write_text(tomli_w.dumps(policy), encoding="utf-8")
    unfinished.chmod(0o600)
    unfinished.rename(path)


def _largest_clip(experiment: Experiment) -> float:
    """What the clip norm may become where it adapts; 0 where it does not."""
    budget = experiment.privacy.client
    return budget.clip_range[1] if budget is not None and budget.target_quantile > 0 else 0.0


def run_engine(simulation: Simulation) -> None:
    """The rounds, on the engine that was asked for."""
    experiment = simulation.experiment
    if simulation.engine == "ray":
        from simulations import ray_engine

        ray_engine.run(
            experiment.to_toml(),
            state=simulation.state,
            sites=simulation.prepared.folder,
            num_clients=experiment.federation.num_members,
            settings=experiment.simulation.ray,
        )
    elif simulation.engine == "local":
        run_local(simulation)
    else:
        raise ConfigError(f"there is no engine {simulation.engine!r}", key="--engine")
    if not (simulation.state / "result.json").exists():
        raise RunFailed("the server ended without a result")


def run_local(simulation: Simulation) -> None:
    """The same apps in this process."""
    from flwr.app import Context, RecordDict

    from client import participant
    from client.app import app as client_app
    from server.app import app as server_app
    from simulations import stacked
    from simulations.cohort import CohortExecutor
    from simulations.faulty_app import PLAYED, FaultyApp
    from simulations.local_grid import RUN_ID, SERVER_NODE, LocalGrid
    from simulations.virtual import VirtualExecutor, VirtualGrid
    from tacit.encoding import needs_statistics

    logging.getLogger("flwr").setLevel(
        logging.ERROR
    )  # after its import, which sets it; we show progress ourselves
    experiment = simulation.experiment
    participant.participant_of.cache_clear()  # an earlier run may have had other data in the same folders
    participant.run_of.cache_clear()
    run_config = {"experiment": experiment.to_toml()}
    serial, faults = experiment.simulation.executor == "serial", simulation.faults
    app = client_app if faults is None else FaultyApp(client_app, faults, simulation.state / PLAYED)
    app = app if simulation.around is None else simulation.around(app)
    context = Context(RUN_ID, SERVER_NODE, {}, RecordDict(), dict(run_config))
    sites = str(simulation.prepared.folder)
    variables = {"TACIT_STATE": str(simulation.state), "TACIT_SITES": sites, "TACIT_FEDERATION": sites}
    virtual = experiment.federation.population is not None
    with (
        environment(**variables),
        VirtualExecutor(experiment, Path(sites)) if virtual else CohortExecutor() as executor,
    ):
        # A cohort that is trained without messages meets no app, and so no faults. Virtual clients have no app.
        hook = executor if virtual or not (serial or app is not client_app) else None
        ahead = () if serial else (stacked.train_ahead,)
        kind = VirtualGrid if virtual else LocalGrid
        durable = experiment.simulation.durable_ledgers
        members = experiment.federation.num_members
        grid = kind(app, run_config, members, hook, *ahead, durable=durable)
        # Most sites will be asked, and reading is no part of a round; scaled records wait for the constants.
        often = experiment.training.rounds * experiment.cohort_size >= members
        if hook is executor and not virtual and often and not needs_statistics(experiment):
            executor.read_ahead(map(grid.context, grid.get_node_ids()))
        server_app(grid, context)
    run = participant.run_of(experiment.to_toml())
    simulation.executor.append(stacked.chosen(run, with_messages=hook is None))


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for the length of a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
