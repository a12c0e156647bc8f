"""H4, H5, H7: files that people write, or hand to each other, are read or refused with one line that helps."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from client.site import Site
from simulations.faults import FaultList
from tacit import config
from tacit.bridge import Terms
from tacit.config import Federation
from tacit.data.infer import infer_schema
from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema
from tacit.errors import ConfigError, DataError, ProtocolError, Refused
from tacit.privacy.policy import SitePolicy
from tacit.secagg.identity import Identity
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import ROOT, SignedRoster, check_first, check_next
from tests.fuzz.draw import Draw
from tests.vectors.cases import rosters, seeded
from tests.vectors.product import identity_of, roster_of


@cache
def folder() -> Path:
    """A folder of this process alone, which goes with it."""
    made = tempfile.TemporaryDirectory(prefix="tacit-fuzz-")
    _kept.append(made)
    return Path(made.name)


_kept: list[object] = []


def put(name: str, content: bytes) -> Path:
    """A file of the folder with this content, for its owner alone."""
    path = folder() / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


# --- H4 ----------------------------------------------------------------------------------------------------------

FIRST, SECOND = (roster_of(rosters()[name][1]["roster"]) for name in ("the first roster", "the next roster"))
SIGNERS: Final[tuple[Identity, ...]] = tuple(
    identity_of(seeded(name)) for name in (*(f"member {i}" for i in range(6)), "root", "server")
)


def roster_file(data: bytes) -> int:
    """H4: a file, or the canonical bytes of a roster with signatures of whoever would give them."""
    draw = Draw(data)
    as_file, signers, content = draw.below(2), draw.number(), draw.rest()
    try:
        signed = SignedRoster.decode(content) if as_file else SignedRoster(Roster.decode(content))
    except ProtocolError:
        return len(content)
    if as_file:
        assert signed.encode() == content.replace(b"\r\n", b"\n")
    else:
        assert signed.roster.encode() == content
    for place, identity in enumerate(SIGNERS):
        if signers >> place & 1:
            signed = signed.sign(identity)
    assert SignedRoster.decode(signed.encode()) == signed
    acceptance(signed)
    return len(content)


def acceptance(signed: SignedRoster) -> None:
    """Who counts as having signed, said once more."""
    roster, signers = signed.roster, set(signed.signatures)
    if _accepted(check_first, signed):
        assert roster.epoch == 1
        assert not roster.root_key
        assert signers >= roster.active
    if _accepted(lambda: check_first(signed, compared=roster.digest())):
        assert (ROOT in signers) if roster.root_key else (signers >= roster.active)
    for before in (FIRST, SECOND):
        if _accepted(check_next, before, signed):
            assert (roster.epoch, roster.previous) == (before.epoch + 1, before.digest())
            assert before.revoked <= roster.revoked
            assert [m.key for m in before.members] == [m.key for m in roster.members[: len(before.members)]]
            enough = 2 * len(signers & before.active) > len(before.active) + before.max_corrupt
            assert ROOT in signers if before.root_key else enough


def _accepted(check: Callable[..., None], *arguments: object) -> bool:
    try:
        check(*arguments)
    except ProtocolError:
        return False
    return True


# --- H5 ----------------------------------------------------------------------------------------------------------

SITES: Final = "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' for i in range(10))
PLAIN: Final = config.loads('name = "a"\n' + SITES)
FEDERATION: Final = Federation(sites=PLAIN.federation.sites)


def configuration(data: bytes) -> int:
    """H5: a file of each kind that people write, or an override on the command line."""
    draw = Draw(data)
    read, content = CONFIGURED[draw.below(len(CONFIGURED))], draw.rest()
    try:
        read(content)
    except Refused as error:
        assert error.reason
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1, "an error is one line"
    return len(content)


def _experiment(content: bytes) -> None:
    experiment = config.load(put("experiment.toml", content))
    text = experiment.to_toml()
    assert config.loads(text) == experiment
    assert config.loads(text).to_toml() == text
    SitePolicy().check(experiment)


def _override(content: bytes) -> None:
    experiment = config.loads(PLAIN.to_toml(), overrides=content.decode("utf-8", "replace").split("\x1f"))
    assert config.loads(experiment.to_toml()) == experiment


def _policy(content: bytes) -> None:
    SitePolicy.load(put("policy.toml", content)).check(PLAIN)


def _site(content: bytes) -> None:
    put("site/policy.toml", b"")
    site = Site.open(put("site/site.toml", content).parent)
    assert site.label
    assert site.data_set


def _terms(content: bytes) -> None:
    terms = Terms.load(put("bridge.toml", content))
    terms.experiment(FEDERATION).to_toml()


def _faults(content: bytes) -> None:
    source = str(put("faults.toml", content))
    found = FaultList.load(PLAIN.with_tables(simulation={"faults": source}))
    assert found is not None
    found = found.among([site.label for site in PLAIN.federation.sites])
    for number in range(len(found.faults)):
        found.sites(number + 1, 5)


CONFIGURED: Final[tuple[Callable[[bytes], None], ...]] = (
    _experiment, _policy, _terms, _site, _faults, _override,
)  # fmt: skip


# --- H7 ----------------------------------------------------------------------------------------------------------

CLIP: Final = 2.5
SCHEMA: Final = Schema(
    label="y",
    split="split",
    columns={
        "plain": NumericColumn(kind="numeric", range=(-5, 5), clip=CLIP, indicator=True),
        "log": NumericColumn(kind="numeric", transform="log", range=(-1e6, 1e6), clip=CLIP),
        "name": CategoricalColumn(kind="categorical", categories=("red", "1"), unseen="error"),
    },
)
NAMES: Final = ("plain", "log", "name", "y", "split")
LONG_NUMBER: Final = re.compile(rb"\d{8,}")


def table(data: bytes) -> int:
    """H7: with a declared schema, with one inferred, or without a header; a message never quotes a cell."""
    draw = Draw(data)
    way, content = draw.below(3), draw.rest()
    path = put("site.csv", content)
    try:
        if way == 1:
            found = read_table(path, None)
            schema = infer_schema(found, "y")
        else:
            schema, found = SCHEMA, read_table(path, SCHEMA, names=NAMES if way == 2 else None)
        parts = [transform(found, schema, split=split) for split in ("train", "test")]
    except DataError as error:
        header, _, rows = content.partition(b"\n")
        cells = {cell.decode() for cell in LONG_NUMBER.findall(rows) if cell not in header}
        assert not any(cell in str(error) for cell in cells), "an error quotes a cell"
        return len(content)
    for features, labels in parts:
        assert len(features) == len(labels) <= found.num_rows
        assert np.isfinite(features).all()
        assert not features.size or np.abs(features).max() <= max(CLIP, 3.0)
    return len(content)
