"""Flower's Fleet API as one node speaks it: Flower's own client code, without its processes and its waiting.

`flwr.supernode.fleet_http_connection.http_request_response` puts the same calls together, but it ends the process
when it cannot connect and sends it SIGINT when the SuperLink does not know the node: an agent has to outlive both.

Private modules of Flower, which is pinned exactly, are imported here and nowhere else in this package.
Longer than 400 lines because all of them are here.
"""

from __future__ import annotations

import secrets
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    HEARTBEAT_CALL_TIMEOUT,
    HEARTBEAT_DEFAULT_INTERVAL,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
)
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tacit.errors import ProtocolError, StorageError
from tacit.secagg.identity import create_private, read_private

HEARTBEAT_SECONDS: Final = 0.8 * (HEARTBEAT_DEFAULT_INTERVAL - HEARTBEAT_CALL_TIMEOUT)
PATIENCE_SECONDS: Final = 20.0  # for an object that was announced and is not there yet
LEAVE_SECONDS: Final = 5.0
MAX_RESPONSE: Final = 256 * 2**20  # bytes; Flower sends an array in pieces that are smaller
MAX_MESSAGE: Final = 2**30  # bytes
MAX_OBJECTS: Final = 100_000
PIECE: Final = 16 << 10  # bytes of a body that are written at a time, each within the time-out of a write

# Unknown node, wrong place, too slow, not active, too often, nobody behind the front. Else it is this one request that
# the SuperLink does not take; 403 says that the run has ended.
_LATER: Final = frozenset({401, 404, 408, 412, 429, 502, 503, 504})

# What is written and not sent yet is to be little: an answer is waited for from the last write on.
_UNSENT: Final = (
    [(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 4 * PIECE)]
    if hasattr(socket, "TCP_NOTSENT_LOWAT")
    else []
)

NodeKey = Any  # an EllipticCurvePrivateKey of `cryptography`, which is imported elsewhere
_Answer = TypeVar("_Answer")


class Lost(Exception):
    """The SuperLink cannot be reached, or does not know this node any more; later it may."""


class Over(Exception):
    """Nobody waits for this answer: the run has ended, or the message is gone."""


@dataclass(frozen=True)
class Delivery:
    """A message that this node has taken, and has to answer.

    Attributes:
        message: without its content.
        tree: which objects its content is made of.
    """

    message: Message
    tree: ObjectTree

    def encode(self) -> bytes:
        """For a file: a node that is killed answers after its restart, because nobody else will get the message."""
        proto = message_to_proto(self.message)
        response = PullMessagesResponse(messages_list=[proto], message_object_trees=[self.tree])
        return bytes(response.SerializeToString())

    @classmethod
    def decode(cls, data: bytes) -> Delivery | None:
        """The first of what the SuperLink sent; None when that is nothing."""
        response = PullMessagesResponse.FromString(data)
        return cls._first(response)

    @classmethod
    def _first(cls, response: Any) -> Delivery | None:
        if not response.messages_list or not response.message_object_trees:
            return None
        return cls(message_from_proto(response.messages_list[0]), response.message_object_trees[0])


@dataclass
class _Sent:
    """What the SuperLink has of the answer that is being sent.

    Attributes:
        number: of the answer.
        sizes: bytes of each object that it has taken.
        whole: whether that is all of it.
    """

    number: str
    sizes: dict[str, int] = field(default_factory=dict)
    whole: bool = False


@dataclass
class _Taken:
    """What has come of the message that is being fetched.

    Attributes:
        number: of the message.
        contents: of its objects, by their ids.
        size: of all of them, in bytes.
    """

    number: str
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True)
class RunInfo:
    """What the SuperLink says of a run.

    Attributes:
        bundle: SHA-256 of the app bundle, in hex.
        config: what the run was submitted with, on top of the bundle's own.
        series: runs of one series share their state at a node.
    """

    bundle: str
    config: Mapping[str, Any]
    series: int


class Wire:
    """One node's connection to a SuperLink.

    Args:
        address: HOST:PORT.
        key: the node's key, P-384.
        certificates: the CA file; None = no TLS, on loopback only.
        registers: whether the node makes itself known. Where nodes are authenticated, the coordinator does that.

    Guarantees:
        A redirect is not followed.
        A server without a certificate of this CA for this name is told nothing.
    """

    def __init__(self, address: str, key: NodeKey, certificates: Path | None, *, registers: bool) -> None:
        self._public, self._registers = public_key_to_bytes(key.public_key()), registers
        tls = tls_context(certificates) if certificates else False
        self._client = FleetHttpClient(
            f"http{'s' if certificates else ''}://{address}",
            interceptors=[
                _Version(),
                _Pieces(),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
            verify=tls,
        )
        http = self._client._client
        http._transport = httpx.HTTPTransport(verify=tls, socket_options=_UNSENT)
        http.follow_redirects = False
        http.headers["accept-encoding"] = "identity"  # a small answer must not become a large one here
        http.event_hooks = {"response": [_check_size]}
        self.node_id = 0
        self._sent, self._taken = _Sent(""), _Taken("")

    def close(self) -> None:
        """Ends the connection, without a word to the SuperLink."""
        self._client.close()

    def join(self, known: int) -> int:
        """Has the SuperLink count this node as there, and gives its number.

        Args:
            known: the number that this node had when it was last here, or 0. A heartbeat under it takes the node up
                where it was. To activate it is refused for up to a minute after a crash; to deactivate it first has
                the SuperLink tell the server at once that whatever this node was asked will not be answered.

        Raises:
            Lost: not now.
        """
        self.node_id = known
        if known:
            with suppress(Lost, Over):
                self.heartbeat()
                return self._joined(known)
        if self._registers:
            with suppress(Lost, Over):  # known already, or activation says why not
                self._call(self._client.RegisterNode, RegisterNodeFleetRequest(public_key=self._public))
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        return self._joined(int(self._call(self._client.ActivateNode, request).node_id))

    def _joined(self, number: int) -> int:
        self.node_id = TaskIdentity.node_id = number
        TaskIdentity.task_id = 0
        return number

    def leave(self) -> None:
        """Tells the SuperLink that this node is gone, if it can be told within seconds."""
        if self.node_id:
            self._client._client.timeout = httpx.Timeout(LEAVE_SECONDS)
            with suppress(Lost, Over):
                self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self.node_id))
            self.node_id = 0

    def heartbeat(self) -> None:
        """Raises `Lost` unless the SuperLink knows that this node is there."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        if not self._call(self._client.SendNodeHeartbeat, request).success:
            raise Lost("the SuperLink does not know this node")

    def receive(self) -> Delivery | None:
        """The next message, if there is one. It is this node's from here on: nobody else gets it."""
        return Delivery._first(self._call(self._client.PullMessages, PullMessagesRequest(node=self._node)))

    def run(self, run_id: int) -> RunInfo:
        """What the SuperLink says of a run."""
        request = GetRunRequest(node=self._node, run_id=run_id)
        run = run_from_proto(self._call(self._client.GetRun, request).run)
        return RunInfo(run.fab_hash, run.override_config, run.series_id)

    def fetch(self, delivery: Delivery) -> Message:
        """The message with its content. May be called again after `Lost`: what has come is not asked for again.

        Raises:
            ProtocolError: "message", it cannot be read, or is too large.
        """
        asked = delivery.message.metadata
        taken = self._taken if asked.message_id == self._taken.number else _Taken(asked.message_id)
        self._taken = _Taken("")
        pull = make_pull_object_fn_protobuf(self._calling(self._client.PullObject), self._node, asked.run_id)

        def pull_once(object_id: str) -> bytes:
            if object_id not in taken.contents:
                content = pull(object_id)
                taken.size += len(content)
                if taken.size > MAX_MESSAGE:
                    raise ProtocolError("message", "is too large")
                taken.contents[object_id] = content
            return taken.contents[object_id]

        try:
            objects = [tree.object_id for tree in iterate_object_tree(delivery.tree)]
            if len(objects) > MAX_OBJECTS:
                raise ProtocolError("message", "has too many parts")
            contents = pull_objects(
                objects,
                pull_once,
                max_time=PATIENCE_SECONDS,
                initial_backoff=0.02,
                backoff_cap=1.0,
            )
            message = inflate_object_from_contents(delivery.tree.object_id, contents)
        except ObjectPullError as error:
            raise Over(str(error)) from None
        except Lost:
            # On a line that loses one request in five a message of many parts would never come at once.
            self._taken = taken
            raise
        except (Over, ProtocolError):
            raise
        except Exception:  # whatever Flower's own readers make of bytes that are no message
            raise ProtocolError("message", "its content cannot be read") from None
        if not isinstance(message, Message):
            raise ProtocolError("message", "is none")
        # Whom it is for and what is asked is what the SuperLink said first, and what the answer is for.
        message.__dict__["_metadata"] = delivery.message.metadata
        return message

    def answer(self, delivery: Delivery, reply: Message) -> int:
        """Sends an answer, whole. May be called again with the same answer: what is there is not sent again.

        Returns:
            Its size in bytes.
        """
        asked = delivery.message.metadata
        # The same answer has the same number after a restart too, and a half-sent one is completed.
        reply.metadata.__dict__.update(_created_at=asked.created_at, _ttl=asked.ttl)
        reply.metadata.__dict__["_message_id"] = number = reply.object_id
        if number != self._sent.number:
            self._sent = _Sent(number)
        if not self._sent.whole:
            with no_object_id_recompute():
                self._announce_and_push(asked.run_id, reply)
            self._sent.whole = True
        return sum(self._sent.sizes.values())

    def _announce_and_push(self, run_id: int, reply: Message) -> None:
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        bare = message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)
        announced = self._call(
            self._client.PushMessages,
            PushMessagesRequest(
                node=self._node,
                messages_list=[bare],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],  # how long it computed follows from how many records there were
            ),
        )
        missing, session = set(announced.objects_to_push), announced.session_id
        if not missing:
            # Announced before, by a call whose answer was lost, or before a restart. When the server has heard of it
            # meanwhile, the SuperLink takes no second announcement, but takes what it lacks without a session.
            missing, session = objects.keys() - self._sent.sizes.keys(), ""
        push = make_push_object_fn_protobuf(
            self._calling(self._client.PushObject), self._node, run_id, session
        )

        def push_counted(object_id: str, content: bytes) -> None:
            try:
                push(object_id, content)
            except ObjectPushError:
                if session:
                    raise
            self._sent.sizes[object_id] = len(content)

        try:
            push_objects(objects, push_counted, object_ids_to_push=missing, keep_objects=True)
        except ObjectPushError as error:
            raise Lost(str(error)) from None

    def done(self, delivery: Delivery) -> None:
        """Says that the message's content is needed no more."""
        asked = delivery.message.metadata
        confirm = self._calling(self._client.ConfirmMessageReceived)
        make_confirm_message_received_fn_protobuf(confirm, self._node, asked.run_id)(asked.message_id)

    @property
    def _node(self) -> Node:
        return Node(node_id=self.node_id)

    def _calling(self, method: Callable[[Any], _Answer]) -> Callable[[Any], _Answer]:
        return lambda request: self._call(method, request)

    def _call(self, method: Callable[[Any], _Answer], request: Any) -> _Answer:
        """One call; `Over` or `Lost` when it fails."""
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            kind = Lost if status in _LATER else Over
            raise kind(_reason(status, error.response.text)) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise Lost(f"{type(error).__name__}: {error}") from None


class _Pieces(httpx.SyncByteStream):
    """Sends a body piece by piece.

    In one piece, TLS would have the time-out of one write for all of it: a large object would never get over a slow
    line.
    """

    def __init__(self, body: bytes = b"") -> None:
        self._body = body

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Called for each request."""
        context.request.stream = _Pieces(context.request.content)
        return call_next(context)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), PIECE):
            yield self._body[start : start + PIECE]


class _Version:
    """Says which Flower this is, as Flower's own interceptor does; that one ends the process over the answer."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Called for each request."""
        add_headers(context.request, self._headers)
        return call_next(context)


def tls_context(certificates: Path) -> ssl.SSLContext:
    """TLS 1.3, and a server certificate that the CA in this file has made for the name that was dialled.

    Raises:
        StorageError: the file cannot be read, or is none.
    """
    try:
        context = ssl.create_default_context(cafile=str(certificates))
    except OSError as error:  # ssl.SSLError is one
        raise StorageError(f"{certificates}: cannot be used: {error.strerror or error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def loopback_key(path: Path) -> NodeKey:
    """The key of a node that registers itself; made at its first start, so that it stays the same node."""
    if not path.exists():
        create_private(path, private_key_to_bytes(generate_key_pairs()[0]))
    try:
        return bytes_to_private_key(read_private(path))
    except (ValueError, TypeError):
        raise StorageError(f"{path}: is no key of a node") from None


@contextmanager
def in_run(run_id: int) -> Iterator[None]:
    """Within it, messages can be made as Flower's `ClientApp` process makes them."""
    TaskIdentity.run_id = run_id
    yield


def jitter(seconds: float) -> float:
    """Full jitter: anything from nothing to `seconds`, so that sites that were cut off together come back apart."""
    return seconds * secrets.randbelow(1 << 20) / (1 << 20)


def _reason(status: int, body: str) -> str:
    if status == httpx.codes.UNAUTHORIZED:
        return (
            "the SuperLink does not know this node's key, or the clocks differ"
            f" (allowed: {SYSTEM_TIME_TOLERANCE} s ahead, {TIMESTAMP_TOLERANCE} s behind)"
        )
    error = FlowerError.from_json(body)
    return f"HTTP {status}: {error.message}" if error else f"HTTP {status}"


def _check_size(response: httpx.Response) -> None:
    """Before the body is read."""
    length = response.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_RESPONSE or "content-encoding" in response.headers:
        raise httpx.RemoteProtocolError("an answer of no length, too long, or compressed")
