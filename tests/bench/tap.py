"""What goes over a loopback connection: a forwarder that counts bytes and knows when a path was first asked for."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress

REQUEST = re.compile(rb"(?:GET|POST) (\S+) HTTP/1\.1\r\n")


class Tap:
    """Listens on a free port and forwards to another, both on loopback, until it is closed.

    Attributes:
        port: to connect to.
        up: bytes from nodes to the server so far.
        down: bytes from the server to nodes.
    """

    def __init__(self, target: int) -> None:
        self.up = self.down = 0
        self._asked: dict[str, float] = {}
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections; those that are open end with their nodes."""
        self._server.close()

    @property
    def bytes(self) -> int:
        """Both ways."""
        return self.up + self.down

    def forget(self) -> None:
        """The next request for a path is the first again."""
        self._asked.clear()

    def wait_for(self, *paths: str, seconds: float = 60.0) -> float:
        """`time.monotonic()` of the first request for one of these paths."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if seen := [self._asked[path] for path in paths if path in self._asked]:
                return min(seen)
            time.sleep(0.005)
        raise TimeoutError(f"nobody asked for {' or '.join(paths)} within {seconds:.0f} s")

    def _accept(self) -> None:
        while True:
            try:
                node, _ = self._server.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for one, other, upward in ((node, server, True), (server, node, False)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(one, other, upward), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if upward:
                    self.up += len(data)
                    for path in REQUEST.findall(
                        data
                    ):  # not only at the start: a body may come with the next head
                        self._asked.setdefault(path.decode(), time.monotonic())
                else:
                    self.down += len(data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
