"""Around a front: certificates, a SuperLink's place taken by a recorder, and clients that speak raw bytes."""

from __future__ import annotations

import http.server
import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = Path(__file__).parents[1]
DAY = timedelta(days=1)


class Pair(NamedTuple):
    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        usage = {
            "digital_signature": False, "content_commitment": False, "key_encipherment": False,
            "data_encipherment": False, "key_agreement": False, "key_cert_sign": True, "crl_sign": True,
            "encipher_only": False, "decipher_only": False,
        }  # fmt: skip
        self._certificate = (
            self._builder(self._name, self._key, (-DAY, DAY))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = folder / f"{name}.pem"
        self.pem.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        valid: tuple[timedelta, timedelta] = (-DAY, DAY),
    ) -> Pair:
        """A server's certificate and key, `name`.pem and `name`.key, for hosts and from-until seen from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(subject, key, valid)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, valid: tuple[timedelta, timedelta]
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + valid[0])
            .not_valid_after(now + valid[1])
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


@dataclass(frozen=True)
class Seen:
    """A request that came through."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool = True


class Recorder:
    """Listens where a SuperLink would, and writes down all that reaches it.

    Attributes:
        requests: what came.
        answer: status, headers and body that it answers with.
        keep: whether it keeps bodies; else only what is in the first 64 kB.
    """

    def __init__(self, port: int = 0, tls: Pair | None = None) -> None:
        self.requests: list[Seen] = []
        self.answer: tuple[int, dict[str, str], bytes] = (
            200,
            {"content-type": "application/protobuf"},
            b"ok",
        )
        self.keep = True
        self._connections: list[socket.socket] = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

            def do_POST(self) -> None:
                left, body = int(self.headers.get("content-length", 0)), b""
                while left and (piece := self.rfile.read(min(left, 1 << 16))):
                    left -= len(piece)
                    body = body + piece if recorder.keep else piece
                seen = Seen(self.command, self.path, self.headers.items(), body, not left)
                recorder.requests.append(seen)
                status, headers, answer = recorder.answer
                self.send_response(status)
                for name, value in ({"content-length": str(len(answer))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: Any, address: Any) -> None:
                recorder._connections.append(request)
                super().process_request(request, address)

            def handle_error(self, *_: Any) -> None:  # who broke off is seen by the test
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Ends as a process that is killed does: with all its connections."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


class Line:
    """A connection that says what it is told to, byte by byte."""

    def __init__(
        self, port: int, trust: ssl.SSLContext | None, *, source: str = "127.0.0.1", name: str = "localhost"
    ) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))
        self._heard = b""
        try:
            self.socket = trust.wrap_socket(plain, server_hostname=name) if trust else plain
        except BaseException:
            plain.close()
            raise

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> bytes:
        """One whole answer with a declared length, or what comes until the other side hangs up."""
        try:
            while True:
                head, end, body = self._heard.partition(b"\r\n\r\n")
                if end and len(body) >= (length := length_in(head)):
                    self._heard = body[length:]
                    return head + end + body[:length]
                piece = self.socket.recv(1 << 16)
                if not piece:
                    break
                self._heard += piece
        except (ConnectionError, ssl.SSLError):
            pass
        answer, self._heard = self._heard, b""
        return answer

    def ask(self, data: bytes) -> bytes:
        self.say(data)
        return self.hear()

    def is_cut(self, within: float) -> bool:
        """Whether the other side hangs up."""
        self.socket.settimeout(within)
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def length_in(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def status_of(answer: bytes) -> int:
    """0 = there was none."""
    return int(answer.split()[1]) if answer else 0


def post(target: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A request as Flower's client makes it."""
    lines = [f"POST {target} HTTP/1.1", "Host: localhost", "Content-Type: application/protobuf", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


FRONT = """
import sys
from pathlib import Path
from server.front import Front
from server.front_limits import Limits
upstream, certificate, key, object_bytes = sys.argv[1:]
with Front(upstream, tls=(Path(certificate), Path(key)), limits=Limits(object_bytes=int(object_bytes), in_flight_bytes=1 << 40)) as front:
    print(front.port, flush=True)
    sys.stdin.read()
"""  # noqa: E501


class Apart(NamedTuple):
    """A front in a process of its own."""

    port: int
    pid: int

    def resident(self, *, peak: bool = False) -> int:
        """Bytes."""
        name = "VmHWM:" if peak else "VmRSS:"
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))


@contextmanager
def front_apart(upstream: str, tls: Pair, object_bytes: int) -> Iterator[Apart]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FRONT, upstream, *map(str, tls), str(object_bytes)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Apart(int(process.stdout.readline()), process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=20)


def until(condition: Any, seconds: float = 5.0) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
