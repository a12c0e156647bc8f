"""Keys and roster of simulated sites: each site has its own, whatever the file system can do."""

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from simulations import enrolment
from tacit.errors import RunFailed
from tacit.secagg.identity import Identity
from tacit.secagg.signed_roster import SignedRoster, check_first
from tests.unit.small_federation import Federation


def no_links(source: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_every_site_has_its_key_and_the_roster_that_all_have_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    sites = Federation(tmp_path).sites
    content = (sites / "roster.json").read_bytes()
    signed = SignedRoster.decode(content)
    check_first(signed)
    for i, member in enumerate(signed.roster.members):
        assert (sites / str(i) / "roster.json").read_bytes() == content
        assert Identity.load(sites / str(i) / "identity.key").public == member.key
    assert Identity.load(sites / "server.key").public == signed.roster.server_key


def test_what_was_enrolled_stays(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    before = (federation.sites / "roster.json").read_bytes()
    enrolment.enrol(federation.sites, federation.experiment)
    assert (federation.sites / "roster.json").read_bytes() == before


def test_members_whose_keys_have_expired_are_not_asked_and_the_end_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "VALIDITY", timedelta(days=-1))
    federation = Federation(tmp_path)
    assert SignedRoster.decode((federation.sites / "roster.json").read_bytes()).roster.enrolled[0].expiry < (
        datetime.now(UTC).date()
    )
    with pytest.raises(RunFailed, match=re.escape("in 0 attempts; sites refused: barred (6)")):
        federation.run(tmp_path / "run")
