"""Whether a process works, for whoever starts it again: `grpc.health.v1` on loopback.

The protocol is that of https://github.com/grpc/grpc/blob/master/doc/health-checking.md, which Kubernetes, systemd
wrappers and `grpc_health_probe` speak. It says "serving" or "not serving" by the name of a service and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tacit.errors import StorageError

if TYPE_CHECKING:
    from grpc import Server
    from grpc_health.v1.health import HealthServicer

HOST: Final = "127.0.0.1"
_THREADS: Final = 2
_MAX_BYTES: Final = 4096  # a question is the name of a service


class Health:
    """A health service that is running. Made by `serve_health`."""

    def __init__(self, server: Server, servicer: HealthServicer, port: int) -> None:
        self._server, self._servicer, self.port = server, servicer, port

    def set(self, service: str, serving: bool) -> None:
        """Says of a service whether it works; the empty name is the process as a whole."""
        from grpc_health.v1.health_pb2 import HealthCheckResponse

        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        self._servicer.set(service, status)

    def close(self) -> None:
        """Answers "not serving" to who watches, then ends. Closing twice is allowed."""
        self._servicer.enter_graceful_shutdown()
        self._server.stop(grace=0.2).wait()


def serve_health(port: int) -> Health:
    """Starts the service; whatever is not set is unknown, and the process as a whole not serving yet.

    Args:
        port: on loopback; 0 = any free one, see `Health.port`.

    Raises:
        StorageError: the port is taken.
    """
    from concurrent.futures import ThreadPoolExecutor  # and grpc: a command that serves nothing does without

    import grpc
    from grpc_health.v1 import health, health_pb2_grpc

    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="health"),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MAX_BYTES)],
    )
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(f"{HOST}:{port}")
    except RuntimeError:
        raise StorageError(f"{HOST}:{port}: the port for health checks is taken") from None
    started = Health(server, servicer, bound)
    started.set("", False)
    server.start()
    return started
