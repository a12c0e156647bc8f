"""What a run would have given in which nobody was killed, and those who are in no sum had refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from crash_world import World
from flwr.app import Context, Error, Message
from loopback import same_model
from numpy.typing import NDArray
from safetensors.numpy import load_file

import client.app
from client.app import app as real_app
from simulations.run import Clock, Simulation, prepare, run_local
from tacit import config
from tacit.config import Experiment


def same_as_undisturbed(world: World) -> None:
    """The model of a world's run is, to the bit, that of the sums that its rounds speak of."""
    expected = undisturbed_model(world.wanted, world.rounds, world.folder / "undisturbed")
    assert same_model(world.state / "model.safetensors", expected)


def undisturbed_model(
    wanted: Experiment, rounds: Sequence[Mapping[str, Any]], folder: Path
) -> dict[str, NDArray[np.float32]]:
    """The model after these rounds of an experiment over sites that are yet to be made.

    Args:
        wanted: without the sites.
        rounds: as in rounds.jsonl, from the first.
        folder: empty, or not there.
    """
    ideal = ("secure_aggregation.engine=ideal", "simulation.executor=serial")
    experiment = config.loads(wanted.to_toml(), overrides=(*ideal, f"training.rounds={len(rounds)}"))
    survivors = {row["round"]: row["survivors"] for row in rounds}

    def app(message: Message, context: Context) -> Message:
        kind, site = (
            message.metadata.message_type,
            f"site-{int(str(context.node_config['partition-id'])) + 1}",
        )
        if kind.startswith("train"):
            number = int(str(message.content["tacit"]["round"]))
            if site not in survivors[number]:
                return Message(Error(1000, "refused:unavailable"), reply_to=message)
        return real_app(message, context)

    prepared = prepare(experiment, folder)
    simulation = Simulation(prepared, folder, "local", datetime.now(UTC), Clock())
    with mock.patch.object(client.app, "app", app):
        run_local(simulation)
    return load_file(simulation.state / "model.safetensors")
