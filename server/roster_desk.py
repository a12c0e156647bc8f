"""`GET` and `POST /tacit/roster`: the coordinator shows the roster that is proposed and collects signatures under it.

It cannot sign and does not judge: whether a roster counts is decided at each site, by `check_first` and `check_next`.

Guarantees:
    A roster is shown to holders of a key in it only.
    A file of signatures is kept only if each verifies under this roster; none is ever taken away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tacit.durable import write_file
from tacit.errors import ProtocolError, StorageError
from tacit.secagg.membership import asked_epoch, check_member_header
from tacit.secagg.signed_roster import SignedRoster, checked_signers

_LIMIT, _LIMIT_EACH = 64 << 10, 2 << 10
_NONE: Final = (404, b"no roster\n")
_STRANGER: Final = (403, b"not a member\n")
_OTHER: Final = (409, b"another roster\n")
_MALFORMED: Final = (400, b"not a roster\n")
_WRONG: Final = (403, b"wrong signature\n")
_UNREADABLE: Final = (503, b"roster unreadable\n")


class RosterDesk:
    """The desk over the coordinator's `roster.json`, which other commands may replace at any time.

    Args:
        path: the file; the epochs before it are beside it, `rosters/EPOCH.json`.
        now: the time, in seconds since 1970, UTC.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path, self._now = path, now
        self._stamp: tuple[int, ...] = ()
        self._known: SignedRoster | None = None

    def limit(self, method: bytes) -> int:
        """The longest body: none of `GET`; of `POST` a roster of as many members with all signatures."""
        if method == b"GET":
            return 0
        try:
            signed = self._read()
        except (OSError, ProtocolError):
            signed = None
        return _LIMIT + _LIMIT_EACH * (len(signed.roster.members) if signed else 0)

    def answer(self, method: bytes, member: str, body: bytes) -> tuple[int, bytes]:
        """Status and body.

        Args:
            method: `GET` or `POST`.
            member: the header `tacit-member`, which `GET` needs.
            body: of `POST`: a roster file with at least one's own signature.
        """
        try:
            signed = self._read()
            if signed is None:
                return _NONE
            return self._show(signed, member) if method == b"GET" else self._collect(signed, body)
        except (OSError, ProtocolError, StorageError):
            return _UNREADABLE

    def _show(self, signed: SignedRoster, member: str) -> tuple[int, bytes]:
        try:
            check_member_header(member, signed.roster, self._now())
        except ProtocolError:
            return _STRANGER
        epoch = asked_epoch(member)
        if epoch in (0, signed.roster.epoch):
            return 200, signed.encode()
        earlier = self._earlier(epoch)
        return (200, earlier.encode()) if earlier else _NONE

    def _collect(self, signed: SignedRoster, body: bytes) -> tuple[int, bytes]:
        # Before anything is decoded: who does not know the roster costs us nothing but this.
        if signed.roster.encode().hex().encode() not in body:
            return _OTHER
        try:
            posted = SignedRoster.decode(body)
        except ProtocolError:
            return _MALFORMED
        if posted.roster != signed.roster:
            return _OTHER
        before = self._earlier(signed.roster.epoch - 1)
        try:
            checked_signers(posted, before.roster.root_key if before else signed.roster.root_key)
        except ProtocolError:
            return _WRONG
        if not posted.signatures.keys() <= signed.signatures.keys():
            merged = posted.merge(signed)
            if self._read() is not signed:  # a new epoch has come in between
                return _OTHER
            write_file(self._path, merged.encode())
        return 200, b""

    def _earlier(self, epoch: int) -> SignedRoster | None:
        try:
            return SignedRoster.decode((self._path.parent / "rosters" / f"{epoch}.json").read_bytes())
        except FileNotFoundError:
            return None

    def _read(self) -> SignedRoster | None:
        """What the file says now; the same object for as long as the file is the same."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._known = SignedRoster.decode(self._path.read_bytes())
                self._stamp = stamp
        except FileNotFoundError:
            self._stamp, self._known = (), None
        return self._known
