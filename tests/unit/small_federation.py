"""Six small sites and a server in one process, for the tests of the rounds: real apps, real files, real strategies."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.serverapp.strategy import Strategy

from client import participant
from client.app import app as client_app
from server.app import lanes
from server.state import RunState
from simulations.local_grid import Cohort, Executor, LocalGrid
from simulations.run import environment, one_thread, prepare
from strategies import secure_grid
from strategies.exchange import find_members
from strategies.factory import make_strategy
from strategies.rounds import Arrays, Rounds
from tacit import config
from tacit.config import Experiment
from tacit.personal import first_arrays
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.server import ServerMachine
from tacit.tasks import load_task
from tacit.update import Aggregate

TEXT = """
name = "small"
[partition]
num_clients = 6
[task.model]
hidden = [4]
[training]
rounds = 3
local_steps = 1
sampling_rate = 0.5
[secure_aggregation]
max_dropouts = 2
deadline_seconds = 5.0
[checkpoints]
keep = 0
[simulation]
baselines = false
"""

PRIVATE = "privacy.record={epsilon=20.0, delta=1e-5}"

logging.getLogger("flwr").setLevel(logging.ERROR)

ClientApp = Callable[[Message, Context], Message]


class Federation:
    """The sites on disk; any number of runs over them."""

    def __init__(self, out: Path, *settings: str, text: str = TEXT) -> None:
        prepared = prepare(config.loads(text, overrides=settings), out, durable=False)
        self.experiment: Experiment = prepared.experiment
        self.sites = prepared.folder

    @property
    def labels(self) -> list[str]:
        return [site.label for site in self.experiment.federation.sites]

    def node(self, site: int) -> int:
        return site + 2

    def initial(self) -> Arrays:
        task, private = load_task(self.experiment), self.experiment.privacy.record is not None
        return first_arrays(self.experiment, task, private=private)[0]

    @contextmanager
    def rounds(
        self,
        folder: Path,
        strategy: Strategy | None = None,
        *,
        app: ClientApp = client_app,
        executor: Executor | None = None,
        ahead: Callable[[Cohort], None] = lambda cohort: None,
        state: type[RunState] = RunState,
        grid: type[LocalGrid] = LocalGrid,
    ) -> Iterator[Rounds]:
        """A server that has just been started on `folder`; the clients know nothing of an earlier start."""
        participant.participant_of.cache_clear()
        participant.run_of.cache_clear()
        text = self.experiment.to_toml()
        sites = str(self.sites)
        with environment(TACIT_SITES=sites, TACIT_FEDERATION=sites), one_thread():
            run_config = {"experiment": text}
            nodes = grid(app, run_config, len(self.labels), executor, ahead)  # type: ignore[arg-type]
            plan = PrivacyPlan.of(self.experiment)
            members = find_members(nodes, self.labels, 60.0)
            store = state(folder, text, self.experiment.checkpoints.keep)
            try:
                chosen = strategy or make_strategy(self.experiment)
                known = make_strategy(
                    self.experiment
                )  # of `chosen` the grid may not know that the mean is enough
                with lanes(nodes, self.experiment, plan, known, members, store) as wrapped:
                    yield Rounds(self.experiment, plan, chosen, wrapped, members, store, store.run_id)
            finally:
                store.close()

    def run(self, folder: Path, strategy: Strategy | None = None, **options: Any) -> Arrays:
        """All rounds that are left; the model after the last one."""
        with self.rounds(folder, strategy, **options) as rounds:
            return rounds.run(self.initial()).arrays


class Misbehaving:
    """The real ClientApp, but for some messages at some sites.

    Args:
        what: from the message, its answer by the real app (a call) and the site's number to another answer, or
            None for the real one.
    """

    def __init__(self, what: Callable[[Message, Callable[[], Message], int], Message | None]) -> None:
        self._what = what
        self.asked: list[tuple[int, str]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        site, kind = int(str(context.node_config["partition-id"])), message.metadata.message_type
        self.asked.append((site, kind))
        answer = self._what(message, lambda: client_app(message, context), site)
        return client_app(message, context) if answer is None else answer


def refusal(message: Message, reason: str) -> Message:
    return Message(Error(1000, f"refused:{reason}"), reply_to=message)


def same(a: Arrays, b: Arrays) -> bool:
    """Bit-equal, in the same order."""
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def ledger_entries(folder: Path) -> int:
    path = folder / "ledger" / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if os.path.exists(path) else 0


def is_step(message: Message, *steps: str) -> bool:
    """Whether a message is of one of these steps of a training exchange: "tacit0", say."""
    return message.metadata.message_type.removeprefix("train.") in steps


@contextmanager
def opened_sums() -> Iterator[list[tuple[int, ...]]]:
    """Whose vectors are in each sum that any server opens."""
    opened: list[tuple[int, ...]] = []

    class Noting(ServerMachine):
        def aggregate(self) -> Aggregate:
            aggregate = super().aggregate()
            opened.append(self.survivors)
            return aggregate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secure_grid, "ServerMachine", Noting)
        yield opened
