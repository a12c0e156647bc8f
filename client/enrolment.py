"""A site's kit: the folder that the coordinator hands out, and the keys and the request that are made in it.

What comes then, signing the roster, is in `client.approval`.

Guarantees:
    Keys are made here, in new files of mode 0600; enrolling twice keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from tacit.durable import write_file
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.federation import EnrolmentRequest, Invitation
from tacit.secagg.identity import (
    Identity,
    check_private_folder,
    create_private,
    fingerprint,
    read_private,
)
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import RosterFile

WARNING_DAYS: Final = 30

_KEYS: Final = ("identity.key", "node.key", "request.json")


@dataclass(frozen=True)
class SiteKit:
    """A site's folder as the coordinator handed it out, with what was made here since.

    Attributes:
        folder: its path.
        invitation: the federation's public part: its name, address and server key, and this site's label.
    """

    folder: Path
    invitation: Invitation

    @classmethod
    def open(cls, folder: Path) -> SiteKit:
        """Opens a kit.

        Raises:
            StorageError: other users can look into it.
            ConfigError: its federation.toml is missing or wrong.
        """
        invitation = Invitation.load(folder / "federation.toml")
        check_private_folder(folder)
        return cls(folder, invitation)

    def identity(self) -> Identity:
        """This site's identity.

        Raises:
            ConfigError: there is none yet.
            StorageError: it cannot be read, or is open to other users.
        """
        path = self.folder / "identity.key"
        if not path.exists():
            raise ConfigError("no keys yet: tacit client enroll", source=self.folder)
        return Identity.load(path)

    def node_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of this site's node for Flower's authentication.

        Raises:
            StorageError: it cannot be read, is open to other users, or is no such key.
        """
        path = self.folder / "node.key"
        try:
            key = load_ssh_private_key(read_private(path).replace(b"\r\n", b"\n"), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # the library's own text may quote the file
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
            raise StorageError(f"{path}: not an EC P-384 key in OpenSSH form")
        return key

    def request(self) -> EnrolmentRequest | None:
        """What this site has asked for; None before its enrolment.

        Raises:
            StorageError: the file is damaged, or is not signed with this site's key.
        """
        path = self.folder / "request.json"
        if not path.exists():
            return None
        try:
            request = EnrolmentRequest.decode(path.read_bytes())
            request.check(self.invitation.name, self.invitation.key)
        except (OSError, ProtocolError) as error:
            raise StorageError(f"{path}: {error}") from None
        return request

    def accepted(self) -> Roster | None:
        """The newest epoch that this site has accepted; None before the first.

        Raises:
            StorageError: the file cannot be used.
        """
        path = self.folder / "roster.jsonl"
        if not path.exists():
            return None
        with RosterFile.open(path) as file:
            return file.signed.roster if file.signed else None


def enroll(
    folder: Path,
    *,
    data: Path | None = None,
    rows: int | None = None,
    new_keys: bool = False,
    say: Callable[[str], None] = print,
) -> EnrolmentRequest:
    """Makes what keys are missing and the request to join, and says the fingerprint.

    Args:
        folder: the kit.
        data: the file whose rows are counted and, to two digits, declared; site.toml's own where neither this nor
            `rows` is given.
        rows: the number of rows to declare instead.
        new_keys: put the keys that are there aside, under `retired/`, and make new ones: after a revocation.
        say: takes lines for the operator.

    Raises:
        ConfigError: the kit is wrong, or the number of rows is unknown.
        DataError: the data file cannot be read.
        StorageError: a file is open to other users, or cannot be written.
    """
    kit = SiteKit.open(folder)
    if new_keys:
        _retire(kit)
    before = kit.request()
    if rows is None and data is None and before is not None:
        rows = before.num_rows
    num_rows = _rows(folder, data) if rows is None else rows
    if not (folder / "identity.key").exists():
        Identity.create(folder / "identity.key")
    if not (folder / "node.key").exists():
        key = ec.generate_private_key(ec.SECP384R1())
        create_private(
            folder / "node.key", key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )
    identity = kit.identity()
    request = EnrolmentRequest.make(kit.invitation, identity, _public_line(kit.node_key()), num_rows)
    if request != before:
        write_file(folder / "request.json", request.encode())
    say(f"{kit.invitation.label} of {kit.invitation.name!r}, {num_rows} rows")
    say(f"fingerprint  {fingerprint(identity.public)}")
    say(f"send {folder / 'request.json'} to the coordinator, and say the fingerprint over the telephone")
    return request


def warnings(kit: SiteKit, today: date | None = None) -> list[str]:
    """A line for what ends within `WARNING_DAYS`: this site's identity in the roster, and the coordinator's CA."""
    today = today or datetime.now(UTC).date()
    ends: list[tuple[str, date, str]] = []
    roster, own = kit.accepted(), kit.identity().public
    for entry in [each for each in (roster.enrolled if roster else ()) if each.member.key == own]:
        ends.append(
            ("this site's identity", entry.expiry, "the coordinator runs tacit provision renew --identities")
        )
    try:
        authority = x509.load_pem_x509_certificate((kit.folder / "ca.pem").read_bytes())
        ends.append(("ca.pem", authority.not_valid_after_utc.date(), "a new kit is needed"))
    except (OSError, ValueError):
        raise StorageError(f"{kit.folder / 'ca.pem'}: not a certificate") from None
    return [
        f"{what} {'expires' if end >= today else 'expired'} on {end}: {remedy}"
        for what, end, remedy in ends
        if (end - today).days < WARNING_DAYS
    ]


def _rows(folder: Path, data: Path | None) -> int:
    """Counts the rows of the data file, to two digits: the number is public, and one record seldom moves it."""
    from client.site import Site
    from tacit.data.readers import num_rows

    path = data or Site.open(folder).data
    if data is None and not path.exists():
        raise ConfigError(f"--data FILE or --rows NUMBER is needed: there is no {path}", source=folder)
    return int(float(f"{num_rows(path):.1e}"))


def _public_line(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def _retire(kit: SiteKit) -> None:
    """Puts the keys aside where nothing looks for them."""
    if not (kit.folder / "identity.key").exists():
        return
    aside = kit.folder / "retired" / kit.identity().public.hex()[:16]
    try:
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        aside.mkdir(mode=0o700, exist_ok=True)
        for name in reversed(_KEYS):  # the identity last: until then a second try finds it and goes on
            if (kit.folder / name).exists():
                (kit.folder / name).rename(aside / name)
    except OSError as error:
        raise StorageError(f"{aside}: cannot be written: {error.strerror or error}") from None
