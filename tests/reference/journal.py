"""A site's journal (section 11 of `docs/protocol.md`), as text in memory."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.reference.canonical import data, h, numbers, require, text


def line_of(event: dict[str, Any], sequence: int, previous: str, torn: str) -> tuple[str, str]:
    """One record and its hash."""
    record = {**event, "sequence": sequence, "previous": previous, "torn": torn}
    content = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return content[:-1] + f',"hash":"{digest}"}}', digest


def survivors_digest(ctx2: bytes, survivors: list[int]) -> bytes:
    """What is journalled of U3."""
    return h("survivors", data(ctx2), numbers(survivors))


class Journal:
    """Events in order, with the rules of the table."""

    def __init__(self) -> None:
        self.content = b""  # the file
        self.sequence, self.torn, self.num_torn = 0, b"", 0
        self.hash = "0" * 64
        self.seen: dict[str, int] = {}
        self.counter = 0
        self.newest_receipt = 0, bytes(32)
        self.newest: dict[str, list[Any]] = {}
        self.masked_in: dict[str, str] = {}
        self.signed_for: dict[str, str] = {}

    def write(self, event: dict[str, Any]) -> None:
        """Add a record."""
        torn = hashlib.sha256(self.torn).hexdigest() if self.torn else ""
        self.sequence += 1
        line, self.hash = line_of(event, self.sequence, self.hash, torn)
        self.content += (b"\x1e" if self.torn else b"") + line.encode() + b"\n"
        self.torn = b""

    def tear(self, written: bytes) -> None:
        """A write that was cut short, found when the journal is opened again."""
        self.content, self.torn = self.content + written, written
        self.num_torn += 1
        self.counter += 1
        for event in self.newest.values():
            ctx2 = self.masked_in.setdefault(event[5], "lost")
            self.signed_for.setdefault(ctx2, "lost")
        self.write({"lost": self.num_torn})

    @property
    def head(self) -> str:
        """The file beside it."""
        return f"{self.sequence:020d} {self.hash}\n"

    def answered(self, run: str, round_: int, attempt: int, model: bytes, config: bytes, ctx0: bytes) -> None:
        """Before M0 is answered."""
        require(1 <= attempt <= 3, "attempt")
        event = [run, round_, attempt, model.hex(), config.hex(), ctx0.hex()]
        if before := self.newest.get(run):
            require(round_ >= before[1], "round")
            if round_ == before[1]:
                require(attempt > before[2], "attempt")
                require(event[3] == before[3], "model")
                require(event[4] == before[4], "config")
        self.counter += 1
        self.newest[run] = event
        self.write({"answered": event})

    def site_head(self, run: str) -> bytes:
        """What an entry shows of the journal."""
        return h("site-head", data(bytes.fromhex(self.hash)), text(run))

    def peers(self, own: int, counters: dict[int, int]) -> None:
        """Before M1 is answered."""
        require(own in counters, "own-entry")
        shown = {str(i): counter for i, counter in counters.items()}
        require(all(counter > self.seen.get(i, -1) for i, counter in shown.items()), "peer-counter")
        self.seen |= shown
        self.write({"peers": shown})

    def receipts(self, heads: dict[int, bytes]) -> None:
        """Before M0 is answered: the chain of receipts as far as it is known."""
        seen, digest = self.newest_receipt
        newest = max(heads)
        require(newest >= seen and heads.get(seen, digest) == digest, "receipts")
        if newest > seen:
            self.newest_receipt = newest, heads[newest]
            self.write({"receipts": [newest, heads[newest].hex()]})

    def masked(self, ctx0: bytes, ctx2: bytes) -> None:
        """Before y exists."""
        require(ctx0.hex() in (event[5] for event in self.newest.values()), "context")
        require(ctx0.hex() not in self.masked_in, "masked")
        self.masked_in[ctx0.hex()] = ctx2.hex()
        self.write({"masked": [ctx0.hex(), ctx2.hex()]})

    def signed(self, ctx2: bytes, survivors: list[int]) -> None:
        """Before U3 is signed, or opened for; the same set again is not written again."""
        newest = [self.masked_in.get(event[5]) for event in self.newest.values()]
        require(ctx2.hex() in newest, "context")
        digest = survivors_digest(ctx2, survivors).hex()
        require(self.signed_for.get(ctx2.hex(), digest) == digest, "survivors")
        if ctx2.hex() not in self.signed_for:
            self.signed_for[ctx2.hex()] = digest
            self.write({"signed": [ctx2.hex(), digest]})
