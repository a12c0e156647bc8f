"""What a run would have given in which nobody was killed, and those who are in no sum had refused."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest import mock

from crash_world import World
from flwr.app import Context, Error, Message
from loopback import same_model
from safetensors.numpy import load_file

import client.app
from client.app import app as real_app
from simulations.run import Clock, Simulation, prepare, run_local
from tacit import config


def same_as_undisturbed(world: World) -> None:
    """The model of a world's run is, to the bit, that of the sums that its rounds speak of."""
    ideal = ("secure_aggregation.engine=ideal", "simulation.executor=serial")
    experiment = config.loads(world.wanted.to_toml(), overrides=ideal)
    survivors = {row["round"]: row["survivors"] for row in world.rounds}

    def app(message: Message, context: Context) -> Message:
        kind, site = (
            message.metadata.message_type,
            f"site-{int(str(context.node_config['partition-id'])) + 1}",
        )
        if kind.startswith("train"):
            number = int(str(message.content["tacit"]["round"]))
            if site not in survivors[number]:  # type: ignore[operator]
                return Message(Error(1000, "refused:unavailable"), reply_to=message)
        return real_app(message, context)

    folder = world.folder / "undisturbed"
    prepared = prepare(experiment, folder)
    simulation = Simulation(prepared, folder, "local", datetime.now(UTC), Clock())
    with mock.patch.object(client.app, "app", app):
        run_local(simulation)
    assert same_model(world.state / "model.safetensors", load_file(simulation.state / "model.safetensors"))
