"""The coordinator's kit, and the kits that it hands to the sites: folders that a person can read.

    coordinator/  federation.toml, ca.key ca.pem, tls.key tls.pem, server.key, [root.pub]
    LABEL/        federation.toml ca.pem policy.toml site.toml README.txt, for one site; completed there

No private key of a site is made here. What the roster is made of is in `server.epochs`.

Guarantees:
    A command that is given twice never destroys a key.
    A key, or a folder of keys, that other users can open is refused.
    A certificate names the host that sites dial, counts for a server only, and signs nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import tomli_w
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.kit_texts import POLICY, README, SITE
from tacit.durable import write_file
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.federation import COORDINATOR, FederationFile, Invitation
from tacit.secagg.identity import (
    Identity,
    check_identity,
    check_private_folder,
    create_private,
    read_private,
)

CA_DAYS: Final = 3650
WARNING_DAYS: Final = 30
LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1")

_BACKDATED: Final = timedelta(days=1)  # clocks of sites may be off by a day
_SECRETS: Final = ("ca.key", "tls.key", "server.key")


@dataclass(frozen=True)
class CoordinatorKit:
    """The coordinator's folder. Made by `provision`, opened by `open`.

    Attributes:
        folder: its path.
        federation: its federation.toml.
    """

    folder: Path
    federation: FederationFile

    @classmethod
    def open(cls, folder: Path) -> CoordinatorKit:
        """Opens a kit and looks at the modes of all that is secret in it.

        Raises:
            StorageError: a key is missing, or it or the folder is open to other users.
            ConfigError: federation.toml is missing or wrong.
        """
        kit = cls(folder, FederationFile.load(folder / "federation.toml"))
        check_private_folder(folder)
        for name in _SECRETS:
            read_private(folder / name)
        return kit

    def server_identity(self) -> Identity:
        """The coordinator's Ed25519 identity."""
        return Identity.load(self.folder / "server.key")

    @property
    def root_key(self) -> bytes:
        """The public key of the offline root that the roster names; empty = none.

        Raises:
            ConfigError: root.pub is no such key.
        """
        path = self.folder / "root.pub"
        return _read_root(path) if path.exists() else b""


def provision(
    file: Path, out: Path, *, now: datetime | None = None, root: Path | None = None
) -> tuple[CoordinatorKit, list[str]]:
    """Makes all kits, or what of them is missing.

    Args:
        file: federation.toml. May have been changed since the last time, but for the name.
        out: the folder of kits.
        now: the time.
        root: public key of an offline root that signs rosters in place of the members, in a file.

    Returns:
        The coordinator's kit, and the labels of the sites whose kits were made now.

    Raises:
        ConfigError: the file is wrong, or is of another federation than the kit.
        StorageError: a file cannot be written, is open to other users, or was there before and is missing.
    """
    federation, now = FederationFile.load(file), now or datetime.now(UTC)
    folder = out / COORDINATOR
    if (root is not None or (folder / "root.pub").exists()) and not federation.root_holder:
        raise ConfigError(
            "is missing: an offline root signs, so say who holds its key", source=file, key="root_holder"
        )
    make_folder(out)
    make_folder(folder)
    check_private_folder(folder)
    stored = folder / "federation.toml"
    if stored.exists() and (name := FederationFile.load(stored).name) != federation.name:
        raise ConfigError(f"{folder} is of the federation {name!r}", source=file, key="name")
    kit = CoordinatorKit(folder, federation)
    if stored.exists():  # written after the keys: what is missing now was lost, and a new one would not fit
        CoordinatorKit.open(folder)
    _write_certificates(kit, now)
    if not (folder / "server.key").exists():
        Identity.create(folder / "server.key")
    if root is not None:
        _write_root(kit, root)
    if not stored.exists() or stored.read_bytes() != file.read_bytes():
        write_file(stored, file.read_bytes())
    server_key = kit.server_identity().public.hex()
    made = [label for label in federation.sites if _write_site(kit, out / label, label, server_key)]
    return kit, made


def renew_certificate(kit: CoordinatorKit, now: datetime | None = None) -> None:
    """A new TLS certificate for the server, for the same key: a server that is killed meanwhile finds a pair.

    Raises:
        StorageError: a file cannot be read or written.
    """
    now = now or datetime.now(UTC)
    names = (kit.federation.host, *LOOPBACK_NAMES)
    key = _key(kit.folder / "tls.key")
    days = kit.federation.days.certificate
    write_file(kit.folder / "tls.pem", _issue(kit, names, key, now, days))


def loopback_certificate(kit: CoordinatorKit, folder: Path, now: datetime | None = None) -> tuple[Path, Path]:
    """A key and a certificate of this CA for localhost and 127.0.0.1 alone: the SuperLink's.

    Args:
        kit: has the CA.
        folder: made when missing; `tls.key` and `tls.pem` in it are replaced by new ones.
        now: the time.

    Returns:
        Paths of the key (mode 0600) and of the certificate.
    """
    make_folder(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    now, days = now or datetime.now(UTC), kit.federation.days.certificate
    write_file(folder / "tls.key", _pem(key))
    write_file(folder / "tls.pem", _issue(kit, LOOPBACK_NAMES, key, now, days))
    return folder / "tls.key", folder / "tls.pem"


def certificate_expiry(path: Path) -> datetime:
    """When a certificate ends, UTC.

    Raises:
        StorageError: it cannot be read.
    """
    return _certificate(path).not_valid_after_utc


def certificate_warnings(kit: CoordinatorKit, today: date) -> list[str]:
    """A line for each certificate that ends within `WARNING_DAYS`."""
    lines = []
    for name, remedy in (("tls.pem", "tacit provision renew"), ("ca.pem", "new kits for all sites")):
        days = (certificate_expiry(kit.folder / name).date() - today).days
        if days < WARNING_DAYS:
            state = f"expires in {days} days" if days >= 0 else f"expired {-days} days ago"
            lines.append(f"{kit.folder / name} {state}: {remedy}")
    return lines


def check_node_key(text: str) -> None:
    """Refuses what Flower's node authentication would: not one line with an EC P-384 key in OpenSSH form.

    A key has one spelling: readers of base64 pass over what is none, and a key spelled twice would have two owners.

    Raises:
        ProtocolError: "node-key".
    """
    try:
        key = load_ssh_public_key(text.encode("ascii")) if text.isprintable() else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise ProtocolError("node-key", "not an EC P-384 public key in OpenSSH form")
    spelled = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
    if not f"{text} ".startswith(f"{spelled} "):  # what follows it is a remark
        raise ProtocolError("node-key", "the key is not spelled as OpenSSH does")


def make_folder(path: Path) -> None:
    """A folder of mode 0700, and those above it that are missing; one that is there stays as it is."""
    try:
        for folder in (*reversed(path.parents), path):  # mkdir gives a mode to the last only
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror or error}") from None


def _write_site(kit: CoordinatorKit, folder: Path, label: str, server_key: str) -> bool:
    """A site's kit; whether it was missing. What a person may have written into one stays."""
    is_new = not folder.exists()
    make_folder(folder)
    federation = kit.federation
    invitation = Invitation(
        name=federation.name, address=federation.address, label=label, server_key=server_key
    )
    text = tomli_w.dumps(invitation.model_dump())
    fields = tomli_w.dumps({"label": label, "data_set": label, "data": "data.csv"})
    for name, content in (
        ("ca.pem", (kit.folder / "ca.pem").read_text()),
        ("site.toml", SITE.format(fields=fields)),
        ("policy.toml", POLICY),
        ("README.txt", README.format(label=label, name=federation.name, address=federation.address)),
    ):
        if not (folder / name).exists():
            create_private(folder / name, content.encode())
    path = folder / "federation.toml"
    if not path.exists() or path.read_text() != text:
        write_file(path, text.encode())  # the address may have changed
    return is_new


def _write_root(kit: CoordinatorKit, root: Path) -> None:
    key = _read_root(root)
    if kit.root_key not in (b"", key):
        raise ConfigError("this kit names another root already", source=root)
    if not kit.root_key:
        create_private(kit.folder / "root.pub", f"{key.hex()}\n".encode())


def _read_root(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
        check_identity(key)
    except (OSError, ValueError, ProtocolError):
        raise ConfigError("not the public key of a root: 64 hexadecimal digits", source=path) from None
    return key


def _write_certificates(kit: CoordinatorKit, now: datetime) -> None:
    """CA and server certificate, in this order, and whatever of them is missing."""
    folder = kit.folder
    if not (folder / "ca.key").exists():
        create_private(folder / "ca.key", _pem(ec.generate_private_key(ec.SECP256R1())))
    if not (folder / "ca.pem").exists():
        write_file(folder / "ca.pem", _self_signed(kit, _key(folder / "ca.key"), now))
    if not (folder / "tls.key").exists():
        create_private(folder / "tls.key", _pem(ec.generate_private_key(ec.SECP256R1())))
    if not (folder / "tls.pem").exists() or not _fits(_certificate(folder / "tls.pem"), kit):
        renew_certificate(kit, now)


def _fits(certificate: x509.Certificate, kit: CoordinatorKit) -> bool:
    """Whether a certificate is for the key that is there and for the host that sites dial."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    wanted = _general_name(kit.federation.host)
    return wanted in names and certificate.public_key() == _key(kit.folder / "tls.key").public_key()


def _self_signed(kit: CoordinatorKit, key: ec.EllipticCurvePrivateKey, now: datetime) -> bytes:
    name = _name(f"{kit.federation.name[:50]} CA")
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(name, name, key.public_key(), now, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _issue(
    kit: CoordinatorKit, names: Sequence[str], key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> bytes:
    """A server certificate by the CA, which it does not outlive."""
    authority, ca_key = _certificate(kit.folder / "ca.pem"), _key(kit.folder / "ca.key")
    builder = _builder(_name(names[0]), authority.subject, key.public_key(), now, days)
    if now + timedelta(days=days) > authority.not_valid_after_utc:
        raise StorageError(
            f"{kit.folder / 'ca.pem'}: ends before the certificate would: make a new federation"
        )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)]), False),
        (issuer, False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _BACKDATED).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(read_private(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the library's own text may quote the file
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StorageError(f"{path}: not an EC key in PEM form")
    return key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise StorageError(f"{path}: not a certificate") from None
