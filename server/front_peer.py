"""One connection at the front: HTTP/1.1 as h11 speaks it, and how long we wait for the other side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from email.utils import formatdate
from typing import Final

import h11

from server.front_limits import Limits, Pace

CHUNK: Final = 64 << 10
MAX_HEAD: Final = 16 << 10
CLOSE_SECONDS: Final = 2.0
# What a peer may do: hang up, break off TLS or HTTP, or be too slow (TimeoutError is an OSError).
GONE: Final = (OSError, EOFError, h11.RemoteProtocolError)


class Refusal(Exception):
    """A request that gets an empty answer and the end of its connection; status 0 = the end alone."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


class Peer:
    """A connection.

    Attributes:
        remote: the address that is counted.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, remote: str, limits: Limits
    ) -> None:
        self.remote = remote
        self._reader, self._writer, self._limits = reader, writer, limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._pace = Pace(limits)

    async def request(self) -> h11.Request | None:
        """The next request, of which only the head was read; None = there is none.

        Raises:
            Refusal: "malformed", or "slow" when it has begun and does not end.
        """
        if self._http.our_state is not h11.IDLE:
            if (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
                return None
            self._http.start_next_cycle()
        self._pace = Pace(self._limits)
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                event = await self._event()
        except TimeoutError:
            if self._http.trailing_data[0]:
                raise Refusal(0, "slow") from None
            return None
        except OSError:
            return None
        except h11.RemoteProtocolError as error:
            if self._reader.at_eof():
                return None
            raise Refusal(error.error_status_hint, "malformed") from None
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The request's body, piece by piece: its declared length is never exceeded.

        Raises:
            Refusal: "slow", or "broken-off".
        """
        while True:
            try:
                event = await self._pace.wait(self._event())
            except TimeoutError:
                raise Refusal(0, "slow") from None
            except GONE:
                raise Refusal(0, "broken-off") from None
            if not isinstance(event, h11.Data):
                return
            self._pace.moved(len(event.data))
            yield bytes(event.data)

    async def send(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        """A part of the answer.

        Raises:
            Refusal: "slow", or "broken-off".
        """
        data = self._http.send(event) or b""
        self._writer.write(data)
        self._pace.moved(len(data))
        try:
            await self._pace.wait(self._writer.drain())
        except TimeoutError:
            raise Refusal(0, "slow") from None
        except OSError:
            raise Refusal(0, "broken-off") from None

    async def answer(
        self, status: int, body: bytes = b"", *, last: bool = False, dated: bool = False
    ) -> None:
        """A whole answer; with `last` this connection gets no other. A date tells sites whose clock is wrong."""
        headers = [("content-length", str(len(body)))]
        headers += [("date", formatdate(usegmt=True))] if dated else []
        headers += [("connection", "close")] if last else []
        await self.send(h11.Response(status_code=status, headers=headers))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    async def refuse(self, status: int) -> None:
        """An empty answer, unless another has begun. What still comes is dropped for a moment, unread and unkept:
        to a peer that is sending, a connection closed at once looks like a failure, and it would try again.
        """
        if not status or self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        try:
            async with asyncio.timeout(self._limits.linger_seconds):
                await self.answer(status, last=True)
                while await self._reader.read(CHUNK):
                    pass
        except (Refusal, *GONE):
            pass

    async def close(self) -> None:
        """Whatever the other side does about it."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                self._writer.close()
                await self._writer.wait_closed()
        except OSError:
            pass
        finally:
            self._writer.transport.abort()

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(CHUNK))
        return event  # type: ignore[return-value]
