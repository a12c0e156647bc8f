"""C9, E4, B28: peers that are slow, many, in a hurry or endless do not hold the front up, and do not fill it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from server.front import Front
from server.front_limits import Allowance, Limits, Pace, who
from tests.front_world import Authority, Line, Pair, Recorder, front_apart, post, status_of, trusting, until

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-object"
IMPATIENT = Limits(head_seconds=0.6, grace_seconds=0.6, least_rate=1000.0, linger_seconds=0.02)
MB = 1 << 20


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(ca: Authority) -> Pair:
    return ca.issue("front")


@pytest.fixture
def behind() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


# Slow ------------------------------------------------------------------------------------------------------------


def drip(line: Line, data: bytes, *, every: float = 0.1) -> None:
    """One byte at a time, until it is over or the other side has had enough."""
    with suppress(OSError):
        for i in range(len(data)):
            line.say(data[i : i + 1])
            time.sleep(every)


def a_head(line: Line) -> None:
    drip(line, post(PULL, b"x" * 50))


def a_second_head(line: Line) -> None:
    line.ask(post(PULL))
    drip(line, post(PULL))


def a_body(line: Line) -> None:
    line.say(post(PUSH, b"", length=1000))
    drip(line, b"x" * 100)


def a_body_after_a_quick_start(line: Line) -> None:
    line.say(post(PUSH, b"x" * MB, length=2 * MB))
    drip(line, b"x" * 100)


def half_a_body(line: Line) -> None:
    line.say(post(PUSH, b"x" * 10, length=20))


def half_a_head(line: Line) -> None:
    line.say(b"POST ")


def nothing(line: Line) -> None:
    pass


def nothing_more(line: Line) -> None:
    line.ask(post(PULL))


def reading(line: Line) -> None:
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.say(post(PULL))
    with suppress(OSError):
        for _ in range(20):
            line.socket.recv(1)
            time.sleep(0.1)


@pytest.mark.parametrize(
    "way",
    [
        a_head, a_second_head, a_body, a_body_after_a_quick_start, half_a_body, half_a_head, nothing,
        nothing_more, reading,
    ],
)  # fmt: skip
def test_E4_who_is_slow_is_cut_off_and_others_do_not_notice(
    ca: Authority, pair: Pair, behind: Recorder, way: Callable[[Line], None]
):
    if way is reading:
        behind.answer = (200, {}, b"x" * (32 * MB))
    with Front(behind.url, tls=pair, limits=IMPATIENT) as front:
        with ExitStack() as stack:
            lines = [stack.enter_context(Line(front.port, trusting(ca.pem))) for _ in range(5)]
            threads = [threading.Thread(target=way, args=(line,)) for line in lines]
            start = time.monotonic()
            for thread in threads:
                thread.start()
            behind_all = []
            while time.monotonic() - start < 0.5 and way is not reading:
                asked = time.monotonic()
                with Line(front.port, trusting(ca.pem)) as other:
                    assert status_of(other.ask(post(PULL, b"quick"))) == 200
                behind_all.append(time.monotonic() - asked)
            assert not behind_all or sorted(behind_all)[len(behind_all) // 2] < 0.5
            assert until(lambda: front.connections == 0, 6.0), front.counters
            assert way is reading or time.monotonic() - start < 3.0
            for thread in threads:
                thread.join()
        idle = way in (nothing, nothing_more)
        assert front.counters.get("slow", 0) == (0 if idle else 5)
        front.check()


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
def test_E4_a_handshake_that_does_not_end_is_cut_off(
    ca: Authority, pair: Pair, behind: Recorder, start: bytes
):
    with Front(behind.url, tls=pair, limits=IMPATIENT) as front, Line(front.port, None) as line:
        line.say(start)
        assert status_of(ask(front, ca, post(PULL))) == 200
        assert line.is_cut(3.0)
        assert until(lambda: front.connections == 0)
        assert front.counters["tls"] == 1


def test_E4_a_peer_that_is_gone_in_the_middle_of_a_body_is_forgotten(
    ca: Authority, pair: Pair, behind: Recorder
):
    with Front(behind.url, tls=pair, limits=IMPATIENT) as front:
        with Line(front.port, trusting(ca.pem)) as line:
            line.say(post(PUSH, b"x" * 1000, length=2000))
            assert until(lambda: front._in_flight == 2000)
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert until(lambda: front.counters.get("broken-off") == 1), front.counters
        assert status_of(ask(front, ca, post(PULL))) == 200
        assert until(lambda: front._in_flight == 0)


def test_E7_a_line_of_1_mbit_is_not_slow(ca: Authority, pair: Pair, behind: Recorder):
    limits = Limits(grace_seconds=0.5)
    with Front(behind.url, tls=pair, limits=limits) as front, Line(front.port, trusting(ca.pem)) as line:
        body = b"x" * 250_000
        line.say(post(PUSH, b"", length=len(body)))
        for at in range(0, len(body), 12_500):
            line.say(body[at : at + 12_500])
            time.sleep(0.1)
        assert status_of(line.hear()) == 200
    assert behind.requests[0].body == body


def test_haste_now_buys_no_rest_later():
    async def play() -> None:
        pace = Pace(Limits(grace_seconds=0.2, least_rate=10.0))
        pace.moved(10**9)
        with pytest.raises(TimeoutError):
            await pace.wait(asyncio.sleep(1.0))
        pace.moved(1)  # 0.1 s
        await pace.wait(asyncio.sleep(0.02))

    start = time.monotonic()
    asyncio.run(play())
    assert time.monotonic() - start < 0.9


# Many ------------------------------------------------------------------------------------------------------------


def test_connections_of_one_address_and_of_all_are_bounded(ca: Authority, pair: Pair, behind: Recorder):
    limits = Limits(connections=5, connections_each=3)
    with Front(behind.url, tls=pair, limits=limits) as front, ExitStack() as stack:

        def line(source: str) -> Line:
            return stack.enter_context(Line(front.port, trusting(ca.pem), source=source))

        first = [line("127.0.0.1") for _ in range(3)]
        with pytest.raises(OSError, match=r"."):
            line("127.0.0.1")
        second = [line("127.0.0.2") for _ in range(2)]
        with pytest.raises(OSError, match=r"."):
            line("127.0.0.3")
        assert {status_of(each.ask(post(PULL))) for each in (*first, *second)} == {200}
        first[0].close()
        assert until(lambda: front.connections == 4)
        assert status_of(line("127.0.0.3").ask(post(PULL))) == 200
        assert front.counters["connections"] == 2


def test_C14_requests_of_one_address_are_bounded_and_another_is_served(
    ca: Authority, pair: Pair, behind: Recorder
):
    limits = Limits(rate=0.5, burst=6, linger_seconds=0.02)
    with Front(behind.url, tls=pair, limits=limits) as front:
        with Line(front.port, trusting(ca.pem)) as line:  # one for the connection
            assert [status_of(line.ask(post(PULL))) for _ in range(6)] == [200] * 5 + [503]
            assert line.is_cut(2.0)
        with pytest.raises(OSError, match=r"."):  # without a handshake, which costs more than a request
            Line(front.port, trusting(ca.pem))
        with Line(front.port, trusting(ca.pem), source="127.0.0.2") as line:
            assert status_of(line.ask(post(PULL))) == 200
        assert front.counters["rate"] == 2


def test_C14_what_a_node_has_kept_for_it_is_bounded_by_the_hour_and_in_all(behind: Recorder):
    """Before any of it is read, and with the code after which a site asks again."""
    stored = [0]
    limits = Limits(node_bytes=1000, store_bytes=5000, linger_seconds=0.02)
    with Front(behind.url, limits=limits, stored=lambda: stored[0]) as front:

        def push(length: int, node: str = "a", path: str = "/v1/fleet/push-object") -> int:
            with Line(front.port, None) as line:
                return status_of(line.ask(post(path, b"x" * length, f"flwr-public-key: {node}")))

        assert [push(400), push(500, path="/v1/fleet/push-messages"), push(200)] == [200, 200, 503]
        assert push(200, path=PULL) == 200, "what names things only is not kept"
        assert [push(900, "b"), push(400, "b")] == [200, 503], "of another node's hour nothing is gone"
        stored[0] = 5001
        assert [push(1, "c"), push(1, "c", PULL)] == [503, 200]
        stored[0] = 5000
        assert push(1, "c") == 200
        assert (front.counters["node-bytes"], front.counters["store-full"]) == (2, 1)
    assert len(behind.requests) == 6


def test_a_bucket_fills_again_and_strangers_are_forgotten_first():
    allowance = Allowance(rate=20.0, burst=2)
    assert [allowance.take("a") for _ in range(3)] == [True, True, False]
    assert allowance.take("b")
    time.sleep(0.06)
    assert [allowance.take("a") for _ in range(2)] == [True, False]
    for number in range(20_000):
        assert allowance.take(number)
    assert len(allowance._buckets) == 10_000


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_is_counted_by_who_has_it(host: str, counted: str):
    assert who(host) == counted


def test_a_flood_of_garbage_leaves_the_front_alive(ca: Authority, pair: Pair, behind: Recorder):
    with Front(behind.url, tls=pair, limits=Limits(burst=1e6, linger_seconds=0.02)) as front:
        for number in range(100):
            with Line(front.port, None) as line, suppress(OSError):
                line.say(bytes([number]) * (number * 50))
        assert status_of(ask(front, ca, post(PULL))) == 200
        assert until(lambda: front.connections == 0)
        front.check()


# Big -------------------------------------------------------------------------------------------------------------


def lying(line: Line) -> Iterator[bytes]:
    line.say(post(PUSH, b"", length=1000))
    yield b"x" * MB


def chunked(line: Line) -> Iterator[bytes]:
    line.say(f"POST {PUSH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    yield b"%x\r\n" % MB + b"x" * MB + b"\r\n"


def honest(line: Line) -> Iterator[bytes]:
    line.say(post(PUSH, b"", length=400 * MB))
    yield b"x" * MB


def endless_head(line: Line) -> Iterator[bytes]:
    line.say(b"POST / HTTP/1.1\r\n")
    yield b"x" * MB


@pytest.mark.parametrize("way", [lying, chunked, honest, endless_head])
def test_C9_400_mb_do_not_stay_at_the_front(
    ca: Authority, pair: Pair, behind: Recorder, way: Callable[[Line], Iterator[bytes]]
):
    with front_apart(behind.url, pair, object_bytes=16 * MB) as front, ExitStack() as stack:
        warm = stack.enter_context(Line(front.port, trusting(ca.pem)))
        warm.ask(post(PULL))
        before = front.resident()
        line = stack.enter_context(Line(front.port, trusting(ca.pem)))
        sent = 0
        with suppress(OSError):
            piece = next(way(line))
            for _ in range(400):
                line.say(piece)
                sent += len(piece)
        assert front.resident(peak=True) - before < 64 * MB
        assert len(behind.requests) <= 2 and sum(len(seen.body) for seen in behind.requests) <= 1000
        assert status_of(ask(front, ca, post(PULL))) == 200


def test_C9_a_long_body_that_may_pass_streams_through(ca: Authority, pair: Pair, behind: Recorder):
    behind.keep = False
    with front_apart(behind.url, pair, object_bytes=400 * MB) as front:
        ask(front, ca, post(PULL))
        before = front.resident()
        with Line(front.port, trusting(ca.pem)) as line:
            line.say(post(PUSH, b"", length=200 * MB))
            for _ in range(200):
                line.say(b"x" * MB)
            assert status_of(line.hear()) == 200
        assert front.resident(peak=True) - before < 64 * MB
        assert [seen.complete for seen in behind.requests] == [True, True]


def ask(front: Front | object, ca: Authority, data: bytes) -> bytes:
    with Line(front.port, trusting(ca.pem)) as line:  # type: ignore[attr-defined]
        return line.ask(data)
