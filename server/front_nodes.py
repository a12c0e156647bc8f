"""Whose bodies the front lets through: those of nodes whose public key the coordinator has and has not revoked.

A SuperLink reads a whole body before it asks who has sent it. A node's public key is no secret and proves nothing,
but strangers do not have it, and so cannot make the SuperLink hold what they send. Who has it still has to pass the
SuperLink's own check.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from tacit.errors import TacitError

# RFC 5480: what stands before the point in the SubjectPublicKeyInfo of a key on P-384.
_BEFORE: Final = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200")
_POINT_BYTES: Final = 97
_SECONDS: Final = 1.0  # between two looks at the files


class Nodes:
    """The keys of nodes, looked at again once a second at most.

    Args:
        files: their public keys in OpenSSH format, by label, as of now.
    """

    def __init__(self, files: Callable[[], Mapping[str, Path]]) -> None:
        self._files = files
        self._looked = float("-inf")
        self._headers: frozenset[bytes] = frozenset()

    def knows(self, header: bytes) -> bool:
        """Whether this is what a node sends as its `flwr-public-key`."""
        if (now := time.monotonic()) - self._looked > _SECONDS:
            self._looked = now
            with suppress(TacitError, OSError):  # while a roster is being replaced: as before
                self._headers = _headers(self._files().values())
        return header in self._headers


def flower_header(line: bytes) -> bytes:
    """Base64 of the PEM of a P-384 key, as Flower's node sends it.

    Args:
        line: the key in OpenSSH format (RFC 5656, section 3.1).

    Raises:
        ValueError: this is no such key.
    """
    kind, blob, *_ = *line.split(None, 2), b"", b""
    point = base64.b64decode(blob, validate=True)[-_POINT_BYTES:]
    if kind != b"ecdsa-sha2-nistp384" or len(point) != _POINT_BYTES or point[0] != 4:
        raise ValueError("not a P-384 key in OpenSSH format")
    der = base64.b64encode(_BEFORE + point).decode("ascii")
    lines = ["-----BEGIN PUBLIC KEY-----", *(der[i : i + 64] for i in range(0, len(der), 64))]
    return base64.b64encode("\n".join([*lines, "-----END PUBLIC KEY-----", ""]).encode())


def _headers(files: Iterable[Path]) -> frozenset[bytes]:
    found = set()
    for path in files:
        with suppress(OSError, ValueError):  # not there yet, or something else
            found.add(flower_header(path.read_bytes()))
    return frozenset(found)
