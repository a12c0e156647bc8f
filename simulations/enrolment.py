"""Identity keys and a signed roster for simulated sites: what members of a federation make and compare by hand."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tacit.config import Experiment
from tacit.secagg.identity import Identity
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import Roster, RosterMember
from tacit.secagg.signed_roster import SignedRoster

VALIDITY: Final = timedelta(days=365)


def enrol(sites: Path, experiment: Experiment) -> None:
    """Writes `identity.key` and `roster.json` for each site, and `server.key` and `roster.json` beside their folders.

    Does nothing where it has been done before.

    Args:
        sites: holds one folder per site, named 0, 1, 2...
        experiment: with its federation declared.
    """
    shared = sites / "roster.json"
    if shared.exists():
        return
    today = datetime.now(UTC).date()
    server = _identity(sites / "server.key")
    declared = experiment.federation.sites
    identities = [_identity(sites / str(i) / "identity.key") for i in range(len(declared))]
    enrolled = tuple(
        RosterMember(Member(i, site.label, key.public), today + VALIDITY, site.rows)
        for i, (site, key) in enumerate(zip(declared, identities, strict=True))
    )
    signed = SignedRoster(roster_of(experiment, enrolled, server.public))
    for key in identities:
        signed = signed.sign(key)
    unfinished = sites / ".roster.json"
    unfinished.write_bytes(signed.encode())
    for i in range(len(declared)):
        link = sites / str(i) / "roster.json"
        link.unlink(missing_ok=True)
        try:
            os.link(unfinished, link)
        except OSError:  # not every file system has links
            shutil.copyfile(unfinished, link)
    unfinished.rename(shared)  # last: what it says is there then


def roster_of(experiment: Experiment, enrolled: tuple[RosterMember, ...], server_key: bytes) -> Roster:
    """The first epoch for this experiment: cohorts as small as it can do with, and no smaller."""
    rules = Rules.of(experiment.secure_aggregation)
    fewest = rules.fewest(experiment.cohort_size)
    return Roster(
        epoch=1,
        enrolled=enrolled,
        server_key=server_key,
        n_min=fewest,
        n_max=len(enrolled),
        max_corrupt=rules.max_corrupt,
        max_dropouts=rules.parameters(fewest).max_dropouts,
    )


def _identity(path: Path) -> Identity:
    return Identity.load(path) if path.exists() else Identity.create(path)
