"""Flower's Control API, asked directly, and its grid, without the waiting of either.

The command line starts a process of about a second for each question; the grid's own `pull_messages` waits for an
answer that is announced and not uploaded yet, up to three minutes, and for nothing else meanwhile.

One of three files that use Flower's private modules; pinned with Flower's version, and a test fails first when
they move.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, TypeVar

import click
import httpx
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.cli.build import build_fab_from_disk
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.serde import fab_to_proto, message_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.superlink.grid.http_grid import HttpGrid

from server.superlink import ProgramEnded, SuperLink
from strategies.grids import WrappedGrid
from tacit.errors import ConfigError, RunFailed

MAX_ANSWER: Final = 2**30  # bytes
MAX_OBJECTS: Final = 100_000
MALFORMED: Final = Error(1000, "refused:malformed")
FORGET_SECONDS: Final = 60.0  # a part of an answer that nobody has asked for this long is let go
FINISHED = "finished"
GONE = ("unregistered", "deleted")
_Answer = TypeVar("_Answer")


class Node(NamedTuple):
    """A registered node: Flower's id of it, its public key as Flower keeps it (PEM), whether it is connected."""

    id: int
    key: bytes
    online: bool


class Control:
    """What the owner of a SuperLink may ask of it, for the length of a `with`.

    Every method raises `ProgramEnded` when the SuperLink does not answer, and `RunFailed` when it refuses.
    """

    def __init__(self, link: SuperLink) -> None:
        ca = link.tls.ca.read_bytes() if link.tls else None
        self._client = ControlHttpClient.from_server_address(
            link.address, link.tls is None, ca, [RuntimeVersionHttpInterceptor("tacit")]
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def nodes(self) -> list[Node]:
        """All nodes that are registered."""
        found = _asked(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return [
            Node(node.node_id, node.public_key, node.status == "online")
            for node in found
            if node.status not in GONE
        ]

    def register(self, key: bytes, name: str) -> int:
        """Lets the holder of a key connect; returns the id of its node."""
        return int(
            _asked(lambda: self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))).node_id
        )

    def unregister(self, node: int) -> None:
        """Lets it connect no more."""
        _asked(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node)))

    def start(self, bundle: Path, experiment: str) -> int:
        """Starts a run; returns Flower's id of it.

        Args:
            bundle: folder of the bundle's source.
            experiment: canonical TOML text.
        """
        content = build_fab_from_disk(bundle)
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        config = user_config_to_proto({"experiment": experiment})
        request = StartRunRequest(fab=fab, override_config=config)
        return int(_asked(lambda: self._client.StartRun(request)).run_id)

    def unfinished(self) -> list[int]:
        """Ids of the runs that Flower takes for pending, starting or running."""
        runs = _asked(lambda: self._client.ListRuns(ListRunsRequest())).run_dict
        return [run_id for run_id, run in runs.items() if run.status.status != FINISHED]

    def stop(self, run: int) -> None:
        """Ends a run; one that has just ended by itself is as good."""
        try:
            _asked(lambda: self._client.StopRun(StopRunRequest(run_id=run)))
        except RunFailed:
            if run in self.unfinished():
                raise


def load_key(path: Path) -> bytes:
    """A node's public key, a file in OpenSSH form, as Flower keeps it.

    Raises:
        ConfigError: this is none.
    """
    try:
        return try_load_public_key(path)
    except (OSError, click.ClickException, SystemExit) as error:
        raise ConfigError(f"no public key of a node: {error}", source=path) from None


def _asked(question: Callable[[], _Answer]) -> _Answer:
    try:
        return question()
    except httpx.HTTPStatusError as error:
        answer = error.response
        if answer.is_server_error:
            raise ProgramEnded(f"the SuperLink fails: {answer.status_code}") from None
        raise RunFailed(f"the SuperLink refuses: {answer.status_code} {answer.text[:300]}") from None
    except (httpx.HTTPError, ValueError) as error:
        raise ProgramEnded(f"the SuperLink does not answer: {error}") from None


class SteadyGrid(WrappedGrid):
    """Flower's grid of a `ServerApp`, whose answers come when they are complete and never hold up the others.

    Guarantees:
        Whatever a node uploads, the others' answers come. What is no message, or too large, comes as a refusal.
        Who answers, and what, is as the SuperLink has checked it, not as the answer itself says.

    Args:
        grid: as Flower hands it to the `ServerApp`.
    """

    _grid: HttpGrid

    def __init__(self, grid: HttpGrid) -> None:
        super().__init__(grid)
        self._halves: dict[str, _Half] = {}  # by the id of the message that it answers

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Flower's `Grid`."""
        since = time.monotonic() - FORGET_SECONDS
        self._halves = {number: half for number, half in self._halves.items() if half.asked > since}
        return super().push_messages(messages)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See Flower's `Grid`. Not used."""
        raise NotImplementedError

    @property
    def progress(self) -> dict[str, float]:
        """When the last part of an answer has come, by `time.monotonic`, for each that is being uploaded."""
        return {message_id: half.moved for message_id, half in self._halves.items()}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these that are complete. One that a node stops uploading is never complete."""
        wanted = list(message_ids)
        # The SuperLink tells of an answer once.
        if asked := [message_id for message_id in wanted if message_id not in self._halves]:
            told = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=asked))
            for message, tree in zip(told.messages_list, told.message_object_trees, strict=True):
                half = _Half(message_from_proto(message), tree)
                self._halves[message.metadata.reply_to_message_id] = half
        for message_id in wanted:
            if message_id in self._halves and (answer := self._completed(message_id)) is not None:
                yield answer

    def _completed(self, message_id: str) -> Message | None:
        half, client = self._halves[message_id], self._grid._runtime_client
        half.asked = time.monotonic()
        pull = make_pull_object_fn_protobuf(client.PullObject, self._grid.node, self._grid.run.run_id)
        try:
            for object_id in half.missing():
                half.add(object_id, pull(object_id))
        except ObjectUnavailableError:
            return None
        except ObjectPullError:  # the SuperLink has given up the upload; it says so when it is asked again
            del self._halves[message_id]
            return None
        except OverflowError:
            half.objects.clear()  # what is left cannot be read, and is refused below
        del self._halves[message_id]
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=half.number
            )
        )
        return half.answer()


@dataclass
class _Half:
    """An answer that is announced, and what there is of it."""

    told: Message
    tree: ObjectTree
    objects: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    moved: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)

    @property
    def number(self) -> str:
        return str(self.told.metadata.message_id)

    def missing(self) -> Iterator[str]:
        """Ids of the objects that have not come yet; `OverflowError` if there are too many."""
        ids = [tree.object_id for tree in iterate_object_tree(self.tree)]
        if len(ids) > MAX_OBJECTS:
            raise OverflowError
        return (object_id for object_id in ids if object_id not in self.objects)

    def add(self, object_id: str, content: bytes) -> None:
        """Takes an object; `OverflowError` if all together are too large."""
        self.objects[object_id], self.moved = content, time.monotonic()
        self.size += len(content)
        if self.size > MAX_ANSWER:
            raise OverflowError

    def answer(self) -> Message:
        """The answer; a refusal in place of what is none."""
        try:
            inside = inflate_object_from_contents(self.number, self.objects)
        except Exception:  # whatever Flower's own readers make of bytes that are no message
            inside = None
        if not isinstance(inside, Message) or not (
            inside.has_error() or isinstance(inside.content, RecordDict)
        ):
            return make_message(self.told.metadata, error=MALFORMED)
        inside.__dict__["_metadata"] = self.told.metadata
        return inside


def steady(grid: Grid) -> Grid:
    """A grid that waits for nobody's half of an answer; any grid but that of a real SuperLink is one."""
    return SteadyGrid(grid) if isinstance(grid, HttpGrid) else grid
