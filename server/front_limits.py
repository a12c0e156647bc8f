"""What a stranger can use up at the front, and how much of it: bytes, connections, requests, time."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Awaitable, Hashable
from dataclasses import dataclass
from typing import Final, TypeVar

_MAX_KEYS: Final = 10_000  # of which an Allowance remembers what they have taken
_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """Bounds of one front. The defaults are for a model of up to 8 MB and some hundred nodes.

    Attributes:
        small_bytes: longest body of a request that only names things.
        list_bytes: longest body that lists the objects of a message.
        object_bytes: longest body that carries an object.
        in_flight_bytes: all bodies with objects together that are on their way at one time: the SuperLink holds
            each in memory until it is complete, and asks who sends it only then.
        desk_bytes: all rosters together that are on their way to the desk at one time, which strangers may send, too;
            one alone may be longer.
        node_bytes: bodies of one node's requests within an hour, all together; what it has not used counts for an hour.
        store_bytes: what the SuperLink's database may hold before nothing more is put in. It holds what is under way;
            of a run that has ended, Flower deletes all messages.
        connections: open at one time; each takes two files of the process.
        connections_each: of them from one address.
        rate, burst: connections and requests per second from one address, and how many it may save up.
        head_seconds: from a connection, or the last answer, to the end of the next request's head; TLS's handshake.
        least_rate: bytes per second that a body has to arrive at, and an answer to be read at.
        grace_seconds: that a peer may be behind the least rate.
        linger_seconds: that a refused peer is listened to, so that it reads why.
    """

    small_bytes: int = 16 << 10
    list_bytes: int = 1 << 20
    object_bytes: int = 16 << 20
    in_flight_bytes: int = 256 << 20
    desk_bytes: int = 32 << 20
    node_bytes: int = 4 << 30
    store_bytes: int = 16 << 30
    connections: int = 400
    connections_each: int = 200
    rate: float = 200.0
    burst: float = 1000.0
    head_seconds: float = 10.0
    least_rate: float = 8192.0
    grace_seconds: float = 10.0
    linger_seconds: float = 1.0

    @classmethod
    def of_model(cls, num_bytes: int) -> Limits:
        """For a model of this many bytes: an update is not longer, and what is around it has room."""
        most = max(cls.object_bytes, 2 * num_bytes)
        return cls(
            object_bytes=most,
            in_flight_bytes=max(cls.in_flight_bytes, 8 * most),
            node_bytes=max(cls.node_bytes, 256 * most),
            store_bytes=max(cls.store_bytes, 1024 * most),
        )


class Allowance:
    """A token bucket for each key. Of very many keys, those that were not seen for longest start anew."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, amount: float = 1) -> bool:
        """Whether this key may do it once more, or have so much of it."""
        now = time.monotonic()
        tokens, since = self._buckets.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        allowed = tokens >= amount
        self._buckets[key] = (tokens - allowed * amount, now)
        if len(self._buckets) > _MAX_KEYS:
            self._buckets.popitem(last=False)
        return allowed


class Pace:
    """How long one peer may keep us waiting in one exchange: a grace period, which bytes at the least rate refill.

    Only the time in `wait` counts, so nobody is blamed for a slow SuperLink.
    """

    def __init__(self, limits: Limits) -> None:
        self._grace, self._rate = limits.grace_seconds, limits.least_rate
        self._left = self._grace

    def moved(self, num_bytes: int) -> None:
        """Takes note of bytes that arrived or were sent."""
        self._left = min(self._left + num_bytes / self._rate, self._grace)  # haste now buys no rest later

    async def wait(self, peer: Awaitable[_T]) -> _T:
        """What `peer` gives.

        Raises:
            TimeoutError: the peer is too slow.
        """
        start = time.monotonic()
        try:
            async with asyncio.timeout(max(self._left, 0)):
                return await peer
        finally:
            self._left -= time.monotonic() - start


def who(host: str) -> str:
    """The address that is counted for a remote host: of IPv6 the /64, of which one customer has all addresses."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
