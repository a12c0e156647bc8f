"""`tacit server`: of a federation by its kit; or on loopback for one experiment, and ends with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tacit.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from server.superlink import SuperLink
    from tacit.config import Experiment


def command(
    experiment: Annotated[
        Path | None, typer.Argument(help="With --insecure-loopback: the experiment's TOML file.")
    ] = None,
    kit: Annotated[Path | None, typer.Option(help="The coordinator's kit.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on.", show_default="all, if sites are elsewhere")
    ] = "",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on.", show_default="as federation.toml says"),
    ] = None,
    health_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on loopback for grpc.health.v1; 0 = none.")
    ] = 0,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on loopback for Prometheus; 0 = none.")
    ] = 0,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="One JSON object to a line of the log.")
    ] = False,
    insecure_loopback: Annotated[
        bool,
        typer.Option("--insecure-loopback", help="Rehearse one experiment on this one machine, without TLS."),
    ] = False,
    state: Annotated[Path | None, typer.Option(help="With it: folder for checkpoints and results.")] = None,
    clients: Annotated[
        int, typer.Option(min=0, help="With it: sites to wait for; 0 = as the experiment says.")
    ] = 0,
) -> None:
    """Coordinate a federation: let its sites connect, and run what tacit submit asks for, until Ctrl-C."""
    if insecure_loopback:
        if experiment is None or state is None or kit is not None:
            raise ConfigError("tacit server --insecure-loopback EXPERIMENT.toml --state DIR: both are needed")
        from tacit import config

        port = 8000 if port is None else port
        serve(config.load(experiment), state, experiment.parent, port=port, num_clients=clients)
        return
    if kit is None or experiment is not None or state is not None:
        raise ConfigError(
            "tacit server --kit KIT, and tacit submit for what to run; --insecure-loopback rehearses without a kit"
        )
    from server import serving
    from tacit import logs

    logs.configure("json" if log_json else "text")
    serving.serve(kit, host=host, port=port, health_port=health_port, metrics_port=metrics_port)


def serve(experiment: Experiment, state: Path, federation: Path, *, port: int, num_clients: int) -> None:
    """Runs one experiment with real nodes on this machine.

    Args:
        experiment: what to run.
        state: the server's state directory; made when missing.
        federation: folder with the roster and this server's key.
        port: on 127.0.0.1, which is the only address it listens on; 0 = a free one.
        num_clients: nodes to wait for before the run starts; 0 = as many as the experiment declares.

    Raises:
        RunFailed: the run ended without a result.
        ConfigError: the port is taken, or the experiment names a fault list.
        StorageError: the folder is another experiment's, or cannot be used.
    """
    if experiment.simulation.faults:
        raise ConfigError("real processes play no faults yet: tacit simulate does", key="simulation.faults")
    from server import submission
    from server.following import RoundFollower, round_progress
    from server.state import check_folder
    from server.superlink import SuperLink
    from tacit.durable import write_file

    state = state.resolve()
    check_folder(state, experiment.to_toml())  # before anything is started and anybody waits
    write_file(state / "experiment.toml", experiment.to_toml().encode())  # what rebuilds its model
    variables = {"TACIT_STATE": str(state), "TACIT_FEDERATION": str(federation.resolve())}
    with SuperLink(state / "flower", port=port, variables=variables) as link:
        with round_progress() as progress:
            _wait_for_nodes(link, num_clients or _declared_clients(experiment), progress)
            rounds = progress.add_task("training", total=experiment.training.rounds)
            follow = RoundFollower(state / "rounds.jsonl", progress, rounds)
            submission.run(link, experiment.to_toml(), state, on_poll=follow)
            progress.update(rounds, total=follow.num_rounds, completed=follow.num_rounds)
        progress.console.print(
            f"done: {follow.num_rounds} of {experiment.training.rounds} rounds, {state / 'result.json'}"
        )


def _wait_for_nodes(link: SuperLink, num_clients: int, progress: Progress) -> None:
    from server import submission

    waiting = progress.add_task(f"sites on 127.0.0.1:{link.port}", total=num_clients)
    while (online := submission.num_online_nodes(link)) < num_clients:
        progress.update(waiting, completed=online)
        link.check()
        time.sleep(1.0)  # each question starts a process
    progress.update(waiting, completed=num_clients)


def _declared_clients(experiment: Experiment) -> int:
    return len(experiment.federation.sites) or experiment.partition.num_clients
