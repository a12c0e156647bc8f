"""H8: a client and a server under any history of messages; the property tests say what may leave them."""

from __future__ import annotations

from tests.fuzz.draw import Draw
from tests.property.test_secagg_machines import history, play, play_server, server_history


def client_machine(data: bytes) -> int:
    """H8: requests and restarts at one client: no secret leaves unless every guard has passed."""
    draw = Draw(data)
    return max(len(data), play(lambda machine: history(draw, machine)))


def server_machine(data: bytes) -> int:
    """H8: answers at a server: it gives the right sum or none."""
    return max(len(data), play_server(server_history(Draw(data))))
