"""What the tests of real processes share: small sites, who is still running, who wanted to go outside."""

import os
import socket
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from simulations.enrolment import enrol
from simulations.run import Clock, Simulation, run_local
from simulations.sites import PreparedSites, prepare_sites
from simulations.sources import load_source
from tacit import config

EXPERIMENT = """
name = "loopback"
[partition]
num_clients = 3
[task.model]
name = "logistic"
[training]
rounds = 2
local_steps = 1
sampling_rate = 0.5
"""


def three_sites(out: Path, *overrides: str) -> PreparedSites:
    """Breast cancer over three sites, on disk; without privacy unless `overrides` say so."""
    experiment = config.loads(EXPERIMENT, overrides=overrides)
    table, schema = load_source(experiment.data)
    prepared = prepare_sites(experiment, table, schema, out)
    enrol(prepared.folder, prepared.experiment)
    return prepared


def local_model(out: Path, *overrides: str) -> dict[str, NDArray[np.float32]]:
    """What the local engine makes of the same experiment."""
    prepared = three_sites(out, *overrides)
    simulation = Simulation(prepared, out, "local", datetime.now(UTC), Clock())
    run_local(simulation)
    return load_file(simulation.state / "model.safetensors")


def same_model(model: Path, expected: dict[str, NDArray[np.float32]]) -> bool:
    """Whether the file holds exactly these arrays."""
    arrays = load_file(model)
    return arrays.keys() == expected.keys() and all((arrays[k] == expected[k]).all() for k in expected)


def still_running(folder: Path) -> list[str]:
    """Command lines of all processes that were started with something about `folder` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has just ended, or is somebody else's
            continue
        if process.name != str(os.getpid()) and os.fsencode(str(folder)) in environment:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


class Outside:
    """A proxy that forwards nothing and counts who asked: every way out of Flower and Ray honours it."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        return dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)

    def close(self) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            with connection:
                self.requests.append(connection.recv(200))
