"""J1-J6, J9, J10: who speaks to the front and to whom it speaks, over real TLS; a SuperLink that comes and goes."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supernode.fleet_http_client import FleetHttpClient

from server.front import Front
from server.front_limits import Limits
from tests.front_world import DAY, Authority, Line, Recorder, post, status_of, trusting, until

PULL = "/v1/fleet/pull-messages"
QUICK = Limits(linger_seconds=0.02)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def behind() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.close()


# Its certificate -------------------------------------------------------------------------------------------------

SERVERS = {
    "J1 expired": ({"valid": (-2 * DAY, -timedelta(hours=1))}, "localhost", "expired"),
    "J2 not yet valid": ({"valid": (timedelta(hours=1), DAY)}, "localhost", "not yet valid"),
    "J4 wrong host": ({"hosts": ("other.example",)}, "localhost", "mismatch"),
    "J4 wrong address": ({"hosts": ("192.0.2.1",)}, "127.0.0.1", "mismatch"),
}


@pytest.mark.parametrize("case", SERVERS)
def test_J1_J2_J4_a_certificate_that_is_not_right_ends_it_before_a_byte(
    ca: Authority, behind: Recorder, case: str
):
    issued, name, reason = SERVERS[case]
    with Front(behind.url, tls=ca.issue("front", **issued), limits=QUICK) as front:
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            Line(front.port, trusting(ca.pem), name=name)
        client = FleetHttpClient.from_server_address(f"{name}:{front.port}", False, ca.pem.read_bytes(), [])
        with client, pytest.raises(Exception, match=reason):
            client.PullMessages(PullMessagesRequest())
        assert until(lambda: front.counters == {"tls": 2})
    assert behind.requests == []


@pytest.mark.parametrize("trust", ["J3 wrong CA", "J5 system's CAs"])
def test_J3_J5_who_trusts_another_ca_sends_nothing(ca: Authority, behind: Recorder, trust: str):
    other = Authority(ca.pem.parent, "other")
    context = trusting(other.pem) if trust.startswith("J3") else ssl.create_default_context()
    with Front(behind.url, tls=ca.issue("front"), limits=QUICK) as front:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"self.signed|local issuer"):
            Line(front.port, context)
        assert until(lambda: front.counters == {"tls": 1})
    assert behind.requests == []


@pytest.mark.parametrize(
    ("versions", "ciphers", "agreed"),
    [
        (("TLSv1", "TLSv1"), "ALL:@SECLEVEL=0", None),
        (("TLSv1_1", "TLSv1_1"), "ALL:@SECLEVEL=0", None),
        (("TLSv1_2", "TLSv1_2"), "AES128-SHA:@SECLEVEL=0", None),
        (("TLSv1_2", "TLSv1_2"), "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", None),
        (("TLSv1_2", "TLSv1_2"), "ECDHE-ECDSA-AES128-CBC-SHA256:ECDHE-ECDSA-NULL-SHA:@SECLEVEL=0", None),
        (("TLSv1_2", "TLSv1_2"), "AECDH-AES128-SHA:aNULL:@SECLEVEL=0", None),
        (("TLSv1_2", "TLSv1_2"), "DEFAULT", "TLSv1.2"),
        (("TLSv1_2", "TLSv1_3"), "DEFAULT", "TLSv1.3"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_J6_old_versions_and_weak_suites_are_refused(
    ca: Authority, behind: Recorder, versions: tuple[str, str], ciphers: str, agreed: str | None
):
    context = trusting(ca.pem)
    context.minimum_version, context.maximum_version = (ssl.TLSVersion[version] for version in versions)
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        pytest.skip("this OpenSSL does not know it any more")
    with Front(behind.url, tls=ca.issue("front"), limits=QUICK) as front:
        if agreed:
            with Line(front.port, context) as line:
                assert line.socket.version() == agreed and status_of(line.ask(post(PULL))) == 200
        else:
            with pytest.raises(OSError, match=r"."):
                Line(front.port, context)
            assert until(lambda: front.counters == {"tls": 1})


@pytest.mark.parametrize(
    "data", [post(PULL), b"GET / HTTP/1.0\r\n\r\n", b"\x80\x2e\x01\x00\x02", b"SSH-2.0-x\r\n"]
)
def test_plain_text_gets_no_answer_in_plain_text(ca: Authority, behind: Recorder, data: bytes):
    with Front(behind.url, tls=ca.issue("front"), limits=Limits(head_seconds=0.5)) as front:
        with Line(front.port, None) as line:
            line.say(data)
            heard = line.hear()
        assert b"HTTP" not in heard and len(heard) <= 7  # at most an alert
        assert until(lambda: front.counters == {"tls": 1})
    assert behind.requests == []


# Rotation --------------------------------------------------------------------------------------------------------


def serial(front: Front, ca: Authority) -> str:
    with Line(front.port, trusting(ca.pem)) as line:
        assert status_of(line.ask(post(PULL))) == 200
        return str(line.socket.getpeercert()["serialNumber"])  # type: ignore[union-attr,index]


def test_J10_a_new_certificate_counts_for_the_next_connection_and_cuts_none(ca: Authority, behind: Recorder):
    old, new = ca.issue("front"), ca.issue("new")
    with Front(behind.url, tls=old, limits=QUICK) as front, Line(front.port, trusting(ca.pem)) as open_line:
        first = serial(front, ca)
        new.certificate.replace(old.certificate)  # half of it
        assert serial(front, ca) == first
        new.key.replace(old.key)
        second = serial(front, ca)
        assert second != first == serial_of(open_line)
        assert status_of(open_line.ask(post(PULL))) == 200

        for spoil in (b"", b"-----BEGIN CERTIFICATE-----\nx\n", None):
            old.certificate.unlink() if spoil is None else old.certificate.write_bytes(spoil)
            assert serial(front, ca) == second
        ca.issue("front")
        assert serial(front, ca) not in (first, second)


def test_K2_J10_a_new_key_that_others_can_read_does_not_count(ca: Authority, behind: Recorder):
    pair, wide = ca.issue("front"), ca.issue("wide")
    wide.key.chmod(0o644)
    with Front(behind.url, tls=pair, limits=QUICK) as front:
        first = serial(front, ca)
        wide.certificate.replace(pair.certificate)
        wide.key.replace(pair.key)
        assert serial(front, ca) == first
        pair.key.chmod(0o600)
        pair.key.touch()
        assert serial(front, ca) != first


def serial_of(line: Line) -> str:
    return str(line.socket.getpeercert()["serialNumber"])  # type: ignore[union-attr,index]


# The SuperLink ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "own_ca", "status"),
    [
        (("127.0.0.1",), True, 200),
        (("localhost",), True, 503),
        (("127.0.0.1",), False, 503),
    ],
)
def test_J3_J4_the_front_speaks_to_no_other_superlink(
    ca: Authority, hosts: tuple[str, ...], own_ca: bool, status: int
):
    issuer = ca if own_ca else Authority(ca.pem.parent, "other")
    link = Recorder(tls=issuer.issue("link", hosts))
    with (
        Front(f"https://127.0.0.1:{link.port}", ca=ca.pem, limits=QUICK) as front,
        Line(front.port, None) as line,
    ):
        assert status_of(line.ask(post(PULL, b"model"))) == status
    assert len(link.requests) == (status == 200)
    link.close()


def test_a_superlink_that_is_away_is_said_at_once_and_used_when_it_is_back(ca: Authority):
    first = Recorder()
    with Front(first.url, tls=ca.issue("front"), limits=QUICK) as front:

        def status() -> int:
            with Line(front.port, trusting(ca.pem)) as line:
                return status_of(line.ask(post(PULL, b"x")))

        assert status() == 200
        first.close()
        start = time.monotonic()
        assert [status(), status()] == [503, 503]
        assert time.monotonic() - start < 1.0
        back = Recorder(first.port)
        assert status() == 200
        back.close()
        assert front.counters == {"answered": 2, "superlink-away": 2}


def test_E4_a_superlink_that_dies_in_the_middle_of_an_answer_makes_no_whole_one(ca: Authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def die() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 10)

        threading.Thread(target=die, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Front(url, tls=ca.issue("front"), limits=QUICK) as front:
            with Line(front.port, trusting(ca.pem)) as line:
                answer = line.ask(post(PULL))
            assert answer.endswith(b"x" * 10) and b"content-length: 1000" in answer
            assert front.counters == {"superlink-away": 1}


def test_leaving_does_not_wait_for_those_who_are_connected(ca: Authority, behind: Recorder):
    with Front(behind.url, tls=ca.issue("front")) as front:
        lines = [Line(front.port, trusting(ca.pem)) for _ in range(5)]
        lines[0].say(post(PULL, b"", length=10))
        assert until(lambda: front.connections == 5)
        start = time.monotonic()
    assert time.monotonic() - start < 3.0
    assert [line.is_cut(1.0) for line in lines] == [True] * 5
    for line in lines:
        line.close()
