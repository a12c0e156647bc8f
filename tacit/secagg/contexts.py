"""What a round is bound to: ctx0 the invitation, ctx1 the clients and their keys, ctx2 those that mask.

Both sides compute the contexts from what they hold themselves. A client that was shown another model,
configuration or list of peers computes another context: the shares that it deals do not open, and its masks cancel
with nobody's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, ProtocolError
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.graph import Graph
from tacit.secagg.keys import PUBLIC_KEY_BYTES, check_public
from tacit.secagg.members import Entry, check_distinct, check_increasing
from tacit.secagg.parameters import Parameters, Rules

NO_HEAD: Final = bytes(HASH_BYTES)
MAX_RUN: Final = 64  # characters of the id of a run


def check_run(run: str) -> None:
    """Whether a text may be the id of a run: 1 to 64 printable characters, which ledger and journal keep all of.

    Raises:
        ProtocolError: "run".
    """
    if not (0 < len(run) <= MAX_RUN and run.isprintable()):
        raise ProtocolError("run", f"the id of a run has 1 to {MAX_RUN} printable characters")


@dataclass(frozen=True)
class Invitation:
    """What ctx0 is made of, and the body of M0's request but for the model itself and the server's signature.

    A client takes `model`, `config` and `roster` from what it has computed, not from the message.

    Attributes:
        roster: digest of the signed roster, 32 bytes.
        run: Tacit's own id of the run.
        round: number of the round.
        attempt: number of the attempt within the round.
        model: `model_digest` of the global model, 32 bytes.
        config: `text_digest` of the experiment in canonical TOML, 32 bytes.
        length: d, coordinates of the whole vector.
        num_invited: how many clients are asked.
        rules: how parameters follow from the size of the cohort.
        server_pk: the server's X25519 key of this attempt, which the tags of the masked vectors are made under.
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
    server_pk: bytes
    receipt_head: bytes = NO_HEAD

    def ctx0(self) -> bytes:
        """The context of this attempt before anybody has answered."""
        return self.write(Writer("ctx0")).hash()

    @classmethod
    def read(cls, reader: Reader) -> Invitation:
        """The fields, without the label before them and the end after them.

        Raises:
            ProtocolError: these are not the canonical bytes of an invitation.
        """
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
            server_pk=reader.data(PUBLIC_KEY_BYTES),
            receipt_head=reader.data(HASH_BYTES),
        )

    def write(self, writer: Writer) -> Writer:
        """The fields alone."""
        writer.data(self.roster).text(self.run).number(self.round).number(self.attempt)
        writer.data(self.model).data(self.config).number(self.length).number(self.num_invited)
        self.rules.write(writer)
        return writer.data(self.server_pk).data(self.receipt_head)


def ctx1(ctx0: bytes, entries: Sequence[Entry], parameters: Parameters) -> bytes:
    """The context of the clients that sent keys: ctx0, every entry of U1, what follows from their number."""
    writer = Writer("ctx1").data(ctx0).number(len(entries))
    for entry in entries:
        entry.write(writer)
    parameters.write(writer)
    return writer.hash()


def ctx2(context1: bytes, masking: Sequence[int]) -> bytes:
    """The context of the clients that mask: ctx1 and the sorted U2."""
    return Writer("ctx2").data(context1).numbers(masking).hash()


@dataclass(frozen=True)
class Cohort:
    """U1 with everything that follows from it. Made by `cohort_of`, so already checked.

    Attributes:
        entries: U1 by roster index, in increasing order.
        parameters: the numbers of this cohort.
        ctx1: its context.
        graph: who deals shares to whom and masks with whom.
    """

    entries: Mapping[int, Entry]
    parameters: Parameters
    ctx1: bytes
    graph: Graph

    @property
    def fewest(self) -> int:
        """n - D_eff: the smallest U2 and U3."""
        return self.parameters.n - self.parameters.max_dropouts

    def ctx2(self, masking: Sequence[int]) -> bytes:
        """The context of U2, after checking it.

        Raises:
            ProtocolError: "order"; "unknown-member", not within U1; "cohort-size", fewer than n - D.
        """
        self.check(masking, self.entries)
        return ctx2(self.ctx1, masking)

    def check(self, members: Sequence[int], within: Collection[int]) -> None:
        """Refuses a set that is not increasing, not within another one, or smaller than n - D."""
        check_increasing(members)
        if not set(members) <= set(within):
            raise ProtocolError("unknown-member", "a set names a member that it cannot have")
        if len(members) < self.fewest:
            raise ProtocolError("cohort-size", f"only {len(members)} of {self.parameters.n} clients")


@lru_cache(maxsize=2)  # a simulation shows the same entries to every client
def cohort_of(invitation: Invitation, entries: tuple[Entry, ...]) -> Cohort:
    """Checks U1 against the invitation and derives what follows from it.

    Args:
        invitation: as this side computed it.
        entries: U1 in increasing order.

    Raises:
        ProtocolError: duplicates, a key that is no key, more clients than were invited or too few of them.
    """
    n, rules = len(entries), invitation.rules
    if not rules.fewest(invitation.num_invited) <= n <= invitation.num_invited:
        raise ProtocolError("cohort-size", f"{n} clients of {invitation.num_invited} invited")
    try:
        parameters = rules.parameters(n)
    except ConfigError as error:
        raise ProtocolError("cohort-size", error.reason) from None
    check_increasing([entry.index for entry in entries])
    check_distinct(entries)
    for entry in entries:
        check_public(entry.enc_pk)
        check_public(entry.mask_pk)
    context = ctx1(invitation.ctx0(), entries, parameters)
    by_index = {entry.index: entry for entry in entries}
    return Cohort(by_index, parameters, context, Graph.of(context, tuple(by_index), parameters))


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


def schema_digest(shapes: Mapping[str, Sequence[int]]) -> bytes:
    """Hash of what a roster lists of a model: name and shape of each array of floats of 32 bits, by name."""
    writer = Writer("model-schema").number(len(shapes))
    for name, shape in sorted(shapes.items()):
        writer.text(name).number(len(shape))
        for extent in shape:
            writer.number(extent)
    return writer.hash()


def text_digest(text: str) -> bytes:
    """Hash of a text, such as the experiment in canonical TOML."""
    return Writer("text").text(text).hash()
