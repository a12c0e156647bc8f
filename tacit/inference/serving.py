"""A gRPC server with one model: the Open Inference Protocol v2 and grpc.health.v1, over TLS.

Guarantees:
    Without TLS nothing listens on an address that others can reach.
"""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tacit.errors import ConfigError, MissingExtra, StorageError
from tacit.inference.answers import SERVICE, Answers, handlers
from tacit.inference.predictor import Predictor
from tacit.processes import is_loopback
from tacit.secagg.identity import read_private

if TYPE_CHECKING:
    import grpc

THREADS: Final = 4
MOST_WAITING: Final = 64  # calls at a time; others are turned away with RESOURCE_EXHAUSTED
GRACE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Tls:
    """Files in PEM.

    Attributes:
        certificate: of the server, and what leads to its authority.
        key: of the certificate; no other user may read it.
        client_ca: whoever asks must have a certificate of this authority; None = anybody may ask.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What a gRPC server takes.

        Raises:
            StorageError: a file cannot be read or used, or the key is open to others.
        """
        import grpc

        read_private(self.key)
        try:
            # gRPC says nothing of what is wrong with a pair, OpenSSL does.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key, password="")
            authority = None
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                authority = self.client_ca.read_bytes()
            pair = (self.key.read_bytes(), self.certificate.read_bytes())
        except OSError as error:
            files = ", ".join(str(f) for f in (self.certificate, self.key, self.client_ca) if f is not None)
            raise StorageError(f"{files}: cannot be used for TLS: {error.strerror or error}") from None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


class ModelServer:
    """One model that is being served.

    Args:
        predictor: the model.
        host: address to listen on.
        port: 0 = any free one, see `port`.
        tls: None = in the clear, on loopback only.
        max_rows: records of one request.
        max_bytes: of one message, either way.

    Raises:
        ConfigError: without TLS the address is not on loopback.
        MissingExtra: what serving needs is not installed.
        StorageError: the port is taken, or a file of `tls` cannot be used.
    """

    def __init__(
        self, predictor: Predictor, *, host: str, port: int, tls: Tls | None, max_rows: int, max_bytes: int
    ) -> None:
        if tls is None and not is_loopback(host):
            raise ConfigError(
                f"{host} can be reached by others: give --cert and --key, or listen on 127.0.0.1",
                key="--host",
            )
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        try:
            answering = handlers(Answers(predictor, max_rows))
        except ImportError:
            raise MissingExtra("tacit serve", "serve") from None
        self._server: Any = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="serve"),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", max_bytes),
                ("grpc.max_metadata_size", 16 * 1024),
            ],
            maximum_concurrent_rpcs=MOST_WAITING,
        )
        self._server.add_generic_rpc_handlers([answering])
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.port = self._bound(host, port, tls)
        self._server.start()

    def _bound(self, host: str, port: int, tls: Tls | None) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = tls.credentials() if tls is not None else None
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError:
            raise StorageError(
                f"{address}: cannot listen: the port is taken, or the address not ours"
            ) from None

    def wait(self) -> None:
        """Until it ends."""
        self._server.wait_for_termination()

    def close(self) -> None:
        """Answers what it has begun, then ends. Closing twice is allowed."""
        self._health.enter_graceful_shutdown()
        self._server.stop(GRACE_SECONDS).wait()
