"""The coordinator's side of a federation: federation.toml, kits and certificates."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from federation_world import (
    LABELS,
    NOW,
    SECRETS,
    TODAY,
    World,
    contents,
    federation_toml,
    new_signed_world,
    new_world,
)

from client.enrolment import SiteKit
from server import epochs
from server.provisioning import (
    CoordinatorKit,
    certificate_expiry,
    loopback_certificate,
    provision,
    renew_certificate,
)
from tacit.errors import ConfigError, StorageError
from tacit.federation import FederationFile, Invitation
from tacit.secagg.identity import Identity

# Flower's own use of pathspec, when the bundle's hash is made.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)


@pytest.fixture
def signed_world(tmp_path: Path) -> World:
    return new_signed_world(tmp_path)


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


@pytest.fixture(autouse=True)
def _quiet_umask() -> Iterator[None]:
    """As on most machines: a file that is not made with care would be open to others."""
    before = os.umask(0o022)
    yield
    os.umask(before)
