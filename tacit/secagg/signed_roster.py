"""Who has to sign a roster before it counts, and what a client remembers of it.

A roster is never believed because the coordinator shows it. The first epoch is signed by every member, after
each has compared the printed digest with the others. Each later one is signed by more than (N + c) / 2 of the N
members of the epoch before that are not revoked: two such sets have more than c members in common, so one of
them is honest and has not signed two rosters with one number. Where a roster names an offline root key, its
holder signs in place of the members, and is trusted. A site that joins later begins with an epoch whose digest
people have compared.

Guarantees:
    An epoch that is not signed as above, goes back, or forgets or replaces a member is refused.
    The coordinator's key never signs a roster.
    A client that has seen an epoch refuses every other with that number or a smaller one, after a restart too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tacit.errors import ProtocolError, StorageError
from tacit.privacy.chain_file import ChainFile, Closing
from tacit.secagg.identity import Identity, readable, verify
from tacit.secagg.members import SERVER
from tacit.secagg.roster import Roster

ROOT: Final = SERVER - 1  # who an offline root signs as

_LABEL: Final = "roster"


@dataclass(frozen=True)
class SignedRoster:
    """A roster and the signatures under it, checked only by `check_first` and `check_next`.

    Attributes:
        roster: the epoch.
        signatures: 64 bytes by index of the signer, or `ROOT`.
    """

    roster: Roster
    signatures: Mapping[int, bytes] = field(default_factory=dict)

    def sign(self, identity: Identity) -> SignedRoster:
        """The same with one more signature: the member's that holds `identity`, else the root's.

        Whoever signs has compared `readable(roster.digest())` with the other signers before.
        """
        keys = {member.key: member.index for member in self.roster.members}
        index = keys.get(identity.public, ROOT)
        signature = identity.sign(_LABEL, self.roster.previous, index, self.roster.digest())
        return replace(self, signatures={**self.signatures, index: signature})

    def merge(self, other: SignedRoster) -> SignedRoster:
        """The signatures of two copies of one roster.

        Raises:
            ProtocolError: "roster", these are two rosters.
        """
        if self.roster != other.roster:
            raise ProtocolError("roster", "signatures of different rosters")
        return replace(self, signatures={**self.signatures, **other.signatures})

    def encode(self) -> bytes:
        """The file: JSON that people can read, around the canonical bytes that are signed."""
        content = {
            "tacit_roster": 1,
            "digest": readable(self.roster.digest()),
            "roster": _shown(self.roster),
            "canonical": self.roster.encode().hex(),
            "signatures": {str(index): value.hex() for index, value in sorted(self.signatures.items())},
        }
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> SignedRoster:
        """The reverse of `encode`; line ends of Windows are allowed.

        What people read is what was signed: only `canonical` and `signatures` are taken from the file, and the
        file has to be what they are shown as, byte for byte.

        Raises:
            ProtocolError: "roster-file", or as `Roster.decode`.
        """
        try:
            content = json.loads(data)
            canonical = bytes.fromhex(content["canonical"])
            signatures = {int(key): bytes.fromhex(value) for key, value in content["signatures"].items()}
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            raise ProtocolError("roster-file", "this is not a roster file") from None
        signed = cls(Roster.decode(canonical), signatures)
        if signed.encode() != data.replace(b"\r\n", b"\n"):
            raise ProtocolError("roster-file", "the file does not show what was signed")
        return signed


def check_first(signed: SignedRoster, *, compared: bytes = b"") -> None:
    """Whether the first epoch counts: every member has signed it.

    Args:
        signed: the roster.
        compared: the digest that people have compared, 32 bytes. Needed only where an offline root signs,
            because nothing else then ties the root's key to this federation.

    Raises:
        ProtocolError: "roster-epoch" or "roster-signature".
    """
    roster = signed.roster
    if roster.epoch != 1:
        raise ProtocolError("roster-epoch", f"epoch {roster.epoch} needs the one before it")
    signers = checked_signers(signed, roster.root_key)
    if roster.root_key:
        if ROOT not in signers or compared != roster.digest():
            raise ProtocolError("roster-signature", "the root has not signed, or its digest was not compared")
    elif missing := roster.voters - signers:
        raise ProtocolError("roster-signature", f"members {sorted(missing)} have not signed")


def check_next(before: Roster, signed: SignedRoster) -> None:
    """Whether an epoch counts as the one after `before`, which counts already.

    Raises:
        ProtocolError: "roster-epoch", it does not follow; "roster", it replaces members or makes a coordinator
            one; "revoked", it takes a revoked key back; "roster-signature", too few have signed, or one
            signature is wrong.
    """
    after = signed.roster
    if (after.epoch, after.previous) != (before.epoch + 1, before.digest()):
        raise ProtocolError("roster-epoch", f"epoch {after.epoch} does not follow this epoch {before.epoch}")
    if after.members[: len(before.members)] != before.members:
        raise ProtocolError("roster", "a member is missing or has another label or key")
    if before.server_key in (after.root_key, *(member.key for member in after.members)):
        raise ProtocolError("roster", "the coordinator's key signs no roster")
    if not before.revoked <= after.revoked:
        raise ProtocolError("revoked", "a key that was revoked does not come back")
    signers = checked_signers(signed, before.root_key)
    if before.root_key:
        if ROOT not in signers:
            raise ProtocolError("roster-signature", "the root has not signed")
        return
    enough = num_signers(before)
    if len(signers & before.voters) < enough:
        raise ProtocolError(
            "roster-signature",
            f"{len(signers & before.voters)} members of epoch {before.epoch} have signed; {enough} must",
        )


def num_signers(before: Roster) -> int:
    """How many members of an epoch have to sign the one after it: more than (N + c) / 2."""
    return (len(before.voters) + before.max_corrupt) // 2 + 1


def check_joining(signed: SignedRoster, *, compared: bytes) -> None:
    """Whether a site that joins in a later epoch, and so has seen none before, may begin with this one.

    It cannot check the epochs before. What ties this one to the federation is that people have compared its
    digest with members whose nodes have accepted it; c + 2 signatures, one of them its own, only show that an
    honest member means it.

    Args:
        signed: the roster, not the first.
        compared: the digest that people have compared, 32 bytes.

    Raises:
        ProtocolError: "roster-epoch", this is the first, or the digest is another; "roster-signature".
    """
    roster = signed.roster
    if roster.epoch == 1 or compared != roster.digest():
        raise ProtocolError(
            "roster-epoch", f"epoch {roster.epoch} needs the one before it, or its digest compared"
        )
    signers = checked_signers(signed, roster.root_key)
    if roster.root_key:
        if ROOT not in signers:
            raise ProtocolError("roster-signature", "the root has not signed this epoch")
    elif len(signers & roster.voters) < roster.max_corrupt + 2:
        raise ProtocolError("roster-signature", f"{len(signers & roster.voters)} members have signed")


class RosterFile(Closing):
    """What a client keeps: every epoch that it has accepted, the last of which counts. Made by `open`."""

    def __init__(self, file: ChainFile, latest: SignedRoster | None) -> None:
        self._file, self._latest = file, latest

    @classmethod
    def open(cls, path: Path, *, durable: bool = True) -> RosterFile:
        """Opens the file, or creates it, for this process alone.

        Raises:
            StorageError: in use, accessible to others, damaged, or an old copy of itself.
        """
        file, records = ChainFile.open(path, durable=durable)
        try:
            return cls(file, _stored(records[-1]) if records else None)
        except (AttributeError, KeyError, TypeError, ValueError, ProtocolError):
            file.close()
            raise StorageError(f"{path}: not a roster file of this version of Tacit") from None

    def close(self) -> None:
        """Gives the file free for other processes. Closing twice is allowed."""
        self._file.close()

    @property
    def signed(self) -> SignedRoster | None:
        """The newest epoch with its signatures, if any was accepted."""
        return self._latest

    @property
    def roster(self) -> Roster:
        """The newest epoch.

        Raises:
            ProtocolError: "roster", none was accepted yet.
        """
        if self._latest is None:
            raise ProtocolError("roster", "this site has not accepted a roster yet")
        return self._latest.roster

    def accept(self, signed: SignedRoster, own_key: bytes, *, compared: bytes = b"") -> Roster:
        """Takes the next epoch; the one that counts already is taken again without effect.

        An epoch that revokes this site itself is taken too: it must not fall back to the one before.

        Args:
            signed: the roster.
            own_key: this site's identity key, which the roster must have.
            compared: as in `check_first`; as in `check_joining` where the site's first epoch is a later one.

        Raises:
            ProtocolError: "roster-epoch", going back, a second roster with one number, or one left out;
                "unknown-member", this site is not in it; or as `check_first`, `check_joining`, `check_next`.
            StorageError: it could not be written.
        """
        signed.roster.index_of(own_key)
        if self._latest is None and compared and signed.roster.epoch > 1:
            check_joining(signed, compared=compared)
        elif self._latest is None:
            check_first(signed, compared=compared)
        elif signed.roster == self._latest.roster:
            return self._latest.roster
        else:
            check_next(self._latest.roster, signed)
        signatures = {str(index): value.hex() for index, value in signed.signatures.items()}
        self._file.append({"roster": signed.roster.encode().hex(), "signatures": signatures})
        self._latest = signed
        return signed.roster


def checked_signers(signed: SignedRoster, root_key: bytes) -> set[int]:
    """Everybody whose signature is under the roster; one that does not verify spoils the whole.

    Args:
        signed: the roster.
        root_key: of the offline root that may sign it: the epoch's before, in the first its own; empty = none.

    Raises:
        ProtocolError: "roster-signature".
    """
    roster = signed.roster
    for index, signature in signed.signatures.items():
        key = root_key if index == ROOT else b""
        if 0 <= index < len(roster.members):
            key = roster.members[index].key
        if not key:
            raise ProtocolError("roster-signature", f"{index} is nobody who signs")
        try:
            verify(key, signature, _LABEL, roster.previous, index, roster.digest())
        except ProtocolError:
            raise ProtocolError("roster-signature", f"the signature of {index} is wrong") from None
    return set(signed.signatures)


def _shown(roster: Roster) -> dict[str, object]:
    """A roster as people read it. For the eye alone: nothing is read back from it."""
    members = [
        {
            "index": entry.member.index,
            "label": entry.member.label,
            "key": entry.member.key.hex(),
            "expires": entry.expiry.isoformat(),
            "rows": entry.num_rows,
            "revoked": entry.member.index in roster.revoked,
            "struck": entry.member.index in roster.strikes,
        }
        for entry in roster.enrolled
    ]
    return {
        "epoch": roster.epoch,
        "previous": roster.previous.hex(),
        "members": members,
        "server_key": roster.server_key.hex(),
        "root_key": roster.root_key.hex(),
        "clients": [roster.n_min, roster.n_max],
        "max_corrupt": roster.max_corrupt,
        "max_dropouts": roster.max_dropouts,
        "model_schemas": sorted(digest.hex() for digest in roster.model_schemas),
        "bundles": sorted(digest.hex() for digest in roster.bundles),
        "clip": [x + 0.0 for x in roster.clip],  # as canonical bytes: a float, and no negative zero
        "noise": [x + 0.0 for x in roster.noise],
        "rounds": list(roster.rounds),
        "epsilon_record": roster.epsilon_record and float(roster.epsilon_record),
        "epsilon_client": roster.epsilon_client and float(roster.epsilon_client),
    }


def _stored(record: Mapping[str, object]) -> SignedRoster:
    """The roster of one record of the file; any error if it is none."""
    signatures = record["signatures"]
    if not isinstance(signatures, dict):
        raise TypeError("signatures")
    return SignedRoster(
        Roster.decode(bytes.fromhex(str(record["roster"]))),
        {int(index): bytes.fromhex(value) for index, value in signatures.items()},
    )
