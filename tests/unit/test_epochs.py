"""Requests of sites, the epochs of a roster, and the commands around them.

Longer than 400 lines because each thing that a site may send has its own case.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from federation_world import (
    LABELS,
    NOW,
    TODAY,
    World,
    contents,
    federation_toml,
    new_signed_world,
    new_world,
)
from typer.testing import CliRunner

from client.enrolment import SiteKit, enroll
from server import epochs
from server.provision_cli import app
from server.provisioning import (
    CoordinatorKit,
    provision,
    renew_certificate,
)
from tacit.errors import ConfigError, ProtocolError, StorageError, TacitError
from tacit.federation import EnrolmentRequest
from tacit.secagg.identity import readable
from tacit.secagg.signed_roster import ROOT, RosterFile, SignedRoster, check_first, check_next

# Flower's own use of pathspec, when the bundle's hash is made.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)


@pytest.fixture
def signed_world(tmp_path: Path) -> World:
    return new_signed_world(tmp_path)


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


def same_node_respelled(world: World) -> None:
    """base64 with a character that its readers pass over: other text, the same key."""
    request = SiteKit.open(world.site("hospital-a")).request()
    assert request is not None
    remade(world, "hospital-b", node_key=f"{request.node_key[:40]}!{request.node_key[40:]}")


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
        (same_node_respelled, "node-key"),
        (the_servers, "duplicate"),
        (twice, "duplicate"),
        (lambda w: remade(w, "hospital-b", update={"label": "hospital-x"}), "unknown-site"),
        (lambda w: remade(w, "hospital-b", update={"name": "other"}), "other-federation"),
        (lambda w: remade(w, "hospital-b", update={"server_key": "7" * 64}), "other-federation"),
        (lambda w: remade(w, "hospital-b", node_key="ecdsa"), "node-key"),
        (lambda w: remade(w, "hospital-b", node_key=ED25519), "node-key"),
        (lambda w: remade(w, "hospital-b", node_key=""), "node-key"),
    ],
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
    file = federation_toml(tmp_path, root_holder="the registry's notary")
    out = run(file, "--out", kits, "--root", tmp_path / "safe" / "root.key.pub")
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
