"""Health checks as an orchestrator makes them: over gRPC, on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client import running
from tacit.errors import StorageError
from tacit.health import Health, serve_health
from tacit.processes import free_port

SERVING, NOT_SERVING = 1, 2


@pytest.fixture
def health() -> Iterator[Health]:
    started = serve_health(0)
    yield started
    started.close()


def ask(health: Health, service: str = "") -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{health.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_a_process_is_not_serving_before_it_says_so(health: Health) -> None:
    assert ask(health) == NOT_SERVING
    health.set("", True)
    health.set("tacit.Client", False)
    assert (ask(health), ask(health, "tacit.Client")) == (SERVING, NOT_SERVING)
    health.set("", False)
    assert ask(health) == NOT_SERVING


def test_a_site_that_is_not_connected_lives_and_is_not_serving() -> None:
    port = free_port()
    with running._health(port) as on_joined:
        for joined, status in ((False, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
            on_joined(joined)
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                ask_for = health_pb2_grpc.HealthStub(channel).Check
                seen = [
                    ask_for(health_pb2.HealthCheckRequest(service=name), timeout=10).status
                    for name in ("", "client")
                ]
            assert seen == [SERVING, status]


def test_an_unknown_service_is_not_found(health: Health) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(health, "tacit.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_port_that_is_taken_is_an_error_of_one_line(health: Health) -> None:
    with pytest.raises(StorageError, match=f"127.0.0.1:{health.port}"):
        serve_health(health.port)


def test_nobody_outside_the_machine_is_answered(health: Health) -> None:
    with open("/proc/net/tcp") as v4, open("/proc/net/tcp6") as v6:
        lines = [line.split() for line in [*v4, *v6]]
    bound = {
        line[1].split(":")[0] for line in lines if line[1].endswith(f":{health.port:04X}") and line[3] == "0A"
    }
    mapped = "0000000000000000FFFF00000100007F"  # ::ffff:127.0.0.1
    assert bound and bound <= {"0100007F", mapped}


def test_after_closing_nobody_answers_and_closing_twice_is_allowed(health: Health) -> None:
    health.close()
    health.close()
    with pytest.raises(grpc.RpcError):
        ask(health)


def test_grpc_is_loaded_by_whom_it_serves_only() -> None:
    code = "import sys, tacit.health, tacit.logs, tacit.audit; print('grpc' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
