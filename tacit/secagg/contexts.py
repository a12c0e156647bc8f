"""What a round is bound to: ctx0 the invitation, ctx1 the clients and their keys, ctx2 those that mask.

Both sides compute the contexts from what they hold themselves. A client that was shown another model,
configuration or list of peers computes another context, and its masks cancel with nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, ProtocolError
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.keys import check_public
from tacit.secagg.members import Entry, Member, check_distinct
from tacit.secagg.parameters import Parameters, Rules

NO_HEAD: Final = bytes(HASH_BYTES)


@dataclass(frozen=True)
class Invitation:
    """What ctx0 is made of, and the body of M0's request but for the model itself.

    A client takes `model`, `config` and `roster` from what it has computed, not from the message.

    Attributes:
        roster: `roster_digest` of the members, 32 bytes.
        run: Tacit's own id of the run.
        round: number of the round.
        attempt: number of the attempt within the round.
        model: `model_digest` of the global model, 32 bytes.
        config: `text_digest` of the experiment in canonical TOML, 32 bytes.
        length: d, coordinates of the whole vector.
        num_invited: how many clients are asked.
        rules: how parameters follow from the size of the cohort.
        receipt_head: head of the server's public chain of receipts, 32 bytes.
    """

    roster: bytes
    run: str
    round: int
    attempt: int
    model: bytes
    config: bytes
    length: int
    num_invited: int
    rules: Rules
    receipt_head: bytes = NO_HEAD

    def ctx0(self) -> bytes:
        """The context of this attempt before anybody has answered."""
        return self.write(Writer("ctx0")).hash()

    def encode(self) -> bytes:
        """Canonical bytes."""
        return self.write(Writer("M0/request")).finish()

    @classmethod
    def decode(cls, data: bytes) -> Invitation:
        """The reverse of `encode`.

        Raises:
            ProtocolError: these are not the canonical bytes of an invitation.
        """
        reader = Reader(data, "M0/request")
        invitation = cls.read(reader)
        reader.end()
        if invitation.rules.max_corrupt == 0:
            raise ProtocolError("rules", "an invitation must reckon with a corrupt member")
        return invitation

    @classmethod
    def read(cls, reader: Reader) -> Invitation:
        """The fields, without the label before them and the end after them."""
        return cls(
            roster=reader.data(HASH_BYTES),
            run=reader.text(),
            round=reader.number(),
            attempt=reader.number(),
            model=reader.data(HASH_BYTES),
            config=reader.data(HASH_BYTES),
            length=reader.number(),
            num_invited=reader.number(),
            rules=Rules.read(reader),
            receipt_head=reader.data(HASH_BYTES),
        )

    def write(self, writer: Writer) -> Writer:
        """The fields alone."""
        writer.data(self.roster).text(self.run).number(self.round).number(self.attempt)
        writer.data(self.model).data(self.config).number(self.length).number(self.num_invited)
        self.rules.write(writer)
        return writer.data(self.receipt_head)


def ctx1(ctx0: bytes, entries: Sequence[Entry], parameters: Parameters) -> bytes:
    """The context of the clients that sent keys: ctx0, every entry of U1, what follows from their number."""
    writer = Writer("ctx1").data(ctx0).number(len(entries))
    for entry in entries:
        entry.write(writer)
    parameters.write(writer)
    return writer.hash()


def ctx2(context1: bytes, masking: Sequence[int]) -> bytes:
    """The context of the clients that mask: ctx1 and the sorted U2."""
    writer = Writer("ctx2").data(context1).number(len(masking))
    for index in masking:
        writer.number(index)
    return writer.hash()


@dataclass(frozen=True)
class Cohort:
    """U1 and U2 with everything that follows from them. Made by `cohort_of`, so already checked.

    Attributes:
        entries: U1 by roster index.
        masking: U2, sorted.
        parameters: the numbers of this cohort.
        ctx1: context of U1.
        ctx2: context of U2.
    """

    entries: Mapping[int, Entry]
    masking: tuple[int, ...]
    parameters: Parameters
    ctx1: bytes
    ctx2: bytes


def cohort_of(invitation: Invitation, entries: Sequence[Entry], masking: tuple[int, ...]) -> Cohort:
    """Checks U1 and U2 against the invitation and derives their contexts.

    Args:
        invitation: as this side computed it.
        entries: U1 in increasing order.
        masking: U2 in increasing order.

    Raises:
        ProtocolError: duplicates, a key that is no key, more clients than were invited or too few of them,
            U2 not within U1.
    """
    n, rules = len(entries), invitation.rules
    if not rules.fewest(invitation.num_invited) <= n <= invitation.num_invited:
        raise ProtocolError("cohort-size", f"{n} clients of {invitation.num_invited} invited")
    try:
        parameters = rules.parameters(n)
    except ConfigError as error:
        raise ProtocolError("cohort-size", error.reason) from None
    by_index = {entry.index: entry for entry in entries}
    if not by_index.keys() >= set(masking):
        raise ProtocolError("unknown-member", "a client is to mask that sent no keys")
    if len(masking) < n - parameters.max_dropouts:
        raise ProtocolError("cohort-size", f"only {len(masking)} of {n} clients are to mask")
    check_distinct(entries)
    for entry in entries:
        check_public(entry.enc_pk)
        check_public(entry.mask_pk)
    context1 = ctx1(invitation.ctx0(), entries, parameters)
    return Cohort(by_index, masking, parameters, context1, ctx2(context1, masking))


def model_digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Hash of a model: names, dtypes, shapes and little-endian bytes of its arrays, in their order."""
    writer = Writer("model").number(len(arrays))
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        writer.text(name).text(little.dtype.str).number(array.ndim)
        for extent in array.shape:
            writer.number(extent)
        writer.data(np.ascontiguousarray(little).tobytes())
    return writer.hash()


def roster_digest(members: Iterable[Member]) -> bytes:
    """Hash of a list of members. Nobody has signed it yet: that comes with the roster."""
    ordered = sorted(members)
    writer = Writer("roster").number(len(ordered))
    for member in ordered:
        writer.number(member.index).text(member.label)
    return writer.hash()


def text_digest(text: str) -> bytes:
    """Hash of a text, such as the experiment in canonical TOML."""
    return Writer("text").text(text).hash()
