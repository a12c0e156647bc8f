"""The coordinator's side of the roster: it puts epochs together from requests and rules, and never signs one.

    requests/LABEL.json  what each site sent;  nodes/LABEL.pub  the key of its node
    roster.json          the newest epoch, with the signatures that it has so far
    rosters/EPOCH.json   the epochs before it, each complete

An epoch can be put together anew while nobody has signed it. Members stay at their index for ever, so a site whose
key is lost is revoked, and joins as a new member, with the same label if it likes.

Guarantees:
    A request of an unknown site, of another federation or without its proof changes nothing, nor does a second key.
    An epoch that somebody has signed is not replaced.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from server.provisioning import WARNING_DAYS, CoordinatorKit, certificate_warnings, make_folder
from server.requests import check_change, check_distinct, read_requests, store_request, stored_requests
from tacit.durable import write_file
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import NO_ROSTER, Roster, RosterMember
from tacit.secagg.signed_roster import ROOT, SignedRoster, check_first, check_next, checked_signers


def proposal(kit: CoordinatorKit) -> SignedRoster | None:
    """The newest epoch, complete or not; None before the first.

    Raises:
        StorageError: the file is damaged.
    """
    return _read(kit.folder / "roster.json")


def in_force(kit: CoordinatorKit) -> SignedRoster | None:
    """The newest epoch that counts; None while the first is being signed.

    Raises:
        StorageError: a file is damaged.
    """
    newest = proposal(kit)
    if newest is None or not _problem(kit, newest):
        return newest
    return _before(kit, newest)


def missing_signatures(kit: CoordinatorKit) -> str:
    """What the newest epoch lacks, in words; empty if it counts."""
    newest = proposal(kit)
    return "there is no roster yet" if newest is None else _problem(kit, newest)


def active_nodes(kit: CoordinatorKit) -> dict[str, Path]:
    """The public key of the node of each member that is not revoked in the epoch that counts, by label."""
    signed = in_force(kit)
    members = signed.roster.members if signed else ()
    return {
        members[index].label: kit.folder / "nodes" / f"{members[index].label}.pub"
        for index in sorted(signed.roster.active if signed else ())
    }


def add_signatures(kit: CoordinatorKit, signed: SignedRoster) -> SignedRoster:
    """Keeps the signatures of a copy of the newest epoch, all or none.

    Raises:
        ProtocolError: "roster", another roster; "roster-signature", a signature is wrong.
    """
    newest = proposal(kit)
    if newest is None or newest.roster != signed.roster:
        raise ProtocolError("roster", "this is not the roster that is being signed")
    checked_signers(signed, _signing_root(kit, newest.roster))
    merged = newest.merge(signed)
    if merged != newest:
        write_file(kit.folder / "roster.json", merged.encode())
    return merged


def collect(
    kit: CoordinatorKit,
    paths: Sequence[Path],
    *,
    replace_requests: bool = False,
    restart: bool = False,
    today: date | None = None,
) -> tuple[list[str], SignedRoster | None]:
    """Takes the requests of sites, all or none, and puts the next epoch together once it can.

    Args:
        kit: the coordinator's.
        paths: request files, or folders with such.
        replace_requests: a site may send another request than the one that is here.
        restart: begin the first epoch anew, without the signatures that it has.
        today: the date, UTC.

    Returns:
        Labels of declared sites that have sent nothing yet, and the newest epoch if there is one.

    Raises:
        ConfigError: a request is refused, and why; or the rules are wrong for these members.
        StorageError: a file cannot be read or written.
    """
    newest = proposal(kit)
    if restart and newest is not None:
        if newest.roster.epoch > 1 or not _problem(kit, newest):
            raise ConfigError("only a first epoch that is not complete can begin anew", source=kit.folder)
        newest = None
    arrived, stored = read_requests(kit, paths), stored_requests(kit)
    revoked, signed = _revoked_keys(newest), _signed_keys(kit, newest)
    for label, request in arrived.items():
        check_change(stored.get(label), request, revoked=revoked, signed=signed, allowed=replace_requests)
    everything = {**stored, **arrived}
    check_distinct(kit, everything)
    if restart:
        (kit.folder / "roster.json").unlink(missing_ok=True)
    for request in arrived.values():
        store_request(kit, request)
    absent = [label for label in kit.federation.sites if label not in everything]
    if newest is None and absent:
        return absent, None
    return absent, propose(kit, today=today)


def propose(
    kit: CoordinatorKit,
    *,
    revoke: Iterable[str] = (),
    strikes: Iterable[int] = (),
    renew: bool = False,
    today: date | None = None,
) -> SignedRoster:
    """Puts the next epoch together from what is known now, and writes it for the members to sign.

    Args:
        kit: the coordinator's; its federation.toml has the rules.
        revoke: labels of members whose key counts no longer.
        strikes: indices of members that are proven to have cheated.
        renew: let all members' keys count for another `days.identity` from today.
        today: the date, UTC.

    Returns:
        The new epoch; the newest one as it is, where nothing has changed.

    Raises:
        ConfigError: not a member, rules that these members cannot have, or an epoch that is being signed now.
    """
    newest, base = proposal(kit), in_force(kit)
    expiry = (today or datetime.now(UTC).date()) + timedelta(days=kit.federation.days.identity)
    revoked, struck, known = set[int](), set[int](), tuple[RosterMember, ...]()
    if newest and base:  # what an epoch that is not complete yet was to change, the next try changes too
        revoked, struck = {*newest.roster.revoked}, {*newest.roster.strikes, *strikes}
        known = newest.roster.enrolled[: len(base.roster.enrolled)]
    for label in revoke:
        revoked.add(_active_index(kit, base, label))
    if renew:
        known = tuple(e if e.member.index in revoked else replace(e, expiry=expiry) for e in known)
    before = {entry.member.key: entry.expiry for entry in (newest.roster.enrolled if newest else ())}
    enrolled = _enrolled(kit, known, revoked, before, expiry)
    roster = _roster(kit, base.roster if base else None, enrolled, revoked, struck)
    if newest and _same(roster, newest.roster):
        return newest
    if newest and newest != base and newest.signatures:
        raise ConfigError(
            f"epoch {newest.roster.epoch} is being signed: {_problem(kit, newest)}", source=kit.folder
        )
    if base:
        make_folder(kit.folder / "rosters")
        write_file(kit.folder / "rosters" / f"{base.roster.epoch}.json", base.encode())
    signed = SignedRoster(roster)
    write_file(kit.folder / "roster.json", signed.encode())
    return signed


def proven_cheats(kit: CoordinatorKit) -> frozenset[int]:
    """Indices that the runs' secure sums have proven to cheat, from what `server.sums` keeps.

    Raises:
        StorageError: a file is damaged.
    """
    found: set[int] = set()
    for path in sorted(kit.folder.glob("state/runs/*/sums.json")):
        try:
            found.update(int(index) for index in json.loads(path.read_bytes())["strikes"])
        except (OSError, ValueError, TypeError, KeyError):
            raise StorageError(f"{path}: missing or damaged") from None
    return frozenset(found)


def warnings(kit: CoordinatorKit, today: date) -> list[str]:
    """A line for each certificate and each identity that ends soon, or has ended."""
    lines = certificate_warnings(kit, today)
    signed = in_force(kit)
    for index in sorted(signed.roster.active if signed else ()):
        assert signed is not None
        entry = signed.roster.enrolled[index]
        if (days := (entry.expiry - today).days) < WARNING_DAYS:
            state = f"expires in {days} days" if days >= 0 else f"expired {-days} days ago"
            lines.append(f"the identity of {entry.member.label} {state}: tacit provision renew --identities")
    return lines


def _roster(
    kit: CoordinatorKit,
    base: Roster | None,
    enrolled: tuple[RosterMember, ...],
    revoked: set[int],
    strikes: set[int],
) -> Roster:
    rules = kit.federation.rules
    usable = len(enrolled) - len(revoked | strikes)
    try:
        bounds = Rules(rules.max_corrupt, rules.max_dropouts, 1)
        fewest = rules.min_clients or bounds.fewest(usable)
        return Roster(
            epoch=base.epoch + 1 if base else 1,
            previous=base.digest() if base else NO_ROSTER,
            enrolled=enrolled,
            revoked=frozenset(revoked),
            strikes=frozenset(strikes),
            server_key=kit.server_identity().public,
            root_key=kit.root_key,
            n_min=fewest,
            n_max=rules.max_clients or max(usable, fewest),
            max_corrupt=rules.max_corrupt,
            max_dropouts=bounds.parameters(fewest).max_dropouts,
            model_schemas=frozenset(bytes.fromhex(digest) for digest in rules.model_schemas),
            bundles=frozenset({*(bytes.fromhex(digest) for digest in rules.bundles), _bundle()}),
            clip=rules.clip,
            noise=rules.noise,
            rounds=rules.rounds,
            epsilon_record=rules.epsilon_record,
            epsilon_client=rules.epsilon_client,
        )
    except (ConfigError, ProtocolError) as error:
        raise ConfigError(
            f"no roster of these {usable} members: {error}",
            source=kit.folder / "federation.toml",
            key="rules",
        ) from None


def _enrolled(
    kit: CoordinatorKit,
    known: tuple[RosterMember, ...],
    revoked: set[int],
    before: Mapping[bytes, date],
    expiry: date,
) -> tuple[RosterMember, ...]:
    """The members of the epoch that counts, with the rows that they declare now, and who is new.

    Args:
        kit: has the requests.
        known: members of the epoch that counts.
        revoked: indices of those whose key counts no longer.
        before: what an earlier try of this epoch said of a key's last day.
        expiry: a new key's last day.
    """
    entries, requests = list(known), stored_requests(kit)
    index_of = {entry.member.key: entry.member.index for entry in known}
    for label in kit.federation.sites:
        request = requests.get(label)
        if request is None:
            continue
        index = index_of.get(request.key)
        if index is None:
            member = Member(len(entries), label, request.key)
            entries.append(RosterMember(member, before.get(request.key, expiry), request.num_rows))
        elif index not in revoked:
            entries[index] = replace(entries[index], num_rows=request.num_rows)
    return tuple(entries)


def _active_index(kit: CoordinatorKit, base: SignedRoster | None, label: str) -> int:
    for index in sorted(base.roster.active if base else ()):
        if base and base.roster.members[index].label == label:
            return index
    raise ConfigError(f"{label!r} is no member of an epoch that counts", source=kit.folder / "roster.json")


def _same(roster: Roster, other: Roster) -> bool:
    """Whether two epochs say the same of everything but their place."""
    return replace(roster, epoch=other.epoch, previous=other.previous) == other


def _revoked_keys(newest: SignedRoster | None) -> set[bytes]:
    return {newest.roster.members[index].key for index in newest.roster.revoked} if newest else set()


def _signed_keys(kit: CoordinatorKit, newest: SignedRoster | None) -> set[bytes]:
    """Identity keys in the epoch that counts, and in the newest if somebody has signed it."""
    signed = [in_force(kit), newest if newest and newest.signatures else None]
    return {member.key for each in signed if each for member in each.roster.members}


def _bundle() -> bytes:
    """Hash of the one bundle that Tacit runs."""
    from server import bundle

    with tempfile.TemporaryDirectory() as folder:
        return bytes.fromhex(bundle.fab_hash(bundle.write(Path(folder) / "bundle")))


def _problem(kit: CoordinatorKit, signed: SignedRoster) -> str:
    """Why an epoch does not count yet; empty if it does."""
    before = _before(kit, signed)
    try:
        if before is None:
            check_first(signed, compared=signed.roster.digest())  # the sites compare it; here it is our own
        else:
            check_next(before.roster, signed)
    except ProtocolError as error:
        return _absent(signed) or str(error)
    return ""


def _absent(signed: SignedRoster) -> str:
    """Who has not signed, by label."""
    roster = signed.roster
    if roster.root_key:
        return "" if ROOT in signed.signatures else "the root has not signed"
    labels = [roster.members[index].label for index in sorted(roster.voters - set(signed.signatures))]
    return f"not signed by {', '.join(labels)}" if labels else ""


def _before(kit: CoordinatorKit, signed: SignedRoster) -> SignedRoster | None:
    """The epoch before, which counts.

    Raises:
        StorageError: it is missing or damaged.
    """
    if signed.roster.epoch == 1:
        return None
    path = kit.folder / "rosters" / f"{signed.roster.epoch - 1}.json"
    before = _read(path)
    if before is None or before.roster.digest() != signed.roster.previous:
        raise StorageError(f"{path}: missing, or not the epoch before roster.json")
    return before


def _signing_root(kit: CoordinatorKit, roster: Roster) -> bytes:
    before = _before(kit, SignedRoster(roster))
    return before.roster.root_key if before else roster.root_key


def _read(path: Path) -> SignedRoster | None:
    try:
        return SignedRoster.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ProtocolError) as error:
        raise StorageError(f"{path}: {error}") from None
