"""The coordinator's side of a federation: kits, certificates, requests, and the epochs of a roster."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.enrolment import SiteKit, enroll
from server import epochs
from server.provision_cli import app
from server.provisioning import (
    CoordinatorKit,
    certificate_expiry,
    loopback_certificate,
    provision,
    renew_certificate,
)
from tacit.errors import ConfigError, ProtocolError, StorageError, TacitError
from tacit.federation import EnrolmentRequest, FederationFile, Invitation
from tacit.secagg.identity import Identity, readable
from tacit.secagg.signed_roster import ROOT, RosterFile, SignedRoster, check_first, check_next

# Flower's own use of pathspec, when the bundle's hash is made.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

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


@pytest.fixture
def world(tmp_path: Path) -> World:
    kit, made = provision(federation_toml(tmp_path), tmp_path / "kits")
    assert made == list(LABELS)
    return World(tmp_path / "kits", kit)


@pytest.fixture
def signed_world(world: World) -> World:
    """Epoch 1 counts."""
    world.enroll(*LABELS)
    world.collect()
    world.sign(*LABELS)
    return world


# ---- federation.toml


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"address": "localhost"}, "address"),
        ({"address": "localhost:0"}, "address"),
        ({"address": "localhost:65536"}, "address"),
        ({"address": "https://localhost:8443"}, "address"),
        ({"address": "a b:8443"}, "address"),
        ({"address": "::1:8443"}, "address"),
        ({"address": "[127.0.0.1]:8443"}, "address"),
        ({"address": "-host:8443"}, "address"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"labels": ()}, "sites"),
        ({"labels": ("a", "../b")}, "sites.1"),
        ({"labels": ("a", "a:b")}, "sites.1"),
        ({"labels": ("a", "A")}, "sites"),
        ({"labels": ("a", "coordinator")}, "sites"),
        ({"more": "sights = 1\n"}, "sights"),
        ({"more": "[rules]\nmax_corrupt = 0\n"}, "rules.max_corrupt"),
        ({"more": "[rules]\nmax_corrupt = true\n"}, "rules.max_corrupt"),
        ({"more": "[rules]\nmin_client = 3\n"}, "rules.min_client"),
        ({"more": "[rules]\nclip = [1.0]\n"}, "rules.clip.1"),
        ({"more": '[rules]\nbundles = ["ab"]\n'}, "rules.bundles.0"),
        ({"more": "[rules]\nepsilon_record = 0.0\n"}, "rules.epsilon_record"),
        ({"more": "[days]\ncertificate = 826\n"}, "days.certificate"),
        ({"more": "[days]\nidentity = 0\n"}, "days.identity"),
    ],
    ids=str,
)
def test_G1_a_wrong_federation_file_is_refused_with_file_and_key(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    path = federation_toml(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        FederationFile.load(path)
    assert (caught.value.source, caught.value.key) == (str(path), key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "host"),
    [("fl.example.org:443", "fl.example.org"), ("10.0.0.7:8443", "10.0.0.7"), ("[fd00::7]:8443", "fd00::7")],
)
def test_an_address_is_a_host_and_a_port(tmp_path: Path, address: str, host: str) -> None:
    federation = FederationFile.load(federation_toml(tmp_path, address=address))
    assert (federation.host, federation.port) == (host, int(address.rpartition(":")[2]))


# ---- kits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_kit_has_what_its_readme_says_and_no_secret(world: World) -> None:
    for label in LABELS:
        folder = world.site(label)
        names = {path.name for path in folder.iterdir()}
        assert names == {"federation.toml", "ca.pem", "policy.toml", "site.toml", "README.txt"}
        assert not any(b"PRIVATE" in content for content in contents(folder).values())
        invitation = Invitation.load(folder / "federation.toml")
        assert invitation.key == world.kit.server_identity().public and invitation.label == label
        assert invitation.address in (folder / "README.txt").read_text()
    from client.site import Site

    site = Site.open(world.site("hospital-a"))
    assert (site.label, site.data_set, site.data.name) == ("hospital-a", "hospital-a", "data.csv")


def test_K2_keys_are_0600_and_folders_0700_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kit, _ = provision(federation_toml(tmp_path), tmp_path / "new" / "kits")
        world = World(tmp_path / "new" / "kits", kit)
        world.enroll(*LABELS)
        world.collect()
        loopback_certificate(kit, kit.folder / "state" / "flower")
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["", *SECRETS])
def test_K2_a_key_or_a_folder_of_keys_that_other_users_can_open_is_refused(world: World, name: str) -> None:
    path = world.kit.folder / name
    path.chmod(0o750 if path.is_dir() else 0o640)
    for use in (
        lambda: CoordinatorKit.open(world.kit.folder),
        lambda: provision(world.kit.folder / "federation.toml", world.out),
    ):
        with pytest.raises(StorageError, match=r"lets other users in.*chmod") as caught:
            use()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_command_that_is_given_twice_never_destroys_a_key(signed_world: World, tmp_path: Path) -> None:
    world, before = signed_world, contents(signed_world.out)
    assert provision(tmp_path / "federation.toml", world.out)[1] == []
    world.enroll(*LABELS)
    world.collect()
    assert contents(world.out) == before
    with pytest.raises(StorageError, match="exists already"):
        Identity.create(world.kit.folder / "server.key")


@pytest.mark.parametrize("name", SECRETS)
def test_a_key_that_was_lost_is_not_made_anew_in_silence(world: World, tmp_path: Path, name: str) -> None:
    (world.kit.folder / name).unlink()
    with pytest.raises(StorageError, match=name):
        provision(tmp_path / "federation.toml", world.out)
    assert not (world.kit.folder / name).exists()


def test_a_kit_is_not_taken_over_by_another_federation(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="heart-study"):
        provision(federation_toml(tmp_path, name="other"), world.out)


def test_a_new_site_and_a_new_address_reach_the_kits(world: World, tmp_path: Path) -> None:
    key = (world.kit.folder / "tls.key").read_bytes()
    (world.site("hospital-a") / "policy.toml").write_text("min_honest = 3\n")
    path = federation_toml(tmp_path, (*LABELS, "hospital-e"), address="127.0.0.2:8443")
    kit, made = provision(path, world.out)
    assert made == ["hospital-e"] and kit.federation == CoordinatorKit.open(kit.folder).federation
    assert Invitation.load(world.site("hospital-a") / "federation.toml").address == "127.0.0.2:8443"
    assert (world.site("hospital-a") / "policy.toml").read_text() == "min_honest = 3\n"
    assert (kit.folder / "tls.key").read_bytes() == key
    assert shaken(kit.folder / "ca.pem", kit.folder, "127.0.0.2") == ""


def test_G8_keys_with_windows_line_ends_are_read(world: World) -> None:
    world.enroll("hospital-a")
    folder = world.site("hospital-a")
    request = (folder / "request.json").read_bytes()
    for path in (
        *(world.kit.folder / name for name in SECRETS),
        *folder.glob("*.key"),
        folder / "request.json",
    ):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    kit = CoordinatorKit.open(world.kit.folder)
    renew_certificate(kit)
    assert shaken(kit.folder / "ca.pem", kit.folder, "localhost") == ""
    assert SiteKit.open(folder).node_key().curve.name == "secp384r1"
    world.collect("hospital-a")
    assert (kit.folder / "requests" / "hospital-a.json").read_bytes() == request


# ---- certificates


def shaken(ca: Path, pair: Path, host: str) -> str:
    """Why a client that trusts `ca` and means `host` does not talk to the server that has `pair`; empty if it does."""
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(pair / "tls.pem", pair / "tls.key")
    here = ssl.create_default_context(cafile=str(ca))
    here.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    with there.wrap_socket(connection, server_side=True) as secured:
                        secured.sendall(b"hello")
                except OSError:
                    pass  # what the client thinks of it is what counts

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                here.wrap_socket(plain, server_hostname=host) as secured,
            ):
                assert secured.recv(5) == b"hello"
        except ssl.SSLError as error:
            return str(error.reason) + " " + str(getattr(error, "verify_message", ""))
        finally:
            thread.join()
    return ""


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    (tmp_path / "other").mkdir()
    kit, _ = provision(federation_toml(tmp_path / "other"), tmp_path / "other" / "kits")
    return kit.folder / "ca.pem"


def test_J3_J4_a_certificate_names_the_host_that_sites_dial(
    world: World, other_ca: Path, tmp_path: Path
) -> None:
    ca, folder = world.kit.folder / "ca.pem", world.kit.folder
    for host in ("localhost", "127.0.0.1"):
        assert shaken(ca, folder, host) == ""
    for host in ("example.org", "127.0.0.3", "sub.localhost"):
        assert "mismatch" in shaken(ca, folder, host) or "not valid" in shaken(ca, folder, host)
    assert "self-signed" in shaken(other_ca, folder, "localhost") or "unable" in shaken(
        other_ca, folder, "localhost"
    )
    named, _ = provision(federation_toml(tmp_path, address="fl.example.org:443"), tmp_path / "named")
    assert shaken(named.folder / "ca.pem", named.folder, "fl.example.org") == ""


def test_J1_J2_a_certificate_counts_for_its_year_and_a_day_before(tmp_path: Path) -> None:
    for days, reason in ((-364, ""), (-366, "expired"), (0.9, ""), (2, "not yet valid")):
        out = tmp_path / str(days)
        kit, _ = provision(federation_toml(tmp_path), out, now=NOW + timedelta(days=days))
        assert reason in shaken(kit.folder / "ca.pem", kit.folder, "localhost")
        assert bool(reason) == bool(shaken(kit.folder / "ca.pem", kit.folder, "localhost"))


def test_a_certificate_counts_for_a_server_only_and_signs_nothing(world: World) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID
    from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

    leaf, ca = (
        x509.load_pem_x509_certificate((world.kit.folder / name).read_bytes())
        for name in ("tls.pem", "ca.pem")
    )
    basic = {c: c.extensions.get_extension_for_class(x509.BasicConstraints) for c in (leaf, ca)}
    usage = {c: c.extensions.get_extension_for_class(x509.KeyUsage) for c in (leaf, ca)}
    assert all(extension.critical for extension in (*basic.values(), *usage.values()))
    assert (basic[leaf].value.ca, basic[ca].value.ca, basic[ca].value.path_length) == (False, True, 0)
    assert usage[leaf].value.digital_signature and not usage[leaf].value.key_cert_sign
    assert usage[ca].value.key_cert_sign and not usage[ca].value.digital_signature
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert ca.not_valid_after_utc - NOW > timedelta(days=3640)
    trust = PolicyBuilder().store(Store([ca]))
    trust.build_server_verifier(x509.DNSName("localhost")).verify(leaf, [])
    with pytest.raises(VerificationError):
        trust.build_client_verifier().verify(leaf, [])


def test_renewing_makes_a_certificate_for_the_same_key_that_the_same_ca_has_signed(world: World) -> None:
    folder, later = world.kit.folder, NOW + timedelta(days=340)
    before = contents(folder)
    assert epochs.warnings(world.kit, TODAY) == []
    (line,) = epochs.warnings(world.kit, later.date())
    assert "tls.pem" in line and "expires in 25 days" in line and "renew" in line
    renew_certificate(world.kit, later)
    assert epochs.warnings(world.kit, later.date()) == []
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"tls.pem"}
    assert certificate_expiry(folder / "tls.pem").date() == (later + timedelta(days=365)).date()
    assert "not yet valid" in shaken(folder / "ca.pem", folder, "localhost")
    renew_certificate(world.kit)
    assert shaken(folder / "ca.pem", folder, "localhost") == ""


def test_a_certificate_does_not_outlive_its_authority(world: World) -> None:
    with pytest.raises(StorageError, match=r"ca\.pem"):
        renew_certificate(world.kit, NOW + timedelta(days=3400))


def test_the_superlinks_certificate_is_for_this_machine_alone(world: World) -> None:
    key, certificate = loopback_certificate(world.kit, world.kit.folder / "state" / "flower")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and certificate.parent == key.parent
    for host in ("localhost", "127.0.0.1"):
        assert shaken(world.kit.folder / "ca.pem", key.parent, host) == ""
    before = key.read_bytes()
    loopback_certificate(world.kit, key.parent)
    assert key.read_bytes() != before


# ---- requests


def test_H4_a_request_that_is_changed_in_any_byte_is_refused(world: World) -> None:
    world.enroll("hospital-a")
    whole = (world.site("hospital-a") / "request.json").read_bytes()
    server_key = world.kit.server_identity().public

    def reads(data: bytes) -> bool:
        try:
            EnrolmentRequest.decode(data).check("heart-study", server_key)
        except ProtocolError:
            return False
        return True

    assert reads(whole) and reads(whole.replace(b"\n", b"\r\n"))
    accepted = []
    for at in range(len(whole)):
        for changed in (
            whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
            whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :],
            whole[:at] + whole[at + 1 :],
            whole[:at] + b" " + whole[at:],
        ):
            accepted += [at] * reads(changed)
    assert accepted == []


def stolen(world: World) -> None:
    """b sends a request that names a's key, signed with b's."""
    request = EnrolmentRequest.decode((world.site("hospital-a") / "request.json").read_bytes())
    mine = SiteKit.open(world.site("hospital-b"))
    key, node = mine.identity(), EnrolmentRequest.decode((mine.folder / "request.json").read_bytes()).node_key
    forged = EnrolmentRequest.make(mine.invitation, key, node, 100)
    write(world, "hospital-b", replace(forged, key=request.key))


def write(world: World, label: str, request: EnrolmentRequest) -> None:
    (world.site(label) / "request.json").write_bytes(request.encode())


def remade(world: World, label: str, **changes: Any) -> None:
    """A site that signs whatever it likes."""
    kit = SiteKit.open(world.site(label))
    request = kit.request()
    assert request is not None
    fields = {
        "invitation": kit.invitation,
        "identity": kit.identity(),
        "node_key": request.node_key,
        **changes,
    }
    fields["invitation"] = kit.invitation.model_copy(update=fields.pop("update", {}))
    write(world, label, EnrolmentRequest.make(**fields, num_rows=100))


def same_identity(world: World) -> None:
    remade(world, "hospital-b", identity=SiteKit.open(world.site("hospital-a")).identity())


def same_node(world: World) -> None:
    request = SiteKit.open(world.site("hospital-a")).request()
    assert request is not None
    remade(world, "hospital-b", node_key=request.node_key + " by the way")


def the_servers(world: World) -> None:
    remade(world, "hospital-b", identity=world.kit.server_identity())


def twice(world: World) -> None:
    (world.out / "again.json").write_bytes((world.site("hospital-b") / "request.json").read_bytes())
    enroll(world.site("hospital-b"), rows=7, say=lambda line: None)


def no_file(world: World) -> None:
    (world.site("hospital-b") / "request.json").write_text("{}")


ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (no_file, "request-file"),
        (stolen, "signature"),
        (same_identity, "duplicate"),
        (same_node, "duplicate"),
        (the_servers, "duplicate"),
        (twice, "duplicate"),
        (lambda w: remade(w, "hospital-b", update={"label": "hospital-x"}), "unknown-site"),
        (lambda w: remade(w, "hospital-b", update={"name": "other"}), "other-federation"),
        (lambda w: remade(w, "hospital-b", update={"server_key": "7" * 64}), "other-federation"),
        (lambda w: remade(w, "hospital-b", node_key="ecdsa"), "node-key"),
        (lambda w: remade(w, "hospital-b", node_key=ED25519), "node-key"),
        (lambda w: remade(w, "hospital-b", node_key=""), "node-key"),
    ],
    ids=str,
)
def test_a_request_that_is_refused_changes_nothing(
    world: World, lie: Callable[[World], None], reason: str
) -> None:
    world.enroll(*LABELS)
    lie(world)
    before = contents(world.kit.folder)
    with pytest.raises(ConfigError, match=reason) as caught:
        world.collect()
    assert "\n" not in str(caught.value) and contents(world.kit.folder) == before


def test_requests_are_collected_one_after_the_other(world: World) -> None:
    world.enroll(*LABELS)
    assert world.collect("hospital-c") == (["hospital-a", "hospital-b", "hospital-d"], None)
    assert world.collect("hospital-a", "hospital-d") == (["hospital-b"], None)
    absent, signed = world.collect("hospital-b")
    assert absent == [] and signed is not None and signed.signatures == {}
    roster = signed.roster
    assert [member.label for member in roster.members] == list(LABELS)
    assert (roster.epoch, roster.n_min, roster.n_max, roster.max_corrupt) == (1, 4, 4, 1)
    assert roster.server_key == world.kit.server_identity().public and len(roster.bundles) == 1
    assert {entry.expiry for entry in roster.enrolled} == {TODAY + timedelta(days=365)}
    assert {entry.num_rows for entry in roster.enrolled} == {100}
    for label in LABELS:
        line = (world.kit.folder / "nodes" / f"{label}.pub").read_text()
        assert line.startswith("ecdsa-sha2-nistp384 ") and line.endswith("\n")


def test_rules_that_these_members_cannot_have_are_refused(tmp_path: Path) -> None:
    for rules in (
        "max_corrupt = 3",
        "max_dropouts = 0\nmin_clients = 5",
        "clip = [2.0, 1.0]",
        "max_clients = 2",
    ):
        kit, _ = provision(federation_toml(tmp_path, more=f"[rules]\n{rules}\n"), tmp_path / "kits")
        world = World(tmp_path / "kits", kit)
        world.enroll(*LABELS)
        with pytest.raises(ConfigError) as caught:
            world.collect()
        assert caught.value.key == "rules" and not (kit.folder / "roster.json").exists()


def test_another_request_of_a_site_needs_a_word_and_after_signing_a_revocation(world: World) -> None:
    world.enroll(*LABELS)
    first = world.collect()[1]
    enroll(world.site("hospital-a"), new_keys=True, rows=100, say=lambda line: None)
    with pytest.raises(ConfigError, match="--replace"):
        world.collect()
    second = world.collect(replace_requests=True)[1]
    assert first and second and second.roster.epoch == 1 and second.roster != first.roster
    world.sign("hospital-b")
    enroll(world.site("hospital-a"), new_keys=True, rows=100, say=lambda line: None)
    for options in ({}, {"replace_requests": True}):
        with pytest.raises(ConfigError, match="changed"):
            world.collect(**options)
    assert epochs.proposal(world.kit) != second  # only a signature more
    third = world.collect(replace_requests=True, restart=True)[1]
    assert third and third.roster.epoch == 1 and third.signatures == {} and third.roster != second.roster
    world.sign(*LABELS)
    with pytest.raises(ConfigError, match="not complete"):
        world.collect(restart=True)


# ---- epochs


def test_an_epoch_is_signed_by_the_sites_and_never_by_the_coordinator(world: World, tmp_path: Path) -> None:
    world.enroll(*LABELS)
    world.collect()
    assert epochs.in_force(world.kit) is None and epochs.active_nodes(world.kit) == {}
    assert epochs.missing_signatures(world.kit) == f"not signed by {', '.join(LABELS)}"
    world.sign(*LABELS[:3])
    assert epochs.missing_signatures(world.kit) == "not signed by hospital-d"
    signed = epochs.proposal(world.kit)
    assert signed is not None
    with pytest.raises(ProtocolError, match="roster-signature"):
        epochs.add_signatures(world.kit, signed.sign(world.kit.server_identity()))
    world.sign("hospital-d")
    in_force = epochs.in_force(world.kit)
    assert in_force is not None and epochs.missing_signatures(world.kit) == ""
    assert set(epochs.active_nodes(world.kit)) == set(LABELS)
    for label in LABELS:
        with RosterFile.open(world.site(label) / "roster.jsonl") as file:
            file.accept(in_force, SiteKit.open(world.site(label)).identity().public)


def test_a_signature_under_another_roster_is_not_kept(signed_world: World) -> None:
    signed = epochs.proposal(signed_world.kit)
    assert signed is not None
    other = SignedRoster(replace(signed.roster, n_max=5))
    with pytest.raises(ProtocolError, match="not the roster"):
        epochs.add_signatures(signed_world.kit, other)


def test_who_is_revoked_comes_back_as_a_new_member_with_its_label(signed_world: World) -> None:
    world, first = signed_world, epochs.proposal(signed_world.kit)
    second = epochs.propose(world.kit, revoke=["hospital-b"])
    assert first and second.roster.revoked == {1} and second.roster.n_min == 3
    assert epochs.in_force(world.kit) == first and "hospital-b" in epochs.active_nodes(world.kit)
    with pytest.raises(ConfigError, match="revoked"):  # with the key that was revoked it does not come back
        world.collect("hospital-b")
    world.sign("hospital-a", "hospital-c", "hospital-d")
    check_next(first.roster, epochs.proposal(world.kit) or second)
    assert set(epochs.active_nodes(world.kit)) == {"hospital-a", "hospital-c", "hospital-d"}
    with pytest.raises(ConfigError, match="no member"):
        epochs.propose(world.kit, revoke=["hospital-b"])
    world.enroll("hospital-b", new_keys=True)
    third = world.collect("hospital-b")[1]
    assert third is not None and third.roster.epoch == 3
    assert [member.label for member in third.roster.members] == [*LABELS, "hospital-b"]
    assert third.roster.active == {0, 2, 3, 4}
    world.sign("hospital-a", "hospital-c", "hospital-d")
    check_next(second.roster, epochs.in_force(world.kit) or third)
    assert set(epochs.active_nodes(world.kit)) == set(LABELS)


def test_an_epoch_that_nobody_has_signed_is_put_together_anew_and_one_that_somebody_has_is_not(
    signed_world: World,
) -> None:
    world, first = signed_world, epochs.proposal(signed_world.kit)
    epochs.propose(world.kit, revoke=["hospital-b"])
    world.enroll("hospital-b", new_keys=True)
    both = world.collect("hospital-b")[1]
    assert first and both and both.roster.epoch == 2
    assert both.roster.revoked == {1} and both.roster.members[4].label == "hospital-b"
    world.sign("hospital-a")
    before = contents(world.kit.folder)
    with pytest.raises(ConfigError, match=r"epoch 2 is being signed: not signed by hospital-c"):
        epochs.propose(world.kit, revoke=["hospital-c"])
    assert contents(world.kit.folder) == before
    assert epochs.propose(world.kit).roster == both.roster  # nothing new is no new epoch
    assert epochs.propose(world.kit, today=TODAY + timedelta(days=3)).roster == both.roster


def test_a_revocation_that_leaves_too_few_is_refused(signed_world: World) -> None:
    with pytest.raises(ConfigError, match="2 members"):
        epochs.propose(signed_world.kit, revoke=["hospital-a", "hospital-b"])


def test_rows_that_a_site_declares_anew_are_in_the_next_epoch(signed_world: World) -> None:
    signed_world.enroll("hospital-c", rows=250)
    signed = signed_world.collect("hospital-c", replace_requests=True)[1]
    assert signed is not None and signed.roster.epoch == 2
    assert [entry.num_rows for entry in signed.roster.enrolled] == [100, 100, 250, 100]


def test_a_cheat_of_a_run_is_struck_in_the_next_epoch(signed_world: World) -> None:
    kit = signed_world.kit
    assert epochs.proven_cheats(kit) == frozenset()
    for run, strikes in (("1", "[2]"), ("2", "[]")):
        folder = kit.folder / "state" / "runs" / run
        folder.mkdir(parents=True)
        (folder / "sums.json").write_text(f'{{"round": 1, "attempt": 1, "strikes": {strikes}}}')
    roster = epochs.propose(kit, strikes=epochs.proven_cheats(kit)).roster
    assert roster.strikes == {2} and roster.n_min == 3 and roster.epoch == 2
    (kit.folder / "state" / "runs" / "2" / "sums.json").write_text("{}")
    with pytest.raises(StorageError, match=r"sums\.json"):
        epochs.proven_cheats(kit)


@pytest.mark.parametrize(
    ("days", "said"),
    [(0, ""), (335, ""), (336, "in 29 days"), (365, "in 0 days"), (366, "expired 1 days ago")],
)
def test_who_expires_is_said_from_30_days_before_and_renewed_by_a_next_epoch(
    signed_world: World, days: int, said: str
) -> None:
    kit, day = signed_world.kit, TODAY + timedelta(days=days)
    renew_certificate(kit, NOW + timedelta(days=days))
    lines = epochs.warnings(kit, day)
    assert len(lines) == (4 if said else 0) and all(said in line for line in lines)
    renewed = epochs.propose(kit, renew=True, today=day)
    assert {entry.expiry for entry in renewed.roster.enrolled} == {day + timedelta(days=365)}
    if days:
        signed_world.sign(*LABELS)
        assert epochs.in_force(kit) is not None and epochs.warnings(kit, day) == []


def test_a_new_site_joins_in_a_later_epoch_whose_digest_people_have_compared(
    signed_world: World, tmp_path: Path
) -> None:
    kit, _ = provision(federation_toml(tmp_path, (*LABELS, "hospital-e")), signed_world.out)
    world = World(signed_world.out, kit)
    world.enroll("hospital-e")
    proposed = world.collect("hospital-e")[1]
    assert proposed is not None and proposed.roster.epoch == 2
    own = SiteKit.open(world.site("hospital-e")).identity()
    digest = proposed.roster.digest()
    with RosterFile.open(world.site("hospital-e") / "roster.jsonl") as file:
        for labels, compared, reason in (
            (("hospital-a", "hospital-e"), digest, "roster-signature"),
            (LABELS, b"", "roster-epoch"),
            (LABELS, bytes(32), "roster-epoch"),
        ):
            signed = proposed
            for label in labels:
                signed = signed.sign(SiteKit.open(world.site(label)).identity())
            with pytest.raises(ProtocolError, match=reason):
                file.accept(signed, own.public, compared=compared)
        complete = world.sign(*LABELS[:3], "hospital-e")
        assert file.accept(complete, own.public, compared=digest) == complete.roster


# ---- an offline root, and the commands


def run(*arguments: object, code: int = 0, answer: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer)
    if isinstance(result.exception, TacitError) and code:
        assert result.exception.exit_code == code
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_an_offline_root_signs_in_place_of_the_sites(tmp_path: Path) -> None:
    key, kits = tmp_path / "safe" / "root.key", tmp_path / "kits"
    run("make-root", key)
    secret = key.read_bytes()
    run("make-root", key)
    assert key.read_bytes() == secret and stat.S_IMODE(key.stat().st_mode) == 0o600
    out = run(federation_toml(tmp_path), "--out", kits, "--root", tmp_path / "safe" / "root.key.pub")
    assert all(label in out for label in LABELS)
    world = World(kits, CoordinatorKit.open(kits / "coordinator"))
    world.enroll(*LABELS)
    kit = ("--kit", world.kit.folder)
    out = run("collect", kits, *kit)
    assert "root" in out and "the root has not signed" in out
    roster = world.kit.folder / "roster.json"
    copy = tmp_path / "copy.json"
    copy.write_bytes(roster.read_bytes())
    run("sign-root", copy, "--key", key, "--digest", "00" * 32, code=1)
    run("sign-root", copy, "--key", key, code=1, answer="no\n")
    run("sign-root", copy, "--key", world.site("hospital-a") / "identity.key", code=2)
    assert copy.read_bytes() == roster.read_bytes()
    assert "signed" in run("sign-root", copy, "--key", key, answer="yes\n")
    assert "in force" in run("add-signature", copy, *kit)
    signed = epochs.in_force(world.kit)
    assert signed is not None and set(signed.signatures) == {ROOT}
    with pytest.raises(ProtocolError):
        check_first(signed)
    check_first(signed, compared=signed.roster.digest())
    out = run("revoke", "hospital-a", *kit)
    digest = readable(epochs.propose(world.kit).roster.digest())
    copy.write_bytes(roster.read_bytes())
    run("sign-root", copy, "--key", key, "--digest", digest)
    assert "in force" in run("add-signature", copy, *kit)
    assert "another root" in run(
        tmp_path / "federation.toml", "--out", kits, "--root", other_root(tmp_path), code=2
    )


def other_root(folder: Path) -> Path:
    run("make-root", folder / "other.key")
    return folder / "other.key.pub"


def test_the_commands_say_what_is_to_be_compared_and_done(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    out = run("create", federation_toml(tmp_path), "--out", kits)
    assert "fingerprint of the coordinator" in out and "README.txt" in out
    world = World(kits, CoordinatorKit.open(kits / "coordinator"))
    kit = ("--kit", world.kit.folder)
    assert "no roster yet" in run("show", *kit)
    said: list[str] = []
    for label in LABELS:
        enroll(world.site(label), rows=100, say=said.append)
    fingerprints = [line.removeprefix("fingerprint  ") for line in said if line.startswith("fingerprint")]
    assert "no request yet from: hospital-c, hospital-d" in run(
        "collect", world.site("hospital-a") / "request.json", world.site("hospital-b") / "request.json", *kit
    )
    out = run("collect", kits, *kit)
    signed = epochs.proposal(world.kit)
    assert signed is not None and readable(signed.roster.digest()) in out
    assert len(fingerprints) == 4 and all(text in out for text in fingerprints)
    world.sign(*LABELS)
    out = run("show", *kit)
    assert "in force" in out and out.count("has signed") == 4 and "warning" not in out
    assert "REVOKED" in run("revoke", "hospital-d", *kit)
    assert "epoch 2" in run("renew", "--identities", *kit)
    assert "no run has proven" in run("strike", *kit)
    assert "no member" in run("revoke", "hospital-x", *kit, code=2)


@pytest.fixture(autouse=True)
def _quiet_umask() -> Iterator[None]:
    """As on most machines: a file that is not made with care would be open to others."""
    before = os.umask(0o022)
    yield
    os.umask(before)
