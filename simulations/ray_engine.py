"""The Ray engine: the same apps through Flower's own simulation runtime, for clusters and many GPUs.

Flower's supported way in 1.41 is a SuperLink in simulation mode and `flwr run`; each simulated site is a
virtual node whose `partition-id` is the name of its folder. With `RAY_ADDRESS` set the sites run on that
cluster, which must see the same paths; without it a Ray of our own is started and ended with the run. It asks
the metadata services of three clouds whether it runs there, and has no setting against that.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from server import submission
from server.superlink import SuperLink
from tacit.config import Ray
from tacit.errors import MissingExtra


def run(
    experiment_toml: str,
    *,
    state: Path,
    sites: Path,
    num_clients: int,
    settings: Ray | None = None,
    on_poll: Callable[[], None] | None = None,
    timeout: float | None = None,
) -> None:
    """Runs one experiment on Ray and returns when its result is in `state`.

    Args:
        experiment_toml: the experiment, as canonical TOML text.
        state: the server's state directory, `TACIT_STATE` of the `ServerApp`.
        sites: folder with one folder per site, named 0, 1, 2 ..., `TACIT_SITES` of the `ClientApp`s.
        num_clients: how many sites there are.
        settings: what each gets, and which cluster; None = a core each.
        on_poll: called about five times a second, to show progress.
        timeout: seconds after which the run is stopped.

    Raises:
        MissingExtra: Ray is not installed.
        RunFailed: the run ended without a result, with the reason and the end of its log.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("the Ray engine", "simulation")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)  # the server keeps its audit log in it
    # Not below `state`: Ray's sockets lie in this folder, and a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="tacit-ray-", ignore_cleanup_errors=True) as scratch:
        settings = settings or Ray()
        variables = ray_variables(state, sites, scratch, settings.address)
        with SuperLink(state / "flower", simulation=True, variables=variables) as link:
            submission.run(
                link,
                experiment_toml,
                state,
                federation=_federation(num_clients, settings),
                on_poll=on_poll,
                timeout=timeout,
            )


def ray_variables(state: Path, sites: Path, scratch: str, address: str = "") -> dict[str, str]:
    """What the simulation's processes find in their environment.

    Guarantees:
        A Ray that we start sends no usage report and obeys nobody who lacks this run's token. (Its ports are
        open on every interface of the machine.)
    """
    variables = {
        "TACIT_STATE": str(state.resolve()),
        "TACIT_SITES": str(sites.resolve()),
        "TACIT_FEDERATION": str(sites.resolve()),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if address:
        variables["RAY_ADDRESS"] = address
    if address or "RAY_ADDRESS" in os.environ:
        # The workers of a running cluster have its environment, not ours; Ray hands these to those of this job.
        handed = {key: variables[key] for key in ("TACIT_SITES", "TACIT_FEDERATION")}
        variables["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"env_vars": handed}})
    else:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        variables |= {"RAY_TMPDIR": scratch, **token}
    return variables


def _federation(num_clients: int, settings: Ray) -> str:
    """Flower's federation configuration: what each client gets, and no more of our own actors than clients."""
    keys: dict[str, float] = {
        "num-supernodes": num_clients,
        "client-resources-num-cpus": settings.cpus_per_client,
        "client-resources-num-gpus": settings.gpus_per_client,
    }
    own = not settings.address and "RAY_ADDRESS" not in os.environ
    most = num_clients * settings.cpus_per_client
    if own and most < (os.cpu_count() or 1):
        keys["init-args-num-cpus"] = most
    return " ".join(f"{key}={value}" for key, value in keys.items())
