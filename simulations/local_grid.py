"""A Flower `Grid` in this process: the same ServerApp and ClientApp, without Ray and without serialising.

A message is handled when it is pushed, by the `ClientApp` itself (the serial path). An executor may train a whole
cohort at once through the hook `train_cohort` and hand over one ideal sum; the serial path is its oracle.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from strategies.sum_grid import CohortResult

RUN_ID = 1
SERVER_NODE = 1

Cohort = Sequence[tuple[Message, Context]]
Executor = Callable[[Cohort], CohortResult]


class LocalGrid(Grid):
    """All nodes of a simulation in this process.

    Args:
        client_app: what every node runs.
        run_config: what every node and the server find in their context.
        num_nodes: node i (from 0) has `partition-id` i.
        executor: trains a whole cohort and adds it up; None = there is no such hook.
        durable: whether the server waits for the disk at each round.
        train_ahead: sees all messages of a push before any of them is handled.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: dict[str, str],
        num_nodes: int,
        executor: Executor | None = None,
        train_ahead: Callable[[Cohort], None] = lambda cohort: None,
        *,
        durable: bool = False,
    ) -> None:
        identify_process()
        self._app, self._run_config, self._num_nodes = client_app, run_config, num_nodes
        self._numbers = itertools.count(1)
        self._answers: dict[str, Message] = {}
        self._contexts: dict[int, Context] = {}
        self._run = Run.create_empty(RUN_ID)
        self._train_ahead, self.durable = train_ahead, durable
        if executor is not None:
            self.train_cohort = lambda messages: executor(self._addressed(messages))

    def set_run(self, run: Run) -> None:
        """See Flower's `Grid`."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Flower's `Grid`."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Flower's `Grid`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node i of the simulation has the id i + 2; 1 is the server."""
        return range(SERVER_NODE + 1, SERVER_NODE + 1 + self._num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Handles each message at once; the answers wait to be pulled."""
        message_ids = []
        cohort = self._addressed(messages)
        self._train_ahead(cohort)
        for message, context in cohort:
            message.metadata.__dict__["_message_id"] = message_id = f"m{next(self._numbers)}"
            self._answers[message_id] = self._handle(message, context)
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Each answer once."""
        return [self._answers.pop(i) for i in message_ids if i in self._answers]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))

    def context(self, node: int) -> Context:
        """A node's context; it lives as long as the grid."""
        if node not in self._contexts:
            config: UserConfig = {
                "partition-id": node - SERVER_NODE - 1,
                "num-partitions": self._num_nodes,
                "sessions": "memory",
            }
            self._contexts[node] = Context(RUN_ID, node, config, RecordDict(), dict(self._run_config))
        return self._contexts[node]

    def _addressed(self, messages: Iterable[Message]) -> Cohort:
        """Each message with the context of the node that it is for."""
        return [(message, self.context(message.metadata.dst_node_id)) for message in messages]

    def _handle(self, message: Message, context: Context) -> Message:
        try:
            return self._app(message, context)
        except Exception as error:  # the edge of a node: what ends a real ClientApp must not end the others
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, failure(error)), reply_to=message)


def failure(error: Exception) -> str:
    """What went wrong and where, in one line: most often it is in a task of the user's own."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}".splitlines()[0][:160] + where


def identify_process() -> None:
    """Outside a Flower process a `Message` can only be made once the process has an identity."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 0
