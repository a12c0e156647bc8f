"""`GET` and `POST /tacit/roster`: who is shown the roster, and what is added to it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from server.front import Front
from server.front_limits import Limits
from server.roster_desk import RosterDesk
from tacit.secagg.identity import Identity
from tacit.secagg.members import Member
from tacit.secagg.membership import HEADER, member_header
from tacit.secagg.roster import Roster, RosterMember
from tacit.secagg.signed_roster import ROOT, SignedRoster, check_first
from tests.front_world import Line, post, status_of

NOW, DAY = 1_800_000_000.0, 86_400.0
SERVER_KEY, ROOT_KEY, STRANGER = 100, 101, 102


def identity(seed: int) -> Identity:
    return Identity.generate(random.Random(seed).randbytes)


def roster(count: int = 5, **changes: object) -> Roster:
    enrolled = tuple(
        RosterMember(Member(i, f"Site {i}: Ä", identity(i).public), date(2030, 1, 1), 100)
        for i in range(count)
    )
    fields = {
        "epoch": 1, "enrolled": enrolled, "server_key": identity(SERVER_KEY).public, "n_min": 4,
        "n_max": 200, "max_corrupt": 1, "max_dropouts": 1, **changes,
    }  # fmt: skip
    return Roster(**fields)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "roster.json"
    path.write_bytes(SignedRoster(roster()).encode())
    return path


@pytest.fixture
def desk(path: Path) -> RosterDesk:
    return RosterDesk(path, now=lambda: NOW)


def header(
    seed: int = 0, name: str = "Site 0: Ä", at: float = NOW, server: int = SERVER_KEY, epoch: int = 0
) -> str:
    return member_header(identity(seed), name, identity(server).public, at, epoch)


# Shown -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        header(),
        header(name="0"),
        header(3, "3"),
        header(at=NOW - DAY + 1),
        header(at=NOW + DAY - 1),
        header(epoch=1),
    ],
    ids=["label", "index", "another", "a day ago", "in a day", "by its number"],
)
def test_a_member_is_shown_the_roster_as_it_is(desk: RosterDesk, path: Path, text: str):
    assert desk.answer(b"GET", text, b"") == (200, path.read_bytes())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0:1800000000:",
        "0:1800000000:" + "00" * 64,
        header(STRANGER),
        header(1),  # the name of another
        header(name="Site 9"),
        header(name="9"),
        header(SERVER_KEY, "0"),
        header(at=NOW - DAY - 1),
        header(at=NOW + DAY + 1),
        header(server=STRANGER),  # of another federation
        header()[:-1],
        header() + "0",
        header() + "\n",
        header().upper(),
        header().replace(":1800000000:", ":1800000001:"),
        "0" * 10_000,
    ],
)
def test_a_roster_is_shown_to_holders_of_a_key_in_it_only(desk: RosterDesk, text: str):
    assert desk.answer(b"GET", text, b"") == (403, b"not a member\n")


def test_without_a_roster_there_is_none_and_one_that_is_damaged_is_not_shown(desk: RosterDesk, path: Path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert desk.answer(b"GET", header(), b"") == (503, b"roster unreadable\n")
    assert desk.answer(b"POST", "", signed_by(0)) == (503, b"roster unreadable\n")
    path.unlink()
    assert desk.answer(b"GET", header(), b"") == (404, b"no roster\n")
    assert desk.answer(b"POST", "", signed_by(0)) == (404, b"no roster\n")
    assert desk.limit(b"POST") == 64 << 10
    path.write_bytes(whole)
    assert desk.answer(b"GET", header(), b"") == (200, whole)


# Added -----------------------------------------------------------------------------------------------------------


def signed_by(*seeds: int, content: Roster | None = None) -> bytes:
    signed = SignedRoster(content or roster())
    for seed in seeds:
        signed = signed.sign(identity(seed))
    return signed.encode()


def test_signatures_are_put_together_until_the_roster_counts(desk: RosterDesk, path: Path):
    for posted in ([0], [1, 2], [0, 3], [4], [0]):
        assert desk.answer(b"POST", "", signed_by(*posted)) == (200, b"")
    assert path.read_bytes() == signed_by(0, 1, 2, 3, 4)
    check_first(SignedRoster.decode(path.read_bytes()))
    assert path.stat().st_mode & 0o777 == 0o600
    assert desk.answer(b"GET", header(), b"") == (200, signed_by(0, 1, 2, 3, 4))


def test_what_is_known_already_is_not_written_again(desk: RosterDesk, path: Path):
    desk.answer(b"POST", "", signed_by(0))
    before = path.stat().st_ino, path.stat().st_mtime_ns
    assert desk.answer(b"POST", "", signed_by(0)) == (200, b"")
    assert desk.answer(b"POST", "", signed_by()) == (200, b"")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


def forged(index: int, signature: bytes) -> bytes:
    return replace(SignedRoster(roster()), signatures={index: signature}).encode()


GOOD = dict(SignedRoster(roster()).sign(identity(0)).signatures)[0]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (signed_by(STRANGER), 403),
        (signed_by(SERVER_KEY), 403),  # B33
        (forged(1, GOOD), 403),  # B2
        (forged(0, bytes(64)), 403),
        (forged(0, GOOD[:-1]), 403),
        (forged(0, b""), 403),
        (forged(5, GOOD), 403),
        (forged(-1, GOOD), 403),
        (forged(ROOT, GOOD), 403),  # there is no root
        (signed_by(0, content=roster(n_max=199)), 409),  # B1
        (signed_by(0, content=roster(6)), 409),
        (b"", 409),
        (b"{}", 409),
        (b"\xff" * 1000, 409),
        (roster().encode().hex().encode(), 400),
        (signed_by(0)[:-4], 400),
        (signed_by(0).replace(b"Site 1", b"Site x"), 400),
        (signed_by(0) + b" ", 400),
    ],
)
def test_a_signature_is_kept_only_if_it_verifies_under_this_roster(
    desk: RosterDesk, path: Path, body: bytes, status: int
):
    desk.answer(b"POST", "", signed_by(2))
    before = path.read_bytes()
    assert desk.answer(b"POST", "", body)[0] == status
    assert path.read_bytes() == before


def test_one_wrong_signature_keeps_the_right_ones_of_its_file_out_too(desk: RosterDesk, path: Path):
    mixed = SignedRoster(roster(), {**SignedRoster.decode(signed_by(3)).signatures, 1: bytes(64)})
    assert desk.answer(b"POST", "", mixed.encode())[0] == 403
    assert path.read_bytes() == signed_by()


def test_none_is_ever_taken_away(desk: RosterDesk, path: Path):
    desk.answer(b"POST", "", signed_by(0, 1))
    assert desk.answer(b"POST", "", forged(0, bytes(64)))[0] == 403
    assert desk.answer(b"POST", "", signed_by(2)) == (200, b"")
    assert path.read_bytes() == signed_by(0, 1, 2)


def test_an_offline_root_signs_and_nobody_in_its_place(path: Path):
    content = roster(root_key=identity(ROOT_KEY).public)
    path.write_bytes(SignedRoster(content).encode())
    desk = RosterDesk(path, now=lambda: NOW)
    assert desk.answer(b"POST", "", signed_by(STRANGER, content=content))[0] == 403
    assert desk.answer(b"POST", "", signed_by(ROOT_KEY, content=content))[0] == 200
    assert list(SignedRoster.decode(path.read_bytes()).signatures) == [ROOT]


def epoch_2(path: Path, **changes: object) -> Roster:
    """Put where `tacit provision` puts it, with the one before it."""
    before = SignedRoster.decode(path.read_bytes())
    (path.parent / "rosters").mkdir()
    path.rename(path.parent / "rosters" / "1.json")
    after = roster(epoch=2, previous=before.roster.digest(), **changes)
    path.write_bytes(SignedRoster(after).encode())
    return after


def test_a_new_epoch_takes_the_place_of_the_old_one_at_once(desk: RosterDesk, path: Path):
    assert desk.answer(b"POST", "", signed_by(0)) == (200, b"")
    after = epoch_2(path, revoked=frozenset({4}))
    assert desk.answer(b"POST", "", signed_by(1)) == (409, b"another roster\n")
    assert desk.answer(b"POST", "", signed_by(1, content=after)) == (200, b"")
    assert desk.answer(b"GET", header(4, "4"), b"")[0] == 200  # who is revoked has to learn it
    assert desk.answer(b"GET", header(epoch=2), b"") == (200, signed_by(1, content=after))
    assert desk.answer(b"GET", header(epoch=1), b"") == (200, signed_by(0))
    assert desk.answer(b"GET", header(epoch=3), b"") == (404, b"no roster\n")
    assert desk.answer(b"GET", header(STRANGER, "0", epoch=1), b"")[0] == 403


def test_an_epoch_is_signed_by_the_root_of_the_one_before(path: Path):
    path.write_bytes(SignedRoster(roster(root_key=identity(ROOT_KEY).public)).encode())
    after = epoch_2(path)  # without a root from here on
    desk = RosterDesk(path, now=lambda: NOW)
    assert desk.answer(b"POST", "", signed_by(STRANGER, content=after))[0] == 403
    assert desk.answer(b"POST", "", signed_by(ROOT_KEY, content=after))[0] == 200


# At the front ----------------------------------------------------------------------------------------------------


def test_B28_the_limit_fits_the_roster_with_all_signatures(tmp_path: Path):
    path, count = tmp_path / "roster.json", 60
    path.write_bytes(SignedRoster(roster(count)).encode())
    desk, everybody = RosterDesk(path), signed_by(*range(count), content=roster(count))
    assert len(everybody) < desk.limit(b"POST") == (64 << 10) + count * (2 << 10)
    with Front("http://127.0.0.1:9", desk=desk, limits=Limits(linger_seconds=0.02)) as front:

        def ask(data: bytes) -> bytes:
            with Line(front.port, None) as line:
                return line.ask(data)

        def get(text: str) -> bytes:
            return ask(f"GET /tacit/roster HTTP/1.1\r\nHost: x\r\n{HEADER}: {text}\r\n\r\n".encode())

        now = path.stat().st_mtime
        assert status_of(get("x")) == 403
        assert get(header(7, "7", now)).endswith(b"\r\n\r\n" + path.read_bytes())
        label = header(7, "Site 7: Ä", now)
        assert status_of(get(label)) == 200
        assert status_of(ask(post("/tacit/roster", everybody))) == 200
        assert path.read_bytes() == everybody
        assert status_of(ask(post("/tacit/roster", length=desk.limit(b"POST") + 1))) == 413
        assert front.counters["status-403"] == 1
