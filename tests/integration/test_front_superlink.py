"""The front before a real SuperLink with TLS and node authentication: nodes pass, nobody else, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from server.flower_wire import Control, load_key
from server.front import FLEET, Front
from server.superlink import LINK, SuperLink, Tls
from tacit.processes import flower_environment, free_port
from tests.front_world import Authority, Line, post, status_of, trusting, until

pytestmark = pytest.mark.processes

MB = 1 << 20
PROGRAMS = Path(sysconfig.get_path("scripts"))


@dataclass
class Site:
    """A node's key, and what is made of it."""

    key: ec.EllipticCurvePrivateKey
    secret: Path
    public: Path

    @classmethod
    def make(cls, folder: Path, name: str) -> Site:
        site = cls(ec.generate_private_key(ec.SECP384R1()), folder / f"{name}.key", folder / f"{name}.pub")
        ssh, none = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        site.secret.write_bytes(site.key.private_bytes(serialization.Encoding.PEM, ssh, none))
        site.secret.chmod(0o600)
        openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        site.public.write_bytes(site.key.public_key().public_bytes(*openssh))
        return site


@dataclass
class World:
    ca: Authority
    link: SuperLink
    front: Front
    sites: dict[str, Site]
    known: dict[str, Path]

    def client(self, site: Site | None, port: int = 0) -> FleetHttpClient:
        """Flower's own, as its node uses it."""
        signs = [NodeAuthHttpInterceptor(site.key, site.key.public_key())] if site else []
        address = f"127.0.0.1:{port or self.front.port}"
        return FleetHttpClient.from_server_address(address, False, self.ca.pem.read_bytes(), signs)

    def activate(self, client: FleetHttpClient, site: Site) -> Node:
        key = public_key_to_bytes(site.key.public_key())
        answer = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30))
        return Node(node_id=answer.node_id)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("federation")
    ca = Authority(folder)
    sites = {name: Site.make(folder, name) for name in ("a", "b", "unregistered", "stranger")}
    known = {name: site.public for name, site in sites.items() if name != "stranger"}
    link, public = ca.issue("link"), ca.issue("public")
    with SuperLink(folder / "flower", tls=Tls(ca.pem, *link)) as superlink:
        with Control(superlink) as control:
            for name in ("a", "b"):
                control.register(load_key(sites[name].public), name)
        with Front(f"https://{superlink.address}", tls=public, ca=ca.pem, nodes=lambda: known) as front:
            yield World(ca, superlink, front, sites, known)


def test_a_registered_node_passes_with_all_that_flower_signs(world: World):
    site = world.sites["a"]
    with world.client(site) as client:
        node = world.activate(client, site)
        beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
        assert client.SendNodeHeartbeat(beat).success
        assert list(client.PullMessages(PullMessagesRequest(node=node)).messages_list) == []
        with Control(world.link) as control:
            assert [seen.id for seen in control.nodes() if seen.online] == [node.node_id]
        client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
    with Control(world.link) as control:
        assert not any(seen.online for seen in control.nodes())


@pytest.mark.parametrize("name", ["unregistered", "stranger", None])
def test_J7_another_key_or_none_is_refused(world: World, name: str | None):
    site = world.sites[name] if name else None
    with world.client(site) as client, pytest.raises(httpx.HTTPStatusError) as refused:
        world.activate(client, site or world.sites["a"])
    # The front knows the key of "unregistered", so this one is the SuperLink's refusal.
    assert refused.value.response.status_code == (412 if name == "unregistered" else 401)
    assert bool(refused.value.response.content) == (name == "unregistered")


def test_J7_the_key_of_another_node_is_refused(world: World):
    with world.client(world.sites["a"]) as client, world.client(world.sites["b"]) as other:
        node = world.activate(client, world.sites["a"])
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            other.PullMessages(PullMessagesRequest(node=node))
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            world.activate(other, world.sites["a"])
        client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))


@pytest.mark.parametrize("minutes", [-10, 10])
def test_J8_a_timestamp_that_is_off_is_refused(world: World, minutes: int, monkeypatch: pytest.MonkeyPatch):
    from datetime import timedelta

    from flwr.supernode import node_auth_http_interceptor as flower

    real = flower.now
    monkeypatch.setattr(flower, "now", lambda: real() + timedelta(minutes=minutes))
    with (
        world.client(world.sites["a"]) as client,
        pytest.raises(httpx.HTTPStatusError, match="401") as refused,
    ):
        world.activate(client, world.sites["a"])
    assert refused.value.response.content  # the SuperLink's own


def test_the_stock_node_connects_through_the_front(world: World, tmp_path: Path):
    command = [str(PROGRAMS / "flower-supernode"), "--superlink", f"127.0.0.1:{world.front.port}"]
    command += ["--root-certificates", str(world.ca.pem), "--port", str(free_port())]
    command += ["--auth-supernode-private-key", str(world.sites["b"].secret)]
    log = (tmp_path / "log").open("wb")
    node = subprocess.Popen(
        command, env=flower_environment(tmp_path), stdout=log, stderr=log, start_new_session=True
    )
    try:
        with Control(world.link) as control:
            online = until(lambda: any(seen.online for seen in control.nodes()), 30.0)
            assert online, (tmp_path / "log").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait(timeout=20)
        log.close()


def test_J11_no_other_request_of_flowers_passes(world: World):
    others = sorted(path for _, path in PROTOBUF_REQUEST_TYPES if path.encode() not in FLEET)
    assert len(others) > 50
    before = world.link.log_tail(LINK, 100_000).count("HTTP/1.1")
    context = trusting(world.ca.pem)
    for path in (*others, "/health", "/docs", "/openapi.json", "/"):
        with Line(world.front.port, context) as line:
            line.say(post(path))
            assert status_of(line.hear()) == 404
    assert world.link.log_tail(LINK, 100_000).count("HTTP/1.1") == before


def test_J11_flwr_list_sees_the_superlink_and_not_the_front(world: World, tmp_path: Path):
    def listed(port: int) -> str:
        (tmp_path / "config.toml").write_text(
            f'[superlink]\ndefault = "x"\n[superlink.x]\naddress = "127.0.0.1:{port}"\n'
            f'root-certificates = "{world.ca.pem}"\n'
        )
        command = [str(PROGRAMS / "flwr"), "list", "x", "--format", "json"]
        environment = flower_environment(tmp_path)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert '"success": true' in listed(world.link.port)
    assert '"success": true' not in listed(world.front.port)


def test_B28_a_body_of_400_mb_without_credentials_does_not_fill_the_superlink(world: World):
    pid = world.link._groups[LINK].leader.pid

    def resident() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))

    before = resident()
    target = "/v1/fleet/push-object"
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    known = f"flwr-public-key: {header_of(world.sites['a'])}"
    for start, piece in (
        (post(target, length=400 * MB), b"x" * MB),
        (post(target, b"", known, length=400 * MB), b"x" * MB),
        (post(target, b"", length=10 * MB), b"x" * MB),
        (head, b"%x\r\n" % MB + b"x" * MB + b"\r\n"),
    ):
        with (
            Line(world.front.port, trusting(world.ca.pem)) as line,
            contextlib.suppress(OSError, ssl.SSLError),
        ):
            line.say(start)
            for _ in range(400):
                line.say(piece)
    assert resident() - before < 16 * MB


def header_of(site: Site) -> str:
    from base64 import b64encode

    return b64encode(public_key_to_bytes(site.key.public_key())).decode()


def test_D4_a_superlink_that_is_killed_and_started_again_is_found(world: World, tmp_path: Path):
    """Its port stays; what it answers with is new."""
    port, pair = free_port(), world.ca.issue("another")
    site = world.sites["a"]

    def superlink() -> SuperLink:
        return SuperLink(tmp_path / "flower", port=port, tls=Tls(world.ca.pem, *pair), patience=20.0)

    with Front(f"https://127.0.0.1:{port}", tls=world.ca.issue("public-2"), ca=world.ca.pem) as front:
        with superlink() as link, world.client(site, front.port) as client:
            with Control(link) as control:
                control.register(load_key(site.public), "a")
            node = world.activate(client, site)
            link._groups[LINK].leader.kill()
            start = time.monotonic()
            with pytest.raises(httpx.HTTPStatusError, match="503"):
                client.PullMessages(PullMessagesRequest(node=node))
            assert time.monotonic() - start < 1.0
        with superlink(), world.client(site, front.port) as client:
            assert client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
            ).success
