"""A site's side of enrolment: its keys, its request, and the roster that it signs, over the real front and TLS.

Longer than 400 lines because each step has what is refused in it beside it.
"""

from __future__ import annotations

import gzip
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from federation_world import LABELS, NOW, TODAY, World, contents, federation_toml, new_signed_world, new_world

from client import approval
from client.enrolment import SiteKit, enroll, warnings
from server import epochs
from server.front import Front
from server.provisioning import provision
from server.roster_desk import RosterDesk
from tacit.errors import ConfigError, DataError, ProtocolError, Refused, RunFailed, StorageError
from tacit.secagg.identity import Identity, fingerprint, readable
from tacit.secagg.membership import TOLERANCE_SECONDS, asked_epoch, check_member_header, member_header
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import SignedRoster

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

ROWS = "age,label\n" + "".join(f"{age},{age % 2}\n" for age in range(37))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)


@pytest.fixture
def collected(world: World) -> World:
    world.enroll(*LABELS)
    world.collect()
    return world


@pytest.fixture
def signed_world(tmp_path: Path) -> World:
    return new_signed_world(tmp_path)


Connect = Callable[[str], httpx.Client]


def served(world: World, stack: ExitStack) -> Connect:
    """A front before no SuperLink, and what makes a site's client for it."""
    folder = world.kit.folder
    front = stack.enter_context(
        Front(
            "https://127.0.0.1:1",
            tls=(folder / "tls.pem", folder / "tls.key"),
            ca=folder / "ca.pem",
            desk=RosterDesk(folder / "roster.json"),
        )
    )

    def connect(label: str) -> httpx.Client:
        client = stack.enter_context(closing(approval.https_client(SiteKit.open(world.site(label)))))
        client.base_url = httpx.URL(
            f"https://localhost:{front.port}"
        )  # the address in the kit has another port
        return client

    return connect


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def approved(world: World, label: str, connect: Connect, **options: Any) -> Roster | None:
    signed = epochs.proposal(world.kit)
    assert signed is not None
    options = {
        "digest": readable(signed.roster.digest()),
        "say": lambda line: None,
        "poll_seconds": 0.05,
        **options,
    }
    return approval.approve(world.site(label), client=connect(label), **options)


# ---- keys and request


def test_a_site_makes_its_keys_itself_and_flower_can_read_them(world: World) -> None:
    folder, said = world.site("hospital-a"), list[str]()
    (folder / "data.csv").write_text(ROWS)
    request = enroll(folder, say=said.append)
    kit = SiteKit.open(folder)
    assert request.num_rows == 37 and request.key == kit.identity().public
    assert f"fingerprint  {fingerprint(request.key)}" in said
    # As flower-supernode and flwr supernode register read them.
    private = load_ssh_private_key((folder / "node.key").read_bytes(), None)
    public = load_ssh_public_key(request.node_key.encode())
    assert isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp384r1"
    assert private.public_key() == public == kit.node_key().public_key()
    for name in ("identity.key", "node.key", "request.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    text = (folder / "request.json").read_text()
    assert "PRIVATE" not in text and "PRIVATE" not in repr(kit) and "37" in text


def test_enrolling_twice_keeps_the_keys(world: World) -> None:
    folder = world.site("hospital-a")
    enroll(folder, rows=100, say=lambda line: None)
    before = contents(folder)
    enroll(folder, say=lambda line: None)
    assert contents(folder) == before
    enroll(folder, rows=101, say=lambda line: None)
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"request.json"}


def test_new_keys_are_made_on_request_and_the_old_ones_kept_aside(world: World) -> None:
    folder = world.site("hospital-a")
    first = enroll(folder, rows=100, new_keys=True, say=lambda line: None)
    before = contents(folder)
    second = enroll(folder, rows=100, new_keys=True, say=lambda line: None)
    assert first.key != second.key and first.node_key != second.node_key
    aside = folder / "retired" / first.key.hex()[:16]
    for name in ("identity.key", "node.key", "request.json"):
        assert (aside / name).read_bytes() == before[name]
    assert stat.S_IMODE(aside.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda f: f.chmod(0o755), StorageError, r"mode 0755 lets other users in.*chmod 700"),
        (lambda f: (f / "identity.key").chmod(0o644), StorageError, r"identity\.key.*0644.*chmod 600"),
        (lambda f: (f / "node.key").chmod(0o604), StorageError, r"node\.key.*0604.*chmod 600"),
        (lambda f: (f / "node.key").write_text("no key"), StorageError, r"node\.key: not an EC P-384"),
        (
            lambda f: (f / "identity.key").write_text("no key"),
            StorageError,
            r"identity\.key: not an identity",
        ),
        (lambda f: (f / "request.json").write_text("{}"), StorageError, r"request\.json"),
        (lambda f: (f / "federation.toml").unlink(), ConfigError, r"federation\.toml"),
        (lambda f: (f / "federation.toml").write_text("name = 1"), ConfigError, r"federation\.toml: name"),
    ],
)
def test_K2_a_kit_that_is_open_to_others_or_damaged_is_refused(
    world: World, spoil: Callable[[Path], object], error: type[Exception], said: str
) -> None:
    folder = world.site("hospital-a")
    enroll(folder, rows=100, say=lambda line: None)
    before = contents(folder)
    spoil(folder)
    with pytest.raises(error, match=said) as caught:
        enroll(folder, rows=100, say=lambda line: None)
    assert "\n" not in str(caught.value)
    after = contents(folder)
    assert {name for name in before if after.get(name) != before[name]} <= {
        p for p in before if p in said.replace("\\", "")
    }


def test_a_number_of_rows_is_counted_or_said(world: World, tmp_path: Path) -> None:
    folder = world.site("hospital-a")
    for options, error in (
        ({}, ConfigError),
        ({"data": tmp_path / "nowhere.csv"}, DataError),
        ({"rows": 0}, ConfigError),
        ({"rows": 2**48}, ConfigError),
    ):
        with pytest.raises(error):
            enroll(folder, say=lambda line: None, **options)  # type: ignore[arg-type]
    elsewhere = tmp_path / "mine.csv"
    elsewhere.write_text(ROWS)
    assert enroll(folder, data=elsewhere, say=lambda line: None).num_rows == 37
    header, row, *_ = ROWS.splitlines()
    for rows, declared in ((569, 570), (571, 570), (1049, 1000)):  # to two digits: one row seldom moves it
        elsewhere.write_text("\n".join([header, *[row] * rows]))
        assert enroll(folder, data=elsewhere, say=lambda line: None).num_rows == declared


# ---- who may look


def test_without_the_key_of_a_member_a_roster_is_not_shown(collected: World) -> None:
    signed = epochs.proposal(collected.kit)
    assert signed is not None
    roster, now = signed.roster, 1_900_000_000.0
    own, stranger = SiteKit.open(collected.site("hospital-b")).identity(), Identity.generate(os.urandom)
    server = roster.server_key
    good = member_header(own, "hospital-b", server, now)
    assert check_member_header(good, roster, now + TOLERANCE_SECONDS).index == 1
    assert check_member_header(member_header(own, "1", server, now), roster, now).label == "hospital-b"
    assert (
        asked_epoch(member_header(own, "1", server, now, 7)) == 7
        and asked_epoch("") == asked_epoch(good) == 0
    )
    forged = [
        "",
        good[:-1],
        good + "0",
        good.replace("hospital-b", "hospital-a"),
        good.replace(":0:", ":1:"),
        good.replace("1900000000", "1900000001"),
        member_header(own, "hospital-x", server, now),
        member_header(own, "hospital-a", server, now),
        member_header(own, "hospital-b", bytes(32), now),
        member_header(stranger, "hospital-b", server, now),
        member_header(own, "hospital-b", server, now - TOLERANCE_SECONDS - 2),
        member_header(own, "hospital-b", server, now + TOLERANCE_SECONDS + 2),
        "hospital-b:0:1900000000:" + "0" * 128,
        "x" * 5000,
    ]
    for text in forged:
        with pytest.raises(ProtocolError, match="member-header"):
            check_member_header(text, roster, now)


# ---- the first epoch


def test_all_sites_approve_the_first_roster_over_the_front(collected: World, stack: ExitStack) -> None:
    connect, found = served(collected, stack), dict[str, Roster | None]()
    threads = [
        threading.Thread(
            target=lambda label=label: found.update({label: approved(collected, label, connect)})
        )
        for label in LABELS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    in_force = epochs.in_force(collected.kit)
    assert in_force is not None and found == dict.fromkeys(LABELS, in_force.roster)
    from client.site import Site

    for label in LABELS:
        assert SiteKit.open(collected.site(label)).accepted() == in_force.roster
        assert Site.open(collected.site(label)).roster() == in_force.roster
        assert approved(collected, label, connect) == in_force.roster  # once more, without effect


def test_the_operator_reads_every_fingerprint_and_the_digest_before_a_roster_is_signed(
    collected: World, stack: ExitStack
) -> None:
    connect, said, asked = served(collected, stack), list[str](), list[str]()
    folder = collected.site("hospital-a")

    def answer(question: str, text: str) -> str:
        asked.append("\n".join(said) + question)
        return text

    for text in ("no", "", "y"):
        with pytest.raises(Refused, match="operator"):
            approval.approve(
                folder,
                client=connect("hospital-a"),
                say=said.append,
                ask=lambda q, t=text: answer(q, t),
                wait=False,
            )
    with pytest.raises(Refused, match="another than this one"):
        approved(collected, "hospital-a", connect, digest="00 " * 32, wait=False)
    signed = epochs.proposal(collected.kit)
    assert signed is not None and signed.signatures == {} and not (folder / "signed.jsonl").exists()
    shown = asked[0]
    assert readable(signed.roster.digest()) in shown and fingerprint(signed.roster.server_key) in shown
    assert all(fingerprint(member.key) in shown for member in signed.roster.members)
    assert "hospital-a: 100 rows" in shown and shown.count("<- this site") == 1 and "telephone" in shown
    result = approval.approve(
        folder, client=connect("hospital-a"), say=said.append, ask=lambda q: " Yes\n", wait=False
    )
    assert result is None and "waits for hospital-b, hospital-c, hospital-d" in said[-1]
    signed = epochs.proposal(collected.kit)
    assert signed is not None and set(signed.signatures) == {0}
    assert SiteKit.open(folder).accepted() is None


def other(roster: Roster, **changes: Any) -> SignedRoster:
    return SignedRoster(replace(roster, **changes))


def renamed(roster: Roster) -> tuple[Any, ...]:
    a, b, *rest = roster.enrolled
    return (
        replace(a, member=replace(a.member, label="hospital-b")),
        replace(b, member=replace(b.member, label="hospital-a")),
        *rest,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: {"enrolled": renamed(r)}, "roster-label"),
        (lambda r: {"enrolled": (replace(r.enrolled[0], num_rows=101), *r.enrolled[1:])}, "roster-rows"),
        (lambda r: {"server_key": Identity.generate(os.urandom).public}, "server-key"),
        (
            lambda r: {
                "enrolled": (
                    replace(
                        r.enrolled[0],
                        member=replace(r.enrolled[0].member, key=Identity.generate(os.urandom).public),
                    ),
                    *r.enrolled[1:],
                )
            },
            "unknown-member",
        ),
    ],
    ids=["label", "rows", "server", "key"],
)
def test_a_roster_that_names_this_site_or_the_coordinator_otherwise_is_not_signed(
    collected: World, change: Callable[[Roster], dict[str, Any]], reason: str
) -> None:
    kit, signed = SiteKit.open(collected.site("hospital-a")), epochs.proposal(collected.kit)
    assert signed is not None
    changed = other(signed.roster, **change(signed.roster))
    for refuse in (
        lambda: approval.check_own(kit, changed.roster, kit.identity()),
        lambda: approval.sign(kit, changed, kit.identity()),
        lambda: approval.accept(kit, changed, kit.identity(), changed.roster.digest()),
    ):
        with pytest.raises(ProtocolError, match=reason):
            refuse()
    assert not (kit.folder / "signed.jsonl").exists()


def test_what_is_signed_is_remembered_and_never_two_later_ones_with_one_number(signed_world: World) -> None:
    kit = SiteKit.open(signed_world.site("hospital-a"))
    own, first = kit.identity(), epochs.proposal(signed_world.kit)
    assert first is not None
    again = other(first.roster, n_max=5)
    approval.sign(kit, again, own)  # nothing is accepted yet: another first epoch may come
    approval.sign(kit, first, own)
    assert approval.accept(kit, first, own)
    with pytest.raises(ProtocolError, match="accepted already"):
        approval.sign(kit, again, own)
    second = other(first.roster, epoch=2, previous=first.roster.digest())
    approval.sign(kit, second, own)
    approval.sign(SiteKit.open(kit.folder), second, own)
    with pytest.raises(ProtocolError, match="another epoch 2"):
        approval.sign(SiteKit.open(kit.folder), other(second.roster, n_max=5), own)


def test_a_wrong_signature_is_refused_and_a_missing_one_waited_for(signed_world: World) -> None:
    kit = SiteKit.open(signed_world.site("hospital-a"))
    own, signed = kit.identity(), epochs.proposal(signed_world.kit)
    assert signed is not None
    fewer = replace(signed, signatures={k: v for k, v in signed.signatures.items() if k != 3})
    wrong = replace(signed, signatures={**signed.signatures, 3: bytes(64)})
    assert approval.accept(kit, fewer, own) is False
    with pytest.raises(ProtocolError, match="signature of 3"):
        approval.accept(kit, wrong, own)
    assert kit.accepted() is None and approval.accept(kit, signed, own) is True


# ---- the connection


def test_J3_J9_a_site_talks_to_a_server_of_its_ca_only_and_follows_no_redirect(
    collected: World, stack: ExitStack, tmp_path: Path
) -> None:
    connect = served(collected, stack)
    kit = SiteKit.open(collected.site("hospital-a"))
    url = connect("hospital-a").base_url
    (tmp_path / "other").mkdir()
    other_kit, _ = provision(federation_toml(tmp_path / "other"), tmp_path / "other" / "kits")
    (kit.folder / "ca.pem").write_bytes((other_kit.folder / "ca.pem").read_bytes())
    with closing(approval.https_client(kit)) as client:
        client.base_url = url
        assert client.follow_redirects is False
        with pytest.raises(RunFailed, match=r"(?i)certificate"):
            approval.fetch_roster(kit, client, kit.identity())
    (kit.folder / "ca.pem").write_text("nothing")
    with pytest.raises(StorageError, match=r"ca\.pem"):
        approval.https_client(kit)


def test_a_roster_that_comes_compressed_is_not_unpacked(collected: World) -> None:
    kit, signed = SiteKit.open(collected.site("hospital-a")), epochs.proposal(collected.kit)
    assert signed is not None
    packed = iter([gzip.compress(signed.encode())])
    answer = httpx.Response(200, headers={"content-encoding": "gzip"}, content=packed)
    client = httpx.Client(base_url="https://localhost", transport=httpx.MockTransport(lambda request: answer))
    with client, pytest.raises(ProtocolError, match="roster-file"):
        approval.fetch_roster(kit, client, kit.identity())


def test_what_the_server_answers_is_said_in_words(world: World, stack: ExitStack) -> None:
    connect = served(world, stack)
    kit = SiteKit.open(world.site("hospital-a"))
    with pytest.raises(ConfigError, match="enroll"):
        approved_or_not(kit, connect)
    world.enroll(*LABELS)
    with pytest.raises(RunFailed, match="no roster yet"):
        approved_or_not(kit, connect)
    world.collect()
    world.enroll("hospital-a", new_keys=True)
    with pytest.raises(RunFailed, match="in no roster"):
        approved_or_not(kit, connect)


def test_a_site_that_starts_before_the_coordinator_waits_for_it(world: World) -> None:
    world.enroll(*LABELS)
    world.collect()
    kit, said = SiteKit.open(world.site("hospital-a")), list[str]()

    def say(line: str) -> None:
        said.append(line)
        raise InterruptedError

    with closing(approval.https_client(kit)) as client:
        client.base_url = "https://127.0.0.1:9"  # nobody listens there
        with pytest.raises(InterruptedError):
            approval.approve(kit.folder, client=client, say=say)
        assert said == [f"{kit.invitation.address}: [Errno 111] Connection refused; waiting"]
        with pytest.raises(approval.Away, match="refused"):
            approval.approve(kit.folder, client=client, say=say, wait=False)


def test_D11_an_answer_about_the_roster_says_what_time_it_is_there(world: World, stack: ExitStack) -> None:
    connect = served(world, stack)
    world.enroll(*LABELS)
    world.collect()
    kit, dates = SiteKit.open(world.site("hospital-a")), list[str]()
    client = connect("hospital-a")
    client.event_hooks = {"response": [lambda answer: dates.append(answer.headers["date"])]}
    approval.fetch_roster(kit, client, kit.identity())
    assert abs(parsedate_to_datetime(dates[0]).timestamp() - time.time()) < 5


def approved_or_not(kit: SiteKit, connect: Connect) -> None:
    approval.approve(
        kit.folder, client=connect("hospital-a"), say=lambda line: None, ask=lambda question: "no"
    )


# ---- later epochs


def test_a_later_epoch_is_signed_by_enough_and_followed_by_the_others(
    signed_world: World, stack: ExitStack
) -> None:
    world, connect = signed_world, served(signed_world, stack)
    kits = {label: SiteKit.open(world.site(label)) for label in LABELS}
    for label in LABELS:
        approved(world, label, connect)
    assert approval.follow(kits["hospital-d"], connect("hospital-d"), kits["hospital-d"].identity()) == (
        None,
        "",
    )
    second = epochs.propose(world.kit, revoke=["hospital-b"]).roster
    roster, line = approval.follow(kits["hospital-d"], connect("hospital-d"), kits["hospital-d"].identity())
    assert roster is None and "waits for this site: tacit client approve" in line
    for label in ("hospital-a", "hospital-c"):
        assert approved(world, label, connect, wait=False) is None
    assert approved(world, "hospital-d", connect) == second
    for label in ("hospital-a", "hospital-b"):  # who is revoked takes note of it too
        roster, line = approval.follow(kits[label], connect(label), kits[label].identity())
        assert roster == second and "accepted" in line
    # hospital-c takes the second without being asked, because it counts, and is asked about the third.
    third = epochs.propose(world.kit, renew=True, today=TODAY + timedelta(days=9)).roster
    asked: list[str] = []
    for answer in ("no", "yes"):
        options = {"digest": "", "ask": lambda question, a=answer: asked.append(question) or a}
        if answer == "no":
            with pytest.raises(Refused):
                approved(world, "hospital-c", connect, **options)
        else:
            assert approved(world, "hospital-c", connect, wait=False, **options) is None
    assert kits["hospital-c"].accepted() == second and len(asked) == 2
    signed = epochs.proposal(world.kit)
    assert signed is not None and signed.roster == third and set(signed.signatures) == {2}


def test_a_site_that_was_away_takes_the_epochs_that_it_has_missed_in_turn(
    signed_world: World, stack: ExitStack
) -> None:
    world, connect = signed_world, served(signed_world, stack)
    kit = SiteKit.open(world.site("hospital-d"))
    for label in LABELS:
        approved(world, label, connect)
    seen = []
    for days in (10, 20, 30):
        seen.append(epochs.propose(world.kit, renew=True, today=TODAY + timedelta(days=days)).roster)
        world.sign("hospital-a", "hospital-b", "hospital-c")
    followed = [approval.follow(kit, connect("hospital-d"), kit.identity())[0] for _ in range(4)]
    assert followed == [*seen, None]
    (world.kit.folder / "rosters" / "2.json").unlink()
    late = SiteKit.open(world.site("hospital-c"))
    with pytest.raises(RunFailed):
        approval.follow(late, connect("hospital-c"), late.identity())


def test_a_site_that_was_revoked_comes_back_in_its_folder(signed_world: World, stack: ExitStack) -> None:
    world, connect = signed_world, served(signed_world, stack)
    for label in LABELS:
        approved(world, label, connect)
    epochs.propose(world.kit, revoke=["hospital-b"])
    world.sign("hospital-a", "hospital-c", "hospital-d")
    world.enroll("hospital-b", new_keys=True)
    third = world.collect("hospital-b")[1]
    assert third is not None and third.roster.epoch == 3
    world.sign("hospital-a", "hospital-c", "hospital-d")
    assert approved(world, "hospital-b", connect) == third.roster
    kit = SiteKit.open(world.site("hospital-b"))
    assert kit.accepted() == third.roster and third.roster.index_of(kit.identity().public) == 4


def test_a_new_site_approves_a_later_epoch_as_its_first(
    signed_world: World, stack: ExitStack, tmp_path: Path
) -> None:
    kit, _ = provision(federation_toml(tmp_path, (*LABELS, "hospital-e")), signed_world.out)
    world = World(signed_world.out, kit)
    connect = served(world, stack)
    world.enroll("hospital-e")
    second = world.collect("hospital-e")[1]
    assert second is not None
    assert approved(world, "hospital-e", connect, wait=False) is None
    world.sign(*LABELS[:3])
    assert approved(world, "hospital-e", connect) == second.roster


def test_what_a_site_has_expires_with_a_warning_from_30_days_before(signed_world: World) -> None:
    kit = SiteKit.open(signed_world.site("hospital-a"))
    signed = epochs.proposal(signed_world.kit)
    assert signed is not None and approval.accept(kit, signed, kit.identity())
    for days, count, said in ((0, 0, ""), (335, 0, ""), (336, 1, "expires on"), (366, 1, "expired on")):
        lines = warnings(kit, TODAY + timedelta(days=days))
        assert len(lines) == count and all(said in line and "identity" in line for line in lines)
    assert len(warnings(kit, (NOW + timedelta(days=3630)).date())) == 2
