"""The one line at the server: a Flower app's own grid and strategy, with the secure sum between them.

from server.bridge import secure

grid = secure(grid, strategy)  # before strategy.start(grid=grid, ...)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.app import coordinator_of
from strategies.bridge import BridgeGrid
from strategies.coordinator import SumMemory
from strategies.exchange import find_members
from strategies.mean_only import check_mean_only
from tacit.bridge import FILE, Terms, federation_of
from tacit.errors import ConfigError


def secure(
    grid: Grid, strategy: Strategy, *, folder: Path | None = None, mean_only: bool = False
) -> BridgeGrid:
    """The grid to hand to `strategy.start`; waits until every member of the roster is there.

    Args:
        grid: as Flower hands it to the app.
        strategy: any that needs nothing but the mean.
        folder: holds `roster.json`, `server.key` and `bridge.toml`; the environment's `TACIT_FEDERATION` without.
        mean_only: take the caller's word that a strategy which is not known needs the mean only.

    Raises:
        ConfigError: the folder, or a strategy that needs more than the mean.
        RunFailed: a member did not come before the deadline.
    """
    if not mean_only:
        check_mean_only(strategy)  # before anybody is waited for
    if folder is None and "TACIT_FEDERATION" not in os.environ:
        raise ConfigError("names no folder with the roster and this server's key", key="TACIT_FEDERATION")
    folder = folder or Path(os.environ["TACIT_FEDERATION"])
    terms = Terms.load(folder / FILE)
    coordinator = coordinator_of(folder, SumMemory())
    labels = [site.label for site in federation_of(coordinator.roster).sites]
    nodes = find_members(grid, labels, terms.secure_aggregation.deadline_seconds)
    return BridgeGrid(grid, strategy, terms, coordinator, secrets.token_hex(16), nodes, mean_only=mean_only)
