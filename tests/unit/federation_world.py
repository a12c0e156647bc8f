"""A federation's kits on one disk, with all its sites, for tests of either side."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.enrolment import enroll
from server import epochs
from server.provisioning import CoordinatorKit, provision
from tacit.secagg.identity import Identity
from tacit.secagg.signed_roster import SignedRoster

LABELS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
NOW = datetime.now(UTC)
TODAY = NOW.date()
SECRETS = ("ca.key", "tls.key", "server.key")


def federation_toml(folder: Path, labels: tuple[str, ...] = LABELS, more: str = "", **fields: str) -> Path:
    values = {"name": "heart-study", "address": "localhost:8443", **fields}
    lines = [f'{key} = "{value}"\n' for key, value in values.items()]
    path = folder / "federation.toml"
    path.write_text("".join(lines) + f"sites = {list(labels)}\n" + more)
    return path


@dataclass
class World:
    """Kits of a federation on one disk."""

    out: Path
    kit: CoordinatorKit

    def site(self, label: str) -> Path:
        return self.out / label

    def enroll(self, *labels: str, rows: int = 100, **options: Any) -> None:
        for label in labels:
            enroll(self.site(label), rows=rows, say=lambda line: None, **options)

    def collect(self, *labels: str, **options: Any) -> tuple[list[str], SignedRoster | None]:
        paths = [self.site(label) / "request.json" for label in labels]
        return epochs.collect(self.kit, paths or [self.out], **options)

    def sign(self, *labels: str) -> SignedRoster:
        """All these sites sign the newest epoch, and the coordinator keeps that."""
        signed = epochs.proposal(self.kit)
        assert signed is not None
        for label in labels:
            signed = signed.sign(Identity.load(self.site(label) / "identity.key"))
        return epochs.add_signatures(self.kit, signed)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def new_world(folder: Path) -> World:
    """Fresh kits for `LABELS`."""
    kit, made = provision(federation_toml(folder), folder / "kits")
    assert made == list(LABELS)
    return World(folder / "kits", kit)


def new_signed_world(folder: Path) -> World:
    """The same, with an epoch 1 that counts."""
    world = new_world(folder)
    world.enroll(*LABELS)
    world.collect()
    world.sign(*LABELS)
    return world
