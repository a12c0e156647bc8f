"""J11, B28: what passes the front and what does not, over real TLS, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore import constant
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from server.front import FLEET, TO_FLOWER, Front
from server.front_limits import Limits
from tacit.errors import ConfigError, StorageError
from tests.front_world import Authority, Line, Recorder, Seen, length_in, post, status_of, trusting, until

SMALL = Limits(
    small_bytes=100,
    list_bytes=200,
    object_bytes=400_000,
    in_flight_bytes=10**6,
    desk_bytes=100,
    rate=1e6,
    burst=1e6,
    linger_seconds=0.02,
)
PULL = "/v1/fleet/pull-messages"


class Clerk:
    """A desk whose requests are written down."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, str, bytes]] = []

    def limit(self, method: bytes) -> int:
        return 50 if method == b"POST" else 0

    def answer(self, method: bytes, member: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((method, member, body))
        return (200, b"a roster") if member else (403, b"no\n")


@dataclass
class World:
    front: Front
    behind: Recorder
    clerk: Clerk
    ca: Path
    refusals: list[tuple[str, str, str]]

    def line(self, **where: str) -> Line:
        return Line(self.front.port, trusting(self.ca), **where)

    def ask(self, data: bytes) -> bytes:
        with self.line() as line:
            return line.ask(data)


@pytest.fixture(scope="module")
def open_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("front")
    ca, behind, clerk = Authority(folder), Recorder(), Clerk()
    refusals: list[tuple[str, str, str]] = []
    pair = ca.issue("front")
    with Front(
        behind.url, tls=pair, desk=clerk, limits=SMALL, on_refusal=lambda *told: refusals.append(told)
    ) as front:
        yield World(front, behind, clerk, ca.pem, refusals)
    behind.close()


@pytest.fixture
def world(open_world: World) -> World:
    open_world.behind.requests.clear()
    open_world.behind.answer = (200, {"content-type": "application/protobuf"}, b"ok")
    open_world.clerk.asked.clear()
    return open_world


# What passes ---------------------------------------------------------------------------------------------------


def test_J11_the_list_is_flowers_own_without_the_two_requests_that_register_a_node():
    offered = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}
    assert {method for method, path in PROTOBUF_REQUEST_TYPES if path in offered} == {"POST"}
    assert {p.decode() for p in FLEET} == offered - {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


@pytest.mark.parametrize("path", [path.decode() for path in FLEET])
def test_a_fleet_request_arrives_as_it_was_sent_and_its_answer_comes_back(world: World, path: str):
    body = bytes(range(100))
    world.behind.answer = (412, {"content-type": "application/json", "server": "x"}, b'{"code": 1}')
    answer = world.ask(post(path, body))
    [seen] = world.behind.requests
    assert (seen.method, seen.target, seen.body) == ("POST", path, body)
    assert status_of(answer) == 412 and answer.endswith(b'\r\n\r\n{"code": 1}')


def test_flowers_headers_pass_and_no_others(world: World):
    flower = {
        constant.FLEET_HTTP_PUBLIC_KEY_HEADER: "a2V5",
        constant.FLEET_HTTP_SIGNATURE_HEADER: "c2ln",
        TIMESTAMP_HEADER: "2026-11-20T10:00:00+00:00",
        constant.FLWR_PACKAGE_NAME_METADATA_KEY: "flwr",
        constant.FLWR_PACKAGE_VERSION_METADATA_KEY: "1.41.0",
        constant.FLWR_COMPONENT_NAME_METADATA_KEY: "SuperNode",
        "accept": "application/protobuf",
    }
    others = {
        "x-forwarded-for": "10.0.0.1",
        "authorization": "Bearer x",
        "cookie": "a=b",
        "te": "trailers",
        "proxy-authorization": "x",
        "accept-encoding": "gzip",
        "flwr-task-token": "x",
        "flwr-superexec-signature": "x",
        "user-agent": "me",
        "forwarded": "for=10.0.0.1",
    }
    world.ask(post(PULL, b"", *(f"{name}: {value}" for name, value in (flower | others).items())))
    seen = {name.lower(): value for name, value in world.behind.requests[0].headers}
    host = seen.pop("host")
    assert host == f"127.0.0.1:{world.behind.port}"
    assert seen == flower | {"content-type": "application/protobuf", "content-length": "0"}
    assert {name.encode() for name in flower} <= TO_FLOWER


def test_the_answer_shows_no_server_and_no_redirection(world: World):
    world.behind.answer = (307, {"location": "http://127.0.0.1:1/", "set-cookie": "a=b"}, b"")
    head, _, body = world.ask(post(PULL)).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[1:] == [b"content-length: 0"] and body == b""
    assert status_of(head) == 307 and len(world.behind.requests) == 1


def test_one_connection_carries_many_requests_and_they_may_wait_in_line(world: World):
    with world.line() as line:
        assert [status_of(line.ask(post(PULL, b"x" * i))) for i in range(5)] == [200] * 5
        line.say(post(PULL, b"first") + post(PULL, b"second"))
        assert [status_of(line.hear()) for _ in range(2)] == [200, 200]
    assert [seen.body for seen in world.behind.requests[5:]] == [b"first", b"second"]


def test_no_proxy_of_the_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    behind = Recorder()
    with Front(behind.url) as front, Line(front.port, None) as line:
        assert status_of(line.ask(post(PULL))) == 200
    behind.close()


def test_the_roster_is_asked_for_at_the_desk(world: World):
    get = b"GET /tacit/roster HTTP/1.1\r\nHost: x\r\ntacit-member: Site 1:5:ab\r\n\r\n"
    assert world.ask(get).endswith(b"\r\n\r\na roster")
    assert status_of(world.ask(post("/tacit/roster", b"s" * 50, "tacit-member: y"))) == 200
    assert status_of(world.ask(post("/tacit/roster"))) == 403
    assert world.clerk.asked == [
        (b"GET", "Site 1:5:ab", b""),
        (b"POST", "y", b"s" * 50),
        (b"POST", "", b""),
    ]
    assert world.behind.requests == []


# What does not -------------------------------------------------------------------------------------------------

TARGETS = [
    "/", "*", "/health", "/docs", "/openapi.json", "/v1/control/list-runs", "/v1/control/start-run",
    "/v1/runtime/acquire-task", "/v1/fleet", "/v1/fleet/", "/v1/fleet/register-node",
    "/v1/fleet/unregister-node", "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs", "/v1/fleet/pull-messages/../../control/list-runs",
    "/v1/fleet/pull-messages/", "//v1/fleet/pull-messages", "/v1//fleet/pull-messages",
    "/v1/fleet//pull-messages", "/v1/./fleet/pull-messages", "/v1/Fleet/pull-messages",
    "/V1/FLEET/PULL-MESSAGES", "/v1/fleet/pull%2dmessages", "/v1/fleet/pull-message%73",
    "/v1/fleet/pull-messages?", "/v1/fleet/pull-messages?a=b", "/v1/fleet/pull-messages#a",
    "/v1/fleet/pull-messages;a", "/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages%20",
    "/v1/fleet/pull-messages.", "/v1/fleet/pull-messages\\", "/v1\\fleet\\pull-messages",
    "http://localhost/v1/fleet/pull-messages", "https://localhost/v1/control/list-runs",
    "http://localhost/v1/fleet/../control/list-runs", "localhost:80", "v1/fleet/pull-messages",
    "/tacit/roster/", "/tacit/roster?", "/tacit/roster/..", "/tacit/Roster", "/tacit/", "/tacit/rosters",
    "/v1/fleet/pull-messages\x7f", "/" + "a" * 8000,
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:50])
def test_J11_a_target_that_is_not_on_the_list_byte_for_byte_is_not_found(world: World, target: str):
    assert_refused(world, post(target, b"x"), 400 if "\x7f" in target else 404)


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "post", "PRI", "POSTS"]
)
def test_J11_a_fleet_path_with_another_method_is_not_found(world: World, method: str):
    assert_refused(world, post(PULL).replace(b"POST", method.encode()), 404)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST %s HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),  # no host
        (b"POST  %s HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST\t%s HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST %s\r\n\r\n", 400),
        (b"POST %s HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"%.0s", 505),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\nxx", 400),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\nx", 400),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST %s HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"POST %s HTTP/1.0\r\nContent-Length: 0\r\n\r\n", 505),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400),
        (b"POST %s HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 20_000, 431),
    ],
)
def test_H1_what_is_no_plain_request_is_refused(world: World, data: bytes, status: int):
    assert_refused(world, data % PULL.encode(), status)


def test_B28_a_roster_asked_for_with_a_body_is_refused(world: World):
    assert_refused(world, b"GET /tacit/roster HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", 413)
    assert_refused(world, b"GET /tacit/roster HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411)
    assert_refused(world, post("/tacit/roster", b"x" * 51), 413)
    assert_refused(world, b"PUT /tacit/roster HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 404)
    assert world.clerk.asked == []


def assert_refused(world: World, data: bytes, status: int) -> None:
    """Answered with nothing but a status, and cut off; nobody behind the front has heard of it."""
    with world.line() as line:
        line.say(data)
        answer = line.hear()
        assert status_of(answer) == status, answer
        assert answer.lower().partition(b"\r\n")[2] == b"content-length: 0\r\nconnection: close\r\n\r\n"
        assert line.is_cut(5.0)
    assert world.behind.requests == []


@pytest.mark.parametrize(
    ("path", "most"), [(path.decode(), getattr(SMALL, limit)) for path, limit in FLEET.items()]
)
def test_B28_each_path_takes_its_limit_and_not_one_byte_more(world: World, path: str, most: int):
    assert status_of(world.ask(post(path, b"x" * most))) == 200
    assert [len(seen.body) for seen in world.behind.requests] == [most]
    world.behind.requests.clear()
    assert_refused(world, post(path, b"x" * (most + 1)), 413)
    assert_refused(world, post(path, length=10**12), 413)  # declared alone is enough


def test_B28_what_follows_a_body_is_another_request(world: World):
    """A declared length that lies: nothing of the rest reaches the SuperLink."""
    with world.line() as line:
        assert status_of(line.ask(post(PULL, b"y" * 1000 + b"\r\n\r\n", length=10))) == 200
        assert status_of(line.hear()) == 400
        assert line.is_cut(5.0)
    assert [seen.body for seen in world.behind.requests] == [b"y" * 10]


def test_a_body_that_breaks_off_is_never_taken_for_a_whole_one(world: World):
    with world.line() as line:
        line.say(post("/v1/fleet/push-object", b"x" * 100, length=100_000))
    assert until(lambda: world.behind.requests)
    assert [(seen.complete, len(seen.body)) for seen in world.behind.requests] == [(False, 100)]


def test_bodies_with_objects_that_are_under_way_together_are_bounded(world: World):
    path = "/v1/fleet/push-object"
    with world.line() as first, world.line() as second:
        for line in (first, second):
            line.say(post(path, b"x", length=400_000))
        assert until(lambda: world.front._in_flight == 800_000)
        assert_refused(world, post(path, b"x" * 400_000), 503)
        assert status_of(world.ask(post(PULL))) == 200  # a heartbeat is not kept out
        first.say(b"x" * 399_999)
        assert status_of(first.hear()) == 200
    assert until(lambda: world.front._in_flight == 0)


def test_rosters_that_strangers_send_fill_no_memory(world: World):
    whole = post("/tacit/roster", b"x" * 50)
    with world.line() as one, world.line() as two, world.line() as three:
        for line in (one, two):
            line.say(whole[:-1])
        assert until(lambda: world.front._to_desk == 100)
        assert status_of(three.ask(whole)) == 503
        assert status_of(world.ask(b"GET /tacit/roster HTTP/1.1\r\nhost: x\r\n\r\n")) == 403
        assert [status_of(line.ask(whole[-1:])) for line in (one, two)] == [403, 403]
    assert until(lambda: world.front._to_desk == 0)
    assert status_of(world.ask(whole)) == 403


# Told ------------------------------------------------------------------------------------------------------------


def test_what_is_counted_and_told_are_words_of_ours_and_told_once(tmp_path: Path):
    told: list[tuple[str, str, str]] = []
    behind = Recorder()
    with Front(behind.url, on_refusal=lambda *refusal: told.append(refusal)) as front:
        for target in ("/a\x1b[2Jb", "/<script>", "/v1/fleet/../x", PULL, PULL):
            with Line(front.port, None) as line:
                line.ask(post(target) if target != PULL else post(target, b"x" * 20_000))
        with Line(front.port, None) as line:
            assert status_of(line.ask(post(PULL))) == 200
        assert until(lambda: front.counters.get("answered") == 1)
        assert front.counters == {"malformed": 1, "path": 2, "too-large": 2, "answered": 1}
    assert told == [
        ("127.0.0.1", "connection", "malformed"),
        ("127.0.0.1", "unknown", "path"),
        ("127.0.0.1", "pull-messages", "too-large"),
    ]
    behind.close()


def test_a_log_that_fails_does_not_stop_the_front(caplog: pytest.LogCaptureFixture):
    def full(*_: str) -> None:
        raise OSError(28, "No space left on device")

    behind = Recorder()
    with Front(behind.url, on_refusal=full, limits=Limits(connections=1, linger_seconds=0.02)) as front:
        with Line(front.port, None) as line:
            assert status_of(line.ask(post("/"))) == 404
        assert until(lambda: front.connections == 0)
        with Line(front.port, None) as line, Line(front.port, None) as second:
            assert second.is_cut(2.0)
            assert status_of(line.ask(post(PULL))) == 200
        front.check()
    assert caplog.text.count("a refusal was not noted") == 2
    behind.close()


# Where -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_J12_without_tls_only_this_machine_is_listened_to(host: str):
    with pytest.raises(ConfigError, match="without TLS"):
        Front("http://127.0.0.1:1", host=host)


def test_an_address_that_is_taken_is_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="cannot listen"),
        Front("http://127.0.0.1:1", port=taken.getsockname()[1]),
    ):
        pass


def test_K2_a_key_that_others_can_read_is_refused(tmp_path: Path):
    pair = Authority(tmp_path).issue("front")
    pair.key.chmod(0o640)
    with pytest.raises(StorageError, match="0640"):
        Front("http://127.0.0.1:1", tls=pair)


def test_a_front_that_is_left_hears_nobody(tmp_path: Path):
    front = Front("http://127.0.0.1:1")
    with front, Line(front.port, None) as line:
        front.check()
        assert until(lambda: front.connections == 1)
        line.say(b"POST ")
    assert not front._thread.is_alive() and front.connections == 0
    with pytest.raises(ConnectionRefusedError):
        Line(front.port, None)


def test_seen_lengths_are_read_from_heads():
    assert length_in(b"HTTP/1.1 200 \r\nContent-Length: 12\r\nx: y") == 12
    assert Seen("", "", [], b"").complete
