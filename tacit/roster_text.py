"""A roster as an operator reads it before signing: every fingerprint, the digest, and what is agreed on."""

from __future__ import annotations

from tacit.secagg.identity import fingerprint, readable
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import ROOT, SignedRoster


def describe(signed: SignedRoster, own_key: bytes = b"") -> list[str]:
    """Lines that say all that a signature under this roster agrees to.

    Args:
        signed: the roster. Whether its signatures are right is not looked at here.
        own_key: identity key of the site that reads it, whose line is marked; empty = nobody's.
    """
    roster = signed.roster
    lines = [
        f"roster, epoch {roster.epoch}",
        f"  digest       {readable(roster.digest())}",
        f"  coordinator  {fingerprint(roster.server_key)}",
        *_root(signed),
        f"  clients in a sum: {roster.n_min} to {roster.n_max}, of whom {roster.max_corrupt} may be corrupt and"
        f" {roster.max_dropouts} may vanish",
        f"  clip norm {_range(roster.clip)}, noise multiplier {_range(roster.noise)},"
        f" rounds {_range(roster.rounds)}",
        f"  epsilon of a run: per record {_ceiling(roster.epsilon_record)},"
        f" per client {_ceiling(roster.epsilon_client)}",
        *_schemas(roster),
        f"  bundles: {', '.join(sorted(digest.hex()[:16] for digest in roster.bundles)) or 'none'}",
        f"{len(roster.active)} members",
    ]
    for entry in roster.enrolled:
        member = entry.member
        notes = [f"{entry.num_rows} rows", f"until {entry.expiry}", *_state(signed, member.index)]
        mark = "  <- this site" if member.key == own_key else ""
        lines += [
            f"  {member.index:3} {member.label}: {', '.join(notes)}{mark}",
            f"      {fingerprint(member.key)}",
        ]
    return lines


def _root(signed: SignedRoster) -> list[str]:
    key = signed.roster.root_key
    if not key:
        return []
    state = "has signed" if ROOT in signed.signatures else "has not signed yet"
    return [
        f"  root         {fingerprint(key)}",
        f"    signs in place of the members and is trusted; it {state}",
    ]


def _schemas(roster: Roster) -> list[str]:
    listed = ", ".join(sorted(digest.hex()[:16] for digest in roster.model_schemas))
    return [f"  model schemas: {listed}"] if listed else []


def _state(signed: SignedRoster, index: int) -> list[str]:
    roster: Roster = signed.roster
    if index in roster.revoked:
        return ["REVOKED"]
    struck = ["STRUCK: has cheated"] if index in roster.strikes else []
    if roster.root_key:
        return struck
    return [*struck, "has signed" if index in signed.signatures else "has not signed yet"]


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"


def _ceiling(value: float | None) -> str:
    return "without a ceiling" if value is None else f"at most {value:g}"
