"""What a client remembers of its secure sums, so that neither a restart nor a lie makes it answer twice.

One journal belongs to one client in one federation. Each event is one record of a hash chain, which is on the
disk before the call returns, and thus before the answer that follows from it leaves. Of each run only the
newest attempt is open: an older one is neither masked nor signed any more.

Guarantees:
    At most 3 attempts of a round are answered, all with one model and configuration; no round goes back.
    For one invitation there is one set of clients that mask, and for that one set of survivors that is signed.
    A peer whose counter goes back is refused, and so is a server whose receipts do.
    All of this holds over restarts, a kill at any moment and a record cut short, whose attempt is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from tacit.errors import ProtocolError, StorageError
from tacit.privacy import chain
from tacit.privacy.chain_file import ChainFile, Closing, Head
from tacit.secagg.encoding import HASH_BYTES, Writer

MAX_ATTEMPTS: Final = 3

_NO_RECEIPT: Final = "0" * 2 * HASH_BYTES
_LOST: Final = "lost"  # in place of a hash: a record was cut short, so it may have been this one


@dataclass(frozen=True)
class Attempt:
    """The newest attempt of a run that was answered.

    Attributes:
        round, attempt: their numbers.
        model, config, ctx0: of its invitation, hexadecimal.
        ctx2: the context it masked in, hexadecimal; empty = not yet.
        survivors: digest of the set it signed, hexadecimal; empty = none yet.
    """

    round: int
    attempt: int
    model: str
    config: str
    ctx0: str
    ctx2: str = ""
    survivors: str = ""


class Store(Protocol):
    """Where records go. `append` returns when the record is safe."""

    head: Head
    num_torn: int

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one record and returns it with its links, or raises `StorageError`."""

    def close(self) -> None:
        """Gives the store free."""


class Journal(Closing):
    """The rules, over any store. Use `FileJournal` or, where nothing has to last, `MemoryJournal`.

    Every method checks, then writes, then returns; a refusal or a failed write changes nothing.
    """

    def __init__(self, store: Store, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._store = store
        self._runs: dict[str, Attempt] = {}
        self._peers: dict[str, int] = {}  # counter by index, which JSON makes a text
        self._receipts = (0, _NO_RECEIPT)
        self._num_answered = self._num_lost = 0
        for record in records:
            self._apply(record)
        if store.num_torn > self._num_lost:
            self._write({"lost": store.num_torn})

    def close(self) -> None:
        """Gives the journal free for other processes. Closing twice is allowed."""
        self._store.close()

    @property
    def counter(self) -> int:
        """Attempts answered in this federation; a record cut short counts as one. What M0's answer names."""
        return self._num_answered + self._num_lost

    @property
    def head(self) -> Head:
        """Number of records and hash of the last: a witness against old copies of the file."""
        return self._store.head

    @property
    def runs(self) -> Mapping[str, Attempt]:
        """The newest attempt of each run, for people to read."""
        return dict(self._runs)

    def site_head(self, run: str) -> bytes:
        """What M0's answer names as this client's own history: head of the journal and run, hashed; 32 bytes."""
        return Writer("site-head").data(bytes.fromhex(self._store.head.hash)).text(run).hash()

    def answered(self, run: str, round: int, attempt: int, model: bytes, config: bytes, ctx0: bytes) -> None:
        """Before M0 is answered. `counter` and `site_head` then speak of this attempt too.

        Args:
            run, round, attempt, model, config: as in the invitation.
            ctx0: its context.

        Raises:
            ProtocolError: "round", it goes back; "attempt", it was answered before, or is not within 1 to 3;
                "model" or "config", another attempt of this round had a different one.
        """
        if not 1 <= attempt <= MAX_ATTEMPTS:
            raise ProtocolError("attempt", f"a round has attempts 1 to {MAX_ATTEMPTS}, not {attempt}")
        hashes = [_hex(model), _hex(config), _hex(ctx0)]
        last = self._runs.get(run)
        if last is not None and round <= last.round:
            for refused, reason in (
                (round < last.round, "round"),
                (attempt <= last.attempt, "attempt"),
                (hashes[0] != last.model, "model"),
                (hashes[1] != last.config, "config"),
            ):
                if refused:
                    raise ProtocolError(
                        reason, f"round {round}.{attempt} of {run!r} after {last.round}.{last.attempt}"
                    )
        self._write({"answered": [run, round, attempt, *hashes]})

    def see_peers(self, peers: Mapping[int, int]) -> None:
        """Before M1 is answered: what the entries of U1, this client's own among them, say of their journals.

        Each attempt that a peer answers moves its counter on, so that a counter seen before means an old copy
        of its journal. Nor does the same list come again: a client that has lost what it dealt must not deal anew,
        because a key that seals shares is good for one row. (Two runs of one federation at the same time would
        get in each other's way here.)

        Args:
            peers: counter by roster index; signatures already checked.

        Raises:
            ProtocolError: "peer-counter".
        """
        counters = {str(index): counter for index, counter in peers.items()}
        for member, counter in counters.items():
            if counter <= self._peers.get(member, -1):
                raise ProtocolError("peer-counter", f"member {member}: {counter} after {self._peers[member]}")
        self._write({"peers": counters})

    def see_receipts(self, heads: Mapping[int, bytes]) -> None:
        """Before M0 is answered: what the server's receipts say, all signatures and links already checked.

        A chain that is shorter than it was, or another one, is that of a server that was put back from a backup,
        or of one that shows two.

        Args:
            heads: digest of the chain at each number that is known; the largest number is its end.

        Raises:
            ProtocolError: "receipts".
        """
        number, digest = self._receipts
        newest = max(heads)
        if newest < number or _hex(heads.get(number, bytes.fromhex(digest))) != digest:
            raise ProtocolError(
                "receipts", f"{newest} receipts that do not continue the {number} seen before"
            )
        if newest > number:
            self._write({"receipts": [newest, _hex(heads[newest])]})

    def has_masked(self, ctx0: bytes, ctx2: bytes) -> bool:
        """Whether `masked` was called for this attempt and this context.

        Raises:
            ProtocolError: "context", `ctx0` is not the newest attempt of a run; "masked", it has masked in another
                context, or may have.
        """
        attempt = self._find("ctx0", ctx0)
        if attempt.ctx2 not in ("", _hex(ctx2)):
            raise ProtocolError("masked", "this attempt has masked in another context, or may have")
        return bool(attempt.ctx2)

    def masked(self, ctx0: bytes, ctx2: bytes) -> None:
        """Before y leaves and after it was kept, once for each attempt: y is never computed again.

        Raises:
            ProtocolError: "context", `ctx0` is not the newest attempt of a run; "masked", it has masked.
        """
        attempt = self._find("ctx0", ctx0)
        if attempt.ctx2:
            raise ProtocolError("masked", "this attempt has masked already, or may have")
        self._write({"masked": [attempt.ctx0, _hex(ctx2)]})

    def sign(self, ctx2: bytes, survivors: bytes) -> None:
        """Before the survivors of a context are signed, or shares opened for them; again only for the same set.

        Args:
            ctx2: the context, which this client has masked in.
            survivors: digest of U3, 32 bytes.

        Raises:
            ProtocolError: "context", it has not masked there, or a newer attempt was answered; "survivors", it
                has signed another set, or may have.
        """
        attempt, digest = self._find("ctx2", ctx2), _hex(survivors)
        if attempt.survivors not in ("", digest):
            raise ProtocolError("survivors", "another set of survivors was signed in this context, or may be")
        if not attempt.survivors:
            self._write({"signed": [attempt.ctx2, digest]})

    def _find(self, name: str, context: bytes) -> Attempt:
        for attempt in self._runs.values():
            if getattr(attempt, name) == _hex(context):
                return attempt
        raise ProtocolError("context", f"no newest attempt of a run has this {name}")

    def _write(self, fields: Mapping[str, Any]) -> None:
        self._store.append(fields)
        self._apply(fields)

    def _apply(self, record: Mapping[str, Any]) -> None:
        """What one record changes; the only way anything changes."""
        match record:
            case {"answered": [str(run), *rest]}:
                self._runs[run] = Attempt(*rest)
                self._num_answered += 1
            case {"peers": dict(counters)}:
                self._peers |= counters
            case {"receipts": [int(number), str(digest)]}:
                self._receipts = number, digest
            case {"masked": [str(ctx0), str(ctx2)]}:
                self._change(lambda attempt: attempt.ctx0 == ctx0, ctx2=ctx2)
            case {"signed": [str(ctx2), str(survivors)]}:
                self._change(lambda attempt: attempt.ctx2 == ctx2, survivors=survivors)
            case {"lost": int(num_torn)}:
                self._num_lost = num_torn
                self._change(lambda attempt: not attempt.survivors, survivors=_LOST)
                self._change(lambda attempt: not attempt.ctx2, ctx2=_LOST)
            case _:
                raise ValueError("an unknown record")

    def _change(self, which: Callable[[Attempt], bool], *, ctx2: str = "", survivors: str = "") -> None:
        for run, attempt in self._runs.items():
            if which(attempt):
                self._runs[run] = replace(
                    attempt, ctx2=ctx2 or attempt.ctx2, survivors=survivors or attempt.survivors
                )


class FileJournal(Journal):
    """A journal in a file. Made by `FileJournal.open`."""

    @classmethod
    def open(cls, path: Path, *, witness: tuple[int, str] | None = None, durable: bool = True) -> FileJournal:
        """Opens a journal, or creates it, for this process alone.

        Args:
            path: the file; it must not be accessible to other users, nor its folder.
            witness: the furthest `head` that somebody else has seen.
            durable: wait for the disk at each record. False is for simulations.

        Raises:
            StorageError: in use, accessible to others, damaged, or behind its head or witness.
        """
        file, records = ChainFile.open(path, witness=witness, durable=durable)
        try:
            return cls(file, records)
        except (TypeError, ValueError) as error:
            file.close()
            raise StorageError(f"{path}: not a journal of this version of Tacit: {error}") from None
        except BaseException:
            file.close()
            raise

    def reopen(self) -> bool:
        """Opens the closed journal again; False and still closed where the file has changed: see `ChainFile`."""
        assert isinstance(self._store, ChainFile)
        return self._store.reopen()


class MemoryJournal(Journal):
    """A journal that is gone with its process."""

    def __init__(self) -> None:
        super().__init__(_Memory())


class _Memory:
    """A store that keeps nothing but the head of the chain."""

    def __init__(self) -> None:
        self.head, self.num_torn = Head(0, chain.GENESIS), 0

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        _, record = chain.encode(fields, self.head.counter + 1, self.head.hash, b"")
        self.head = Head(record["sequence"], record["hash"])
        return record

    def close(self) -> None:
        pass


def _hex(digest: bytes) -> str:
    if len(digest) != HASH_BYTES:
        raise ValueError(f"a hash has {HASH_BYTES} bytes, not {len(digest)}")
    return digest.hex()
