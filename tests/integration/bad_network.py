"""A bad network between one site and the front, as a proxy that the test tells what to lose, hold back or repeat.

It ends TLS on both sides, so that it can tell one request from the next: it loses whole requests and whole answers
(the acknowledgement of what has been done), and lets requests come twice or out of order. Bytes are lost, held back
and slowed down, too.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PIECE = 4096
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
HELD = 3  # requests that overtake one that is late


@dataclass(frozen=True)
class Weather:
    """What a link does to those that use it; each probability is of one request.

    Attributes:
        delay: seconds that each request takes, at least and at most.
        loses_request: it never arrives; the connection ends.
        loses_answer: it is done and answered, and the answer never arrives; the connection ends.
        repeats: it arrives twice; the second answer is the one that counts.
        is_late: the connection ends, and the request arrives when three later ones have overtaken it.
        resets: RST, when half of its body has arrived.
        half_open: nothing passes any more, in any direction, and nobody is told.
        trickles: bodies pass at one byte a second.
        bandwidth: bytes per second of bodies, on their way to the front; 0 = as fast as may be.
        is_cut: every connection ends with RST, and so does every new one.
    """

    delay: tuple[float, float] = (0.0, 0.0)
    loses_request: float = 0.0
    loses_answer: float = 0.0
    repeats: float = 0.0
    is_late: float = 0.0
    resets: float = 0.0
    half_open: bool = False
    trickles: bool = False
    bandwidth: float = 0.0
    is_cut: bool = False


FAIR = Weather()


class Upload(NamedTuple):
    """A request's body that has passed."""

    path: str
    num_bytes: int
    seconds: float


class Ended(Exception):
    """This connection has come to its end."""


@dataclass
class Link:
    """A site's way to the front.

    Attributes:
        weather: of this moment.
        num: what was done to requests, by the names in `Weather`; "passed" of all that were answered.
        uploads: the bodies that passed.
    """

    network: Network
    seed: int
    port: int = 0
    weather: Weather = FAIR
    num: Counter[str] = field(default_factory=Counter)
    uploads: list[Upload] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._late: list[list[object]] = []  # [how many have overtaken it, its bytes]

    def change(self, weather: Weather) -> None:
        """From now on; whoever hangs in the old weather is cut off."""
        was, self.weather = self.weather, weather
        if weather.is_cut or was.half_open or was.trickles:
            self.network.call(self._cut)

    async def listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        # Small, as on a line that is as slow as `bandwidth`: else all of a body would be under way at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(
            self._serve, sock=listener, ssl=self.network.inside, limit=1 << 14
        )

    def close(self) -> None:
        self._server.close()

    def _cut(self) -> None:
        for writer in list(self._open):
            reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                await self._pass_on(reader, writer)
        except (Ended, OSError, asyncio.IncompleteReadError):
            reset(writer)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request and its answer."""
        head = await head_of(reader)
        await self._reaches()
        fate = self._fate()
        left, path = length_in(head), head.split(b" ", 2)[1].decode()
        if left and fate == "resets":
            await self._break_off(head, left, reader)
        began, body = time.monotonic(), b""
        async with self.network.front() as (there, back):
            slow = self.weather.trickles or self.weather.bandwidth
            if fate is None and slow:  # as it comes
                back.write(head)
                while left:
                    piece = await reader.read(min(left, 1 if self.weather.trickles else PIECE))
                    if not piece:
                        raise Ended
                    await asyncio.sleep(1.0 if self.weather.trickles else len(piece) / self.weather.bandwidth)
                    await self._reaches()
                    back.write(piece)
                    await back.drain()
                    left, body = left - len(piece), body + piece
            else:
                body = await reader.readexactly(left)
                if fate == "loses_request":
                    raise Ended
                if fate == "is_late":
                    self._late.append([0, head + body])
                    raise Ended
                if fate == "repeats":
                    await self.network.ask(head + body)
                back.write(head + body)
            if body:
                self.uploads.append(Upload(path, len(body), time.monotonic() - began))
            answer = await answer_from(there)
        await self._reaches()
        if fate == "loses_answer":
            raise Ended
        writer.write(answer)
        await writer.drain()
        self.num["passed"] += 1
        await self._bring_the_late()

    async def _reaches(self) -> None:
        """Half of the way there, or of the way back."""
        if self.weather.delay[1]:
            await asyncio.sleep(self._rng.uniform(*self.weather.delay) / 2)
        if self.weather.is_cut:
            raise Ended
        if self.weather.half_open:
            self.num["half_open"] += 1
            await asyncio.Event().wait()  # until `change` ends the connection

    def _fate(self) -> str | None:
        for name in ("loses_request", "loses_answer", "repeats", "is_late", "resets"):
            if self._rng.random() < getattr(self.weather, name):
                self.num[name] += 1
                return name
        return None

    async def _break_off(self, head: bytes, left: int, reader: asyncio.StreamReader) -> None:
        async with self.network.front() as (_, back):
            back.write(head + await reader.readexactly(left // 2))
            await back.drain()
            reset(back)
        raise Ended

    async def _bring_the_late(self) -> None:
        for late in self._late:
            late[0] = int(str(late[0])) + 1
        for late in [late for late in self._late if late[0] == HELD]:
            self._late.remove(late)
            with suppress(OSError, asyncio.IncompleteReadError):
                await self.network.ask(bytes(late[1]))  # type: ignore[call-overload]


class Network:
    """Links to one front, in a thread of their own for as long as the `with` block.

    Args:
        front: its port on this machine.
        certificate, key: that the sites are shown: of the front itself, which is the test's.
        ca: that has signed the front's.
    """

    def __init__(self, front: int, certificate: Path, key: Path, ca: Path) -> None:
        self._front, self._loop = front, asyncio.new_event_loop()
        self._links: list[Link] = []
        self.inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.inside.load_cert_chain(certificate, key)
        self._outside = ssl.create_default_context(cafile=str(ca))
        self._thread = threading.Thread(target=self._run, name="bad-network", daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._loop.stop)
        self._thread.join(10)

    def link(self, seed: int) -> Link:
        made = Link(self, seed)
        asyncio.run_coroutine_threadsafe(made.listen(), self._loop).result(10)
        self._links.append(made)
        return made

    def call(self, function: object) -> None:
        self._loop.call_soon_threadsafe(function)  # type: ignore[arg-type]

    async def ask(self, request: bytes) -> bytes:
        """The answer to a whole request."""
        async with self.front() as (there, back):
            back.write(request)
            return await answer_from(there)

    def front(self) -> Connection:
        return Connection(self._front, self._outside)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for link in self._links:
                link.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0.1))
            self._loop.close()


class Connection:
    """To the front; it ends with the `async with` block."""

    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self._port, self._tls = port, tls

    async def __aenter__(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await asyncio.open_connection("localhost", self._port, ssl=self._tls)
        return reader, self._writer

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    if (connection := writer.get_extra_info("socket")) is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        raise Ended from None


async def answer_from(reader: asyncio.StreamReader) -> bytes:
    """A whole answer of the front, whose length it declares."""
    head = await head_of(reader)
    return head + await reader.readexactly(length_in(head))


def length_in(head: bytes) -> int:
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lengths[0].partition(b":")[2]) if lengths else 0


@contextmanager
def weather(*links: Link, **attributes: object) -> Iterator[None]:
    """Within it, that weather is on these links; fair before and after."""
    for link in links:
        link.num.clear()
        link.uploads.clear()
        link.change(Weather(**attributes))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for link in links:
            link.change(FAIR)
