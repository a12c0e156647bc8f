"""The only listener on the public address: TLS, an exact list of requests, a bound on all that a stranger can use up.

Behind it, on loopback, the SuperLink answers anybody: who may call its Control API may run code on this machine. So
what passes is a list of ten requests and no rule, and bodies are streamed, not stored. It is built on h11, the parser
inside uvicorn and httpx, and not on a web framework: those decode a path before they show it, wait for a head for
ever, and count a connection only after its TLS handshake.

Guarantees:
    A request passes only if its method and its target, undecoded, are on the list.
    A body passes only if its length is declared and within its limit, which is checked before any of it is read.
    Who is slower than the least rate, or opens too many connections, is cut off; others do not notice.
    What one node has the SuperLink keep is bounded by the hour, what all of them do is bounded in all.
    The SuperLink is shown no header but Flower's own, and the peer none of a server's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

import h11
import httpx

from server.front_certificate import Certificate
from server.front_limits import Allowance, Limits, who
from server.front_nodes import Nodes
from server.front_peer import Peer, Refusal
from tacit.errors import ConfigError, RunFailed
from tacit.processes import LOOPBACK

# What the Fleet API of Flower 1.41 offers a node that is registered, and the limit for its body. A node is
# registered by the coordinator, so its two requests about that are not here.
FLEET: Final[Mapping[bytes, str]] = {
    b"/v1/fleet/activate-node": "small_bytes",
    b"/v1/fleet/deactivate-node": "small_bytes",
    b"/v1/fleet/send-node-heartbeat": "small_bytes",
    b"/v1/fleet/pull-messages": "small_bytes",
    b"/v1/fleet/push-messages": "list_bytes",
    b"/v1/fleet/get-run": "small_bytes",
    b"/v1/fleet/get-fab": "small_bytes",
    b"/v1/fleet/push-object": "object_bytes",
    b"/v1/fleet/pull-object": "small_bytes",
    b"/v1/fleet/confirm-message-received": "small_bytes",
}
ROSTER: Final = b"/tacit/roster"
TO_FLOWER: Final = frozenset(
    {
        b"content-type",
        b"accept",
        b"flwr-public-key",
        b"flwr-timestamp",
        b"flwr-signature",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)
FROM_FLOWER: Final = frozenset({b"content-type", b"content-length", b"flwr-version-incompatibility-message"})

# Idle connections to the SuperLink are dropped before it drops them itself, after 5 s: a request sent at that very
# moment would be lost.
_KEEP_SECONDS: Final = 2.0
_AWAY: Final = httpx.Timeout(connect=2.0, write=30.0, read=60.0, pool=None)
_STOP_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class Desk(Protocol):
    """Who answers the requests for the roster. Called from one thread at a time."""

    def limit(self, method: bytes) -> int:
        """The longest body."""

    def answer(self, method: bytes, member: str, body: bytes) -> tuple[int, bytes]:
        """Status and body; `member` is the request's header `tacit-member`, or empty."""


class Front:
    """A listener with a thread of its own, for as long as the `with` block.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self,
        upstream: str,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        tls: tuple[Path, Path] | None = None,
        ca: Path | None = None,
        desk: Desk | None = None,
        nodes: Callable[[], Mapping[str, Path]] | None = None,
        stored: Callable[[], int] = lambda: 0,
        limits: Limits | None = None,
        on_refusal: Callable[[str, str, str], None] = lambda remote, kind, reason: None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            upstream: the SuperLink, such as "https://127.0.0.1:9092"; http without TLS.
            host, port: where to listen; 0 takes a free port.
            tls: certificate and key, PEM; None, in a rehearsal on one machine only: without TLS.
            ca: who has signed the SuperLink's certificate.
            desk: answers `GET` and `POST /tacit/roster`.
            nodes: the public keys of those that may connect, files by label, asked for again and again; who
                shows none of them is turned away before a body is read. None: all are passed on to the SuperLink.
            stored: bytes in the SuperLink's database, asked for again and again.
            limits: what a stranger, or a node, can use up.
            on_refusal: told the address, what was asked for, and a reason; in the front's thread, and of one
                address and reason once a minute at most, so that nobody can fill a log.

        Raises:
            ConfigError: the address would be public without TLS; on entering: it cannot be used.
            StorageError: the certificate or its key cannot be used.
        """
        if tls is None and host not in (LOOPBACK, "::1", "localhost"):
            raise ConfigError(f"{host}: without TLS only this machine may be listened to", key="address")
        self._certificate = Certificate(*tls) if tls else None
        self._upstream, self._ca, self._desk = upstream, ca, desk
        self._limits = limits or Limits()
        self._on_refusal = on_refusal
        self._rate = Allowance(self._limits.rate, self._limits.burst)
        self._reports = Allowance(1 / 60, 1)
        self._uploads = Allowance(self._limits.node_bytes / 3600, self._limits.node_bytes)
        self._stored = stored
        self._open: Counter[str] = Counter()
        self._counters: Counter[str] = Counter()
        self._in_flight = self._to_desk = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._nodes = Nodes(nodes) if nodes else None
        self._address = host, port
        self.port = port
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tacit-front", daemon=True)

    def __enter__(self) -> Front:
        self._listener = _listen(*self._address)
        self.port = int(self._listener.getsockname()[1])
        self._thread.start()
        self._ready.wait(_STOP_SECONDS)
        self.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)

    def check(self) -> None:
        """Raises `RunFailed` when the front has ended."""
        if self._failed or not self._thread.is_alive():
            raise RunFailed(f"the TLS front has ended: {self._failed!r}")

    @property
    def counters(self) -> dict[str, int]:
        """Requests and connections by what became of them."""
        return dict(self._counters)

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._tasks)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # of a thread: whoever asks `check` is told
            self._failed = error
        finally:
            self._listener.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._at_the_desk = asyncio.Lock()
        async with _client(self._ca) as self._client:
            accepting = self._loop.create_task(self._accept())
            accepting.add_done_callback(lambda task: self._stop.set())
            self._ready.set()
            await self._stop.wait()
            tasks = [accepting, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks[1:], return_exceptions=True)
            with suppress(asyncio.CancelledError):
                await accepting

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._listener)
            except OSError:  # gone again, or this process has no file left: what is open has to end first
                await asyncio.sleep(0.05)
                continue
            remote = who(address[0])
            if reason := self._no_room_for(remote):
                connection.close()
                self._note(remote, "connection", reason)
            else:
                task = self._loop.create_task(self._connection(connection, remote))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(0)  # a flood must not keep the others from being served

    def _no_room_for(self, remote: str) -> str:
        """Why a connection is not even answered with TLS; empty if it is."""
        if not self._rate.take(remote):
            return "rate"
        full = len(self._tasks) >= self._limits.connections
        return "connections" if full or self._open[remote] >= self._limits.connections_each else ""

    async def _connection(self, connection: socket.socket, remote: str) -> None:
        self._open[remote] += 1
        try:
            peer = await self._shake_hands(connection, remote)
        except OSError:
            self._note(remote, "connection", "tls")
        else:
            await self._converse(peer)
        finally:
            self._open[remote] -= 1
            if not self._open[remote]:
                del self._open[remote]

    async def _shake_hands(self, connection: socket.socket, remote: str) -> Peer:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        context = self._certificate.context() if self._certificate else None
        try:
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, True
            )  # answers are small: send at once
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=context,
                ssl_handshake_timeout=self._limits.head_seconds if context else None,
                ssl_shutdown_timeout=1.0 if context else None,
            )
        except BaseException:
            connection.close()
            raise
        return Peer(
            reader, asyncio.StreamWriter(transport, protocol, reader, self._loop), remote, self._limits
        )

    async def _converse(self, peer: Peer) -> None:
        kind = "connection"
        try:
            while (request := await peer.request()) is not None:
                kind = _kind(request)
                await self._answer(peer, request)
                self._counters["answered"] += 1
                kind = "connection"
        except Refusal as refusal:
            self._note(peer.remote, kind, refusal.reason)
            await peer.refuse(refusal.status)
        except Exception:  # one connection's; the others go on
            _log.exception("a connection has ended")
        finally:
            await peer.close()

    async def _answer(self, peer: Peer, request: h11.Request) -> None:
        if not self._rate.take(peer.remote):
            raise Refusal(503, "rate")  # of all refusals the one that Flower's own client tries again after
        if request.http_version != b"1.1":
            raise Refusal(505, "malformed")
        if request.target == ROSTER and self._desk and request.method in (b"GET", b"POST"):
            length = self._check_length(request, self._desk.limit(request.method))
            await self._ask_desk(self._desk, peer, request, length)
        elif request.target in FLEET and request.method == b"POST":
            if self._nodes and not self._nodes.knows(dict(request.headers).get(b"flwr-public-key", b"")):
                raise Refusal(401, "unknown-node")
            limit = FLEET[request.target]
            length = self._check_length(request, getattr(self._limits, limit))
            if limit != "small_bytes":
                self._check_room(request, length)
            await self._forward(peer, request, length, length if limit == "object_bytes" else 0)
        else:
            raise Refusal(404, "path")

    def _check_length(self, request: h11.Request, limit: int) -> int:
        headers = dict(request.headers)
        if b"transfer-encoding" in headers or (
            request.method == b"POST" and b"content-length" not in headers
        ):
            raise Refusal(411, "length")
        length = int(headers.get(b"content-length", 0))
        if length > limit:
            raise Refusal(413, "too-large")
        return length

    def _check_room(self, request: h11.Request, length: int) -> None:
        """Before a body is read that the SuperLink would keep. 503: the site asks again, and waits longer each time."""
        if self._stored() > self._limits.store_bytes:
            raise Refusal(503, "store-full")
        if not self._uploads.take(dict(request.headers).get(b"flwr-public-key", b""), length):
            raise Refusal(503, "node-bytes")

    async def _forward(self, peer: Peer, request: h11.Request, length: int, held: int) -> None:
        if held and self._in_flight + held > self._limits.in_flight_bytes:
            raise Refusal(503, "busy")
        headers = [(name, value) for name, value in request.headers if name in TO_FLOWER]
        headers.append((b"content-length", b"%d" % length))
        url = self._upstream + request.target.decode("ascii")
        self._in_flight += held
        try:
            async with AsyncExitStack() as stack:
                body = peer.body()
                stack.push_async_callback(body.aclose)
                response = await self._client.send(
                    httpx.Request("POST", url, headers=headers, content=body), stream=True
                )
                stack.push_async_callback(response.aclose)
                await _pass_on(response, peer)
        except httpx.HTTPError:
            raise Refusal(503, "superlink-away") from None
        finally:
            self._in_flight -= held

    async def _ask_desk(self, desk: Desk, peer: Peer, request: h11.Request, length: int) -> None:
        if length and self._to_desk and self._to_desk + length > self._limits.desk_bytes:
            raise Refusal(503, "busy")
        member = dict(request.headers).get(b"tacit-member", b"").decode(errors="replace")
        self._to_desk += length
        try:
            body = b"".join([chunk async for chunk in peer.body()])
            async with self._at_the_desk:
                status, answer = await asyncio.to_thread(desk.answer, request.method, member, body)
        finally:
            self._to_desk -= length
        if status >= 400:
            self._note(peer.remote, "roster", f"status-{status}")
        await peer.answer(status, answer, dated=True)

    def _note(self, remote: str, kind: str, reason: str) -> None:
        self._counters[reason] += 1
        if self._reports.take((remote, kind, reason)):
            try:
                self._on_refusal(remote, kind, reason)
            except Exception:  # a log that cannot be written is no reason to serve nobody
                _log.exception("a refusal was not noted")


async def _pass_on(response: httpx.Response, peer: Peer) -> None:
    headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() in FROM_FLOWER]
    await peer.send(h11.Response(status_code=response.status_code, headers=headers))
    async for chunk in response.aiter_raw():
        await peer.send(h11.Data(data=chunk))
    await peer.send(h11.EndOfMessage())


def _kind(request: h11.Request) -> str:
    """What a request asks for, in words of ours: what strangers write stays out of logs."""
    if request.target in FLEET:
        return request.target.rpartition(b"/")[2].decode("ascii")
    return "roster" if request.target == ROSTER else "unknown"


def _client(ca: Path | None) -> httpx.AsyncClient:
    """To the SuperLink; whatever proxy the environment names, and wherever a redirection points."""
    verify = ssl.create_default_context(cafile=str(ca)) if ca else True
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_SECONDS)
    return httpx.AsyncClient(
        verify=verify, trust_env=False, follow_redirects=False, timeout=_AWAY, limits=limits
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", key="address") from None
    listener.setblocking(False)
    return listener
