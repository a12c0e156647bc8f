"""Rosters: what may be agreed on, who has to sign it, and that a client never goes back to an older one.

Longer than 400 lines because each thing that nobody may sign has its own case, and all are built from one roster.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.privacy.chain_file import ChainFile
from tacit.secagg.identity import Identity
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import MAX_MEMBERS, NO_ROSTER, Roster, RosterMember
from tacit.secagg.signed_roster import (
    ROOT,
    RosterFile,
    SignedRoster,
    check_first,
    check_joining,
    check_next,
    num_signers,
)

TODAY = date(2031, 5, 17)
LATER = date(2032, 1, 1)
COORDINATOR, HOLDER = 900, 901  # seeds of the server's and the root's identities


@cache
def identity(seed: int) -> Identity:
    return Identity.generate(random.Random(seed).randbytes)


def enrolled(count: int, start: int = 0) -> tuple[RosterMember, ...]:
    return tuple(
        RosterMember(Member(i, f"Site {i}", identity(i).public), LATER, 100 + i)
        for i in range(start, start + count)
    )


def roster(count: int = 5, **changes: Any) -> Roster:
    fields: dict[str, Any] = {
        "epoch": 1,
        "enrolled": enrolled(count),
        "server_key": identity(COORDINATOR).public,
        "n_min": min(count, 4),
        "n_max": 200,
        "max_corrupt": 1,
        "max_dropouts": 1,
    }
    return Roster(**{**fields, **changes})


def after(before: Roster, **changes: Any) -> Roster:
    return replace(before, epoch=before.epoch + 1, previous=before.digest(), **changes)


def signed(content: Roster, by: Iterable[int]) -> SignedRoster:
    result = SignedRoster(content)
    for seed in by:
        result = result.sign(identity(seed))
    return result


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.reason


def renamed(index: int, label: str, count: int = 5) -> tuple[RosterMember, ...]:
    entries = list(enrolled(count))
    entries[index] = replace(entries[index], member=replace(entries[index].member, label=label))
    return tuple(entries)


def with_key(index: int, key: bytes, count: int = 5) -> tuple[RosterMember, ...]:
    entries = list(enrolled(count))
    entries[index] = replace(entries[index], member=replace(entries[index].member, key=key))
    return tuple(entries)


# ---- what may be agreed on


@pytest.mark.parametrize(
    "changes",
    [
        {"max_corrupt": 0},
        {"max_dropouts": 2},  # fewer than T are left
        {"max_dropouts": -1},
        {"n_min": 2, "max_dropouts": 0},  # one honest vector
        {"n_min": 3},  # D = 1 leaves one honest vector
        {"n_min": 6},  # more than there are
        {"max_corrupt": 3, "max_dropouts": 0},
        {"n_max": 3},
        {"n_max": MAX_MEMBERS + 1},
        {"epoch": 0},
        {"epoch": 2},  # without one before it
        {"previous": b"\1" * 32},  # the first with one before it
        {"epoch": 2, "previous": b"\1" * 31},
        {"revoked": frozenset({5})},
        {"strikes": frozenset({5})},
        {"revoked": frozenset({0, 1})},  # fewer than n_min are left
        {"strikes": frozenset({0, 1})},
        {"revoked": frozenset({0}), "strikes": frozenset({1})},
        {"enrolled": enrolled(5)[::-1]},
        {"enrolled": enrolled(5)[1:]},
        {"enrolled": (*enrolled(5), enrolled(5)[4])},
        {"enrolled": enrolled(7)[:5] + enrolled(7)[6:]},
        {"enrolled": renamed(0, "Site 1")},
        {"enrolled": renamed(0, "Site\u202e0")},  # reads backwards
        {"enrolled": renamed(0, "Site\n0")},
        {"enrolled": with_key(0, identity(1).public)},
        {"enrolled": tuple(replace(entry, num_rows=-1) for entry in enrolled(5))},
        {"server_key": identity(3).public},  # the coordinator is no member
        {"root_key": identity(COORDINATOR).public},
        {"root_key": identity(3).public},
        {"model_schemas": frozenset({b"short"})},
        {"bundles": frozenset({b"short"})},
        *(
            {"clip": clip}
            for clip in ((0.0, 1.0), (2.0, 1.0), (nan, 1.0), (1.0, nan), (1.0, inf), (-1.0, 1.0))
        ),
        *({"noise": noise} for noise in ((-1.0, 1.0), (2.0, 1.0), (nan, 1.0), (1.0, nan), (1.0, inf))),
        *({"rounds": rounds} for rounds in ((0, 1), (2, 1), (1, 2**64))),
        *({name: value} for name in ("epsilon_record", "epsilon_client") for value in (0.0, -1.0, nan, inf)),
    ],
    ids=str,
)
def test_a_roster_that_nobody_may_agree_on_does_not_exist(changes):
    assert reason_of(lambda: roster(**changes)) == "roster"


@pytest.mark.parametrize("place", ["member", "server_key", "root_key"])
def test_B6_a_key_of_small_order_is_in_no_roster(place):
    key = (1).to_bytes(32, "little")
    changes = {"enrolled": with_key(2, key)} if place == "member" else {place: key}
    assert reason_of(lambda: roster(**changes)) == "identity-key"


def test_the_thresholds_of_a_roster_are_those_of_a_cohort():
    """A roster is refused exactly where a cohort of n_min would have to tolerate fewer drop-outs than D."""
    for n in range(1, 14):
        for c in range(1, 6):
            for dropouts in range(6):
                try:
                    allowed = Rules(c, dropouts, 1).parameters(n).max_dropouts == dropouts
                except ConfigError:
                    allowed = False
                try:
                    roster(14, n_min=n, max_corrupt=c, max_dropouts=dropouts)
                except ProtocolError:
                    assert not allowed, (n, c, dropouts)
                else:
                    assert allowed, (n, c, dropouts)


# ---- who may take part


@pytest.mark.parametrize(
    ("cohort", "today", "reason"),
    [
        ((0, 1, 2, 9), TODAY, "unknown-member"),
        ((0, 1, 2, 3), TODAY, "revoked"),
        ((0, 1, 2, 4), TODAY, "strike-list"),
        ((0, 1, 2, 5), date(2032, 1, 2), "expired"),
        ((0, 1, 2), TODAY, "cohort-size"),
        ((0, 1, 2, 5, 6, 7), TODAY, "cohort-size"),
        ((), TODAY, "cohort-size"),
        ((0, 1, 1, 2), TODAY, "order"),
        ((5, 2, 1, 0), TODAY, "order"),
    ],
)
def test_B4_B9_B35_a_cohort_is_of_members_that_may_take_part(cohort, today, reason):
    content = roster(8, n_max=5, revoked=frozenset({3}), strikes=frozenset({4}))
    content.check_cohort((0, 1, 2, 5), LATER)
    assert reason_of(lambda: content.check_cohort(cohort, today)) == reason


def test_a_revoked_member_stays_revoked_when_it_is_struck_too():
    content = roster(7, revoked=frozenset({3}), strikes=frozenset({3}))
    assert reason_of(lambda: content.check_member(3, TODAY)) == "revoked"
    assert reason_of(lambda: content.check_member(-1, TODAY)) == "unknown-member"


def test_a_new_machine_may_take_the_label_of_a_revoked_one():
    entries = (*enrolled(5), RosterMember(Member(5, "Site 0", identity(77).public), LATER, 9))
    content = roster(enrolled=entries, revoked=frozenset({0}))
    assert content.index_of(identity(77).public) == 5 and content.index_of(identity(0).public) == 0
    assert reason_of(lambda: content.index_of(identity(78).public)) == "unknown-member"
    assert reason_of(lambda: roster(enrolled=entries)) == "roster"


RUN = {"clip": 1.0, "noise": 2.0, "rounds": 10, "epsilon_record": 3.0, "epsilon_client": 8.0}


@pytest.mark.parametrize(
    "changes",
    [
        *({"clip": value} for value in (0.4, 2.1, nan, inf, 0.0, -1.0)),
        *({"noise": value} for value in (0.9, 4.1, nan, inf, 0.0, -2.0)),
        *({"rounds": value} for value in (4, 21, 0, -5)),
        *({"epsilon_client": value} for value in (8.1, inf, nan, -1.0)),
        {"epsilon_record": nan},
    ],
    ids=str,
)
def test_B11_a_run_beyond_the_agreed_numbers_is_refused(changes):
    content = roster(clip=(0.5, 2.0), noise=(1.0, 4.0), rounds=(5, 20), epsilon_client=8.0)
    content.check_run(**RUN)
    content.check_run(**{**RUN, "epsilon_record": inf})  # no ceiling for that unit
    assert reason_of(lambda: content.check_run(**{**RUN, **changes})) == "limits"


def test_B22_B25_only_listed_models_and_bundles_are_run():
    listed, other = b"\1" * 32, b"\2" * 32
    for name, check in (("model_schemas", "check_model_schema"), ("bundles", "check_bundle")):
        getattr(roster(**{name: frozenset({listed})}), check)(listed)
        reason = {"model_schemas": "model-schema", "bundles": "bundle"}[name]
        content = roster(**{name: frozenset({other})})
        assert reason_of(lambda r=content, c=check: getattr(r, c)(listed)) == reason
    assert reason_of(lambda: roster().check_bundle(listed)) == "bundle"
    roster().check_model_schema(listed)  # members who name no schema have agreed on any


# ---- one spelling

digests = st.frozensets(st.binary(min_size=32, max_size=32), max_size=3)
ceilings = st.none() | st.floats(1e-3, 1e3)
labels = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=8)


@st.composite
def rosters(draw: st.DrawFn) -> Roster:
    size = draw(st.integers(3, 8))
    names = draw(st.lists(labels, min_size=size, max_size=size, unique=True))
    entries = tuple(
        RosterMember(Member(i, name, identity(i).public), draw(st.dates()), draw(st.integers(0, 2**48 - 1)))
        for i, name in enumerate(names)
    )
    out = draw(st.frozensets(st.integers(0, size - 1), max_size=size - 3))
    epoch = draw(st.integers(1, 2**48 - 1))
    previous = draw(st.binary(min_size=32, max_size=32).filter(lambda digest: digest != NO_ROSTER))
    bounds = st.tuples(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6)).map(sorted).map(tuple)
    return roster(
        enrolled=entries,
        epoch=epoch,
        previous=NO_ROSTER if epoch == 1 else previous,
        revoked=draw(st.sampled_from([out, frozenset()])),
        strikes=draw(st.sampled_from([out, frozenset()])),
        root_key=draw(st.sampled_from([b"", identity(HOLDER).public])),
        n_min=3,
        max_dropouts=0,
        model_schemas=draw(digests),
        bundles=draw(digests),
        clip=draw(bounds),
        noise=draw(bounds),
        epsilon_record=draw(ceilings),
        epsilon_client=draw(ceilings),
    )


signatures = st.dictionaries(st.integers(0, 9) | st.just(ROOT), st.binary(max_size=64), max_size=4)


@given(rosters(), signatures)
def test_H10_a_roster_is_what_its_bytes_say(content, under):
    assert Roster.decode(content.encode()) == content
    assert Roster.decode(content.encode()).digest() == content.digest()
    pair = SignedRoster(content, under)
    assert SignedRoster.decode(pair.encode()) == pair


@given(rosters(), st.data())
def test_H4_H10_changed_bytes_are_refused_or_another_roster(content, data):
    whole = content.encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(
        st.sampled_from([whole[:at], whole + b"\0", whole[:at] + whole[at + 1 :]])
        | st.integers(1, 255).map(lambda x: whole[:at] + bytes([whole[at] ^ x]) + whole[at + 1 :])
    )
    try:
        other = Roster.decode(changed)
    except ProtocolError:
        return
    assert other.encode() == changed and other != content and other.digest() != content.digest()


@given(st.binary(max_size=300))
def test_H4_any_bytes_are_refused_in_one_way(data):
    for decode in (Roster.decode, SignedRoster.decode):
        with pytest.raises(ProtocolError):
            decode(data)


FILE = signed(roster(epsilon_client=8.0), range(5)).encode()


@given(
    st.integers(0, len(FILE) - 1), st.sampled_from([b"", b" ", b"\n", b"0", b"1", b'"', b"{", b",", b"\xff"])
)
@example(len(FILE) - 1, b"")
def test_H4_a_changed_file_is_refused_or_another_one(at, instead):
    changed = FILE[:at] + instead + FILE[at + 1 :]
    try:
        result = SignedRoster.decode(changed)
    except ProtocolError:
        assert changed != FILE
        return
    assert result.encode() == changed
    if changed != FILE:
        with pytest.raises(ProtocolError):
            check_first(result)


DEEP = b"[" * 100_000
REMARK = FILE.replace(b'{\n  "tacit', b'{\n  "remark": "",\n  "tacit')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        DEEP,
        REMARK,
        b"\xef\xbb\xbf" + FILE,
        FILE.replace(b'"max_corrupt": 1', b'"max_corrupt": 2'),
        FILE.replace(b'"revoked": false', b'"revoked": true', 1),
        FILE.replace(b'"0":', b'"00":'),
        FILE.replace(b'"epsilon_client": 8.0', b'"epsilon_client": 8'),
        json.dumps(json.loads(FILE)).encode(),
        FILE.decode().encode("utf-16"),
    ],
    ids=lambda data: data[:12],
)
def test_H4_a_file_shows_exactly_what_was_signed(data):
    assert data != FILE
    assert reason_of(lambda: SignedRoster.decode(data)) == "roster-file"


def test_G8_a_file_with_windows_line_ends_is_read():
    assert SignedRoster.decode(FILE.replace(b"\n", b"\r\n")) == SignedRoster.decode(FILE)


def test_sets_and_zero_have_one_spelling():
    content = roster(7, strikes=frozenset({1, 2}), noise=(0.0, 1.0))
    two, three = ((index).to_bytes(8, "big") for index in (1, 2))
    swapped = content.encode().replace(two + three, three + two)
    twice = content.encode().replace(two + three, two + two)
    for data in (swapped, twice):
        assert reason_of(lambda d=data: Roster.decode(d)) == "roster"
    negative = roster(7, strikes=frozenset({1, 2}), noise=(-0.0, 1.0))
    assert SignedRoster(negative).encode() == SignedRoster(content).encode()
    whole = roster(epsilon_client=8, clip=(1, 2))
    assert SignedRoster.decode(SignedRoster(whole).encode()).roster == whole


# ---- who has to sign


def test_the_first_epoch_needs_every_member():
    check_first(signed(roster(), range(5)))
    for missing in range(5):
        by = set(range(5)) - {missing}
        assert reason_of(lambda b=by: check_first(signed(roster(), b))) == "roster-signature"
    assert reason_of(lambda: check_first(SignedRoster(roster()))) == "roster-signature"
    second = signed(after(roster()), range(5))
    assert reason_of(lambda: check_first(second)) == "roster-epoch"


# N, c -> how many of the epoch before must sign: more than (N + c) / 2
@pytest.mark.parametrize(("size", "c", "enough"), [(5, 1, 4), (6, 1, 4), (10, 1, 6), (10, 4, 8), (11, 4, 8)])
def test_a_later_epoch_needs_more_than_half_of_n_plus_c(size, c, enough):
    before = roster(size, n_min=size, max_corrupt=c, max_dropouts=0)
    check_next(before, signed(after(before), range(enough)))
    check_next(before, signed(after(before), range(size - enough, size)))
    assert (
        reason_of(lambda: check_next(before, signed(after(before), range(enough - 1)))) == "roster-signature"
    )


def test_only_members_of_the_epoch_before_are_counted():
    before = roster(6, revoked=frozenset({5}))
    grown = after(before, enrolled=enrolled(9))
    check_next(before, signed(grown, [0, 1, 2, 3]))  # 4 of the 5 that are not revoked
    for others in ([6, 7, 8], [5]):
        by = [0, 1, 2, *others]
        assert reason_of(lambda b=by: check_next(before, signed(grown, b))) == "roster-signature"


def test_who_is_struck_has_no_say_in_the_next_roster():
    """Left out of N and of those who sign, in both implementations."""
    struck = frozenset({5, 6})
    before = roster(7, strikes=struck)
    assert num_signers(before) == (5 + before.max_corrupt) // 2 + 1 == 4
    grown = after(before, strikes=struck)
    check_next(before, signed(grown, [0, 1, 2, 3]))
    for by in ([0, 1, 2], [0, 1, 2, 5], [0, 1, 2, 5, 6]):
        assert reason_of(lambda b=by: check_next(before, signed(grown, b))) == "roster-signature"
    first = roster(6, strikes=frozenset({5}))
    check_first(signed(first, range(5)))
    later = after(first, strikes=frozenset({5}))
    with_cheat = signed(later, range(first.max_corrupt + 1)).signatures | signed(later, [5]).signatures
    compared = {"compared": later.digest()}
    assert reason_of(lambda: check_joining(SignedRoster(later, with_cheat), **compared)) == "roster-signature"
    check_joining(signed(later, range(first.max_corrupt + 2)), **compared)


def test_B33_the_coordinators_key_signs_no_roster():
    before = roster()
    attack = after(before, strikes=frozenset({0}))
    by_server = signed(attack, [0, 1, 2, COORDINATOR])  # signs as the root, which there is none of
    assert reason_of(lambda: check_next(before, by_server)) == "roster-signature"
    as_member = identity(COORDINATOR).sign("roster", attack.previous, 3, attack.digest())
    forged = replace(
        signed(attack, [0, 1, 2]), signatures={**signed(attack, [0, 1, 2]).signatures, 3: as_member}
    )
    assert reason_of(lambda: check_next(before, forged)) == "roster-signature"

    new_server = identity(77).public
    member = RosterMember(Member(5, "Coordinator", identity(COORDINATOR).public), LATER, 1)
    for joined in (
        after(before, server_key=new_server, enrolled=(*enrolled(5), member)),
        after(before, server_key=new_server, root_key=identity(COORDINATOR).public),
    ):
        assert reason_of(lambda j=joined: check_next(before, signed(j, range(5)))) == "roster"
    check_next(before, signed(after(before, server_key=new_server), range(5)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epoch": 1, "previous": NO_ROSTER}, "roster-epoch"),
        ({"epoch": 3}, "roster-epoch"),
        ({"previous": b"\1" * 32}, "roster-epoch"),  # of another federation, or another epoch 1
        ({"enrolled": enrolled(5)}, "roster"),  # a member is forgotten
        ({"enrolled": renamed(0, "New name", 7)}, "roster"),
        ({"enrolled": with_key(0, identity(77).public, 7)}, "roster"),
        ({"revoked": frozenset({1})}, "revoked"),  # 6 is taken back
    ],
    ids=str,
)
def test_an_epoch_follows_from_the_one_before(changes, reason):
    before = roster(7, revoked=frozenset({6}))
    if "enrolled" in changes and len(changes["enrolled"]) == 5:
        changes = {**changes, "revoked": frozenset()}
    wrong = replace(after(before), **changes)
    assert reason_of(lambda: check_next(before, signed(wrong, range(6)))) == reason
    renewed = tuple(replace(entry, expiry=date(2040, 1, 1), num_rows=5) for entry in enrolled(7))
    check_next(before, signed(after(before, enrolled=renewed, revoked=frozenset({5, 6})), range(6)))


def test_B1_B2_B3_one_wrong_signature_spoils_a_roster():
    before, first = roster(), signed(roster(), range(5))
    good = signed(after(before), range(5))
    other = signed(after(before, n_max=100), range(5))
    for index, wrong in (
        (2, good.signatures[1]),  # another member's
        (2, first.signatures[2]),  # of the epoch before
        (2, other.signatures[2]),  # of another roster with this number
        (2, b""),
        (5, good.signatures[2]),  # nobody
        (-1, good.signatures[2]),
        (2**70, good.signatures[2]),
        (ROOT, identity(HOLDER).sign("roster", before.digest(), ROOT, good.roster.digest())),
    ):
        forged = replace(good, signatures={**good.signatures, index: wrong})
        assert reason_of(lambda f=forged: check_next(before, f)) == "roster-signature"


def test_an_offline_root_signs_in_place_of_the_members():
    first = signed(roster(root_key=identity(HOLDER).public), [HOLDER])
    before = first.roster
    check_first(first, compared=before.digest())
    for compared in (b"", b"\1" * 32):  # anybody can make a roster with a root of their own
        assert reason_of(lambda c=compared: check_first(first, compared=c)) == "roster-signature"
    by_members = signed(before, range(5))
    assert reason_of(lambda: check_first(by_members, compared=before.digest())) == "roster-signature"

    check_next(before, signed(after(before), [HOLDER]))
    assert reason_of(lambda: check_next(before, signed(after(before), range(5)))) == "roster-signature"
    moved = after(before, root_key=identity(77).public)
    check_next(before, signed(moved, [HOLDER]))  # the old root names the new one
    assert reason_of(lambda: check_next(before, signed(moved, [77]))) == "roster-signature"


def test_signatures_of_two_copies_are_put_together():
    whole = signed(roster(), [0, 1]).merge(signed(roster(), [2, 3, 4]))
    check_first(whole)
    assert reason_of(lambda: whole.merge(signed(roster(n_max=100), [0]))) == "roster"


# ---- what a client keeps


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roster" / "epochs.jsonl"


OWN = identity(2).public
FIRST = signed(roster(), range(5))
SECOND = signed(after(FIRST.roster, n_max=100), range(5))
THIRD = signed(after(SECOND.roster, revoked=frozenset({4})), range(5))


def test_epochs_are_taken_one_after_the_other_and_are_there_again(path: Path):
    with RosterFile.open(path) as file:
        assert file.signed is None and reason_of(lambda: file.roster) == "roster"
    for epoch in (FIRST, FIRST, SECOND, SECOND, THIRD):
        with RosterFile.open(path) as file:
            assert file.accept(epoch, OWN) == epoch.roster
        with RosterFile.open(path) as file:
            assert file.signed == epoch and file.roster == epoch.roster
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("reopened", [False, True])
def test_a_client_never_goes_back_to_an_epoch(path: Path, reopened: bool):
    fork = signed(after(FIRST.roster, n_max=150), range(5))
    other_first = signed(roster(n_max=150), range(5))
    with RosterFile.open(path) as file:
        assert reason_of(lambda: file.accept(SECOND, OWN)) == "roster-epoch"
        file.accept(FIRST, OWN)
        assert reason_of(lambda: file.accept(THIRD, OWN)) == "roster-epoch"
        file.accept(SECOND, OWN)
        if not reopened:
            for wrong in (FIRST, fork, other_first):
                assert reason_of(lambda w=wrong: file.accept(w, OWN)) == "roster-epoch"
            assert file.signed == SECOND
    with RosterFile.open(path) as file:
        for wrong in (FIRST, fork, other_first):
            assert reason_of(lambda w=wrong: file.accept(w, OWN)) == "roster-epoch"
        assert file.signed == SECOND


def test_a_roster_without_this_site_is_not_taken_but_one_that_revokes_it_is(path: Path):
    stranger = identity(77).public
    with RosterFile.open(path) as file:
        assert reason_of(lambda: file.accept(FIRST, stranger)) == "unknown-member"
        assert file.signed is None
        for epoch in (FIRST, SECOND, THIRD):
            file.accept(epoch, identity(4).public)
        assert reason_of(lambda: file.roster.check_member(4, TODAY)) == "revoked"


def test_an_unsigned_epoch_is_not_kept(path: Path):
    with RosterFile.open(path) as file:
        for wrong in (signed(roster(), range(4)), SignedRoster(roster())):
            assert reason_of(lambda w=wrong: file.accept(w, OWN)) == "roster-signature"
        file.accept(FIRST, OWN)
        assert reason_of(lambda: file.accept(signed(SECOND.roster, [0, 1, 2]), OWN)) == "roster-signature"
        assert file.signed == FIRST
    assert len(path.read_text().splitlines()) == 1


def test_an_old_copy_a_changed_one_and_one_for_others_are_refused(path: Path):
    with RosterFile.open(path) as file:
        file.accept(FIRST, OWN)
    old = path.read_bytes()
    with RosterFile.open(path) as file:
        file.accept(SECOND, OWN)
    path.write_bytes(old)
    with pytest.raises(StorageError, match="damaged or missing"):
        RosterFile.open(path)
    path.write_bytes(old.replace(b"5369746520", b"5369746521"))
    with pytest.raises(StorageError, match="damaged or missing"):
        RosterFile.open(path)
    path.chmod(0o644)
    with pytest.raises(StorageError, match="lets other users in"):
        RosterFile.open(path)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"roster": "zz", "signatures": {}},
        {"roster": "", "signatures": []},
        {"roster": "00", "signatures": {}},
    ],
    ids=str,
)
def test_H4_the_file_of_something_else_is_refused_and_given_free(path: Path, record: dict[str, object]):
    file, _ = ChainFile.open(path)
    file.append(record)
    file.close()
    for _ in range(2):
        with pytest.raises(StorageError, match="not a roster file"):
            RosterFile.open(path)
