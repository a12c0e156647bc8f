"""J7: whose bodies the front lets through to the SuperLink."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from server.front import Front
from server.front_nodes import flower_header
from tests.front_world import Line, Recorder, post, status_of, until

PULL = "/v1/fleet/pull-messages"


def test_J7_only_a_node_of_the_roster_gets_a_body_to_the_superlink(tmp_path: Path):
    keys = [ec.generate_private_key(ec.SECP384R1()).public_key() for _ in range(2)]
    files = {}
    for i, key in enumerate(keys):
        files[f"Site {i}"] = tmp_path / f"{i}.pub"
        text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        files[f"Site {i}"].write_bytes(text + b" a comment\n" * i)
    headers = [base64.b64encode(public_key_to_bytes(key)) for key in keys]
    assert [flower_header(file.read_bytes()) for file in files.values()] == headers

    behind, current = Recorder(), {"Site 0": files["Site 0"], "gone": tmp_path / "gone.pub"}
    with Front(behind.url, nodes=lambda: current) as front:

        def status(*header: str) -> int:
            with Line(front.port, None) as line:
                return status_of(line.ask(post(PULL, b"x", *header)))

        known, other = (f"flwr-public-key: {header.decode()}" for header in headers)
        assert [status(known), status(other), status(), status("flwr-public-key: ")] == [200, 401, 401, 401]
        current["Site 1"] = files["Site 1"]
        assert until(lambda: status(other) == 200)
        del current["Site 0"]  # revoked
        assert until(lambda: status(known) == 401)
    assert all(("flwr-public-key", headers[0].decode()) in seen.headers for seen in behind.requests[:1])
    behind.close()


@pytest.mark.parametrize("line", [b"", b"x", b"ecdsa-sha2-nistp384 !!", b"ssh-ed25519 " + b"A" * 200])
def test_J7_what_is_no_node_key_is_none(line: bytes):
    with pytest.raises(ValueError, match=r"P-384|base64|padding|characters"):
        flower_header(line)
