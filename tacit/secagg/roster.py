"""Who belongs to a federation and what its members have agreed on. Who signs it: `signed_roster`.

Members keep their index for ever, because shares and strikes name it: a roster only grows, and who leaves is
revoked.

Guarantees:
    Two rosters are equal exactly if their bytes are.
    A roster whose numbers leave no threshold, or fewer than two honest vectors in a sum, does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from math import inf
from typing import Final, TypeVar

from tacit.errors import ProtocolError
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.identity import IDENTITY_BYTES, check_identity
from tacit.secagg.members import Member, check_increasing

MAX_MEMBERS: Final = 2**16
NO_ROSTER: Final = bytes(HASH_BYTES)  # what the first epoch names as the one before

_MAX_NUMBER: Final = 2**48
_Item = TypeVar("_Item", int, bytes)


@dataclass(frozen=True)
class RosterMember:
    """A member with what was declared at its enrolment.

    Attributes:
        member: index, label and identity key.
        expiry: the last day on which the key counts, UTC.
        num_rows: declared size of its data set.
    """

    member: Member
    expiry: date
    num_rows: int


@dataclass(frozen=True)
class Roster:
    """One epoch. Its constructor refuses what no federation may agree on, with `ProtocolError`.

    Attributes:
        epoch: its number, from 1.
        previous: digest of the epoch before; `NO_ROSTER` in the first.
        enrolled: all members ever, at the position of their index.
        revoked: indices whose key counts no longer.
        strikes: indices that no cohort may contain, because they were proven to cheat.
        server_key: the coordinator's identity key.
        root_key: an offline key that signs epochs in place of the members; empty = none.
        n_min, n_max: clients that send keys, fewest and most.
        max_corrupt: c, members of the whole roster that may collude with the coordinator.
        max_dropouts: D, clients that may vanish.
        model_schemas: digests of the model schemas that may be trained; empty = any.
        bundles: hashes of the app bundles that may be run.
        clip: smallest and largest clip norm.
        noise: smallest and largest noise multiplier.
        rounds: fewest and most rounds of a run.
        epsilon_record, epsilon_client: the most that a run may spend, by unit of privacy; None = no ceiling.
    """

    epoch: int
    enrolled: tuple[RosterMember, ...]
    server_key: bytes
    n_min: int
    n_max: int
    max_corrupt: int
    max_dropouts: int
    previous: bytes = NO_ROSTER
    revoked: frozenset[int] = frozenset()
    strikes: frozenset[int] = frozenset()
    root_key: bytes = b""
    model_schemas: frozenset[bytes] = frozenset()
    bundles: frozenset[bytes] = frozenset()
    clip: tuple[float, float] = (1e-6, 100.0)
    noise: tuple[float, float] = (0.0, 1000.0)
    rounds: tuple[int, int] = (1, 100_000)
    epsilon_record: float | None = None
    epsilon_client: float | None = None

    def __post_init__(self) -> None:
        for allowed, what in (*self._rules_of_members(), *self._rules_of_numbers()):
            if not allowed:
                raise ProtocolError("roster", what)
        for key in (*self._keys, self.server_key, *filter(None, [self.root_key])):
            check_identity(key)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """All members ever, in order of their index."""
        return tuple(entry.member for entry in self.enrolled)

    @property
    def active(self) -> frozenset[int]:
        """Indices that are not revoked."""
        return frozenset(range(len(self.enrolled))) - self.revoked

    @property
    def voters(self) -> frozenset[int]:
        """Whose signatures count under a roster, N of them: nobody who was revoked, or proven to cheat."""
        return self.active - self.strikes

    def check_member(self, index: int, today: date) -> RosterMember:
        """The entry of a member that may take part today.

        Raises:
            ProtocolError: "unknown-member", "revoked", "strike-list" or "expired".
        """
        if not 0 <= index < len(self.enrolled):
            raise ProtocolError("unknown-member", f"the roster has no member {index}")
        entry = self.enrolled[index]
        for refused, reason in (
            (index in self.revoked, "revoked"),
            (index in self.strikes, "strike-list"),
            (today > entry.expiry, "expired"),
        ):
            if refused:
                raise ProtocolError(reason, f"member {index}, {entry.member.label!r}")
        return entry

    def check_cohort(self, cohort: Sequence[int], today: date) -> None:
        """Whether these clients may make a sum together.

        Args:
            cohort: roster indices of U1, increasing.
            today: the date, UTC.

        Raises:
            ProtocolError: as `check_member`, or "order" or "cohort-size".
        """
        check_increasing(cohort)
        if not self.n_min <= len(cohort) <= self.n_max:
            raise ProtocolError("cohort-size", f"{len(cohort)} clients, not {self.n_min} to {self.n_max}")
        for index in cohort:
            self.check_member(index, today)

    def check_run(
        self,
        *,
        clip: float,
        noise: float,
        rounds: int,
        epsilon_record: float = inf,
        epsilon_client: float = inf,
    ) -> None:
        """Whether an experiment's numbers are within what the members have agreed on.

        Args:
            clip: clip norm of an update.
            noise: noise multiplier inside the sum; 0 = none.
            rounds: rounds of the run.
            epsilon_record, epsilon_client: what the run may spend, by unit; infinite = no guarantee.

        Raises:
            ProtocolError: "limits".
        """
        ceilings = self.epsilon_record or inf, self.epsilon_client or inf
        for name, value, low, high in (
            ("clip norm", clip, *self.clip),
            ("noise multiplier", noise, *self.noise),
            ("number of rounds", rounds, *self.rounds),
            ("epsilon per record", epsilon_record, 0, ceilings[0]),
            ("epsilon per client", epsilon_client, 0, ceilings[1]),
        ):
            if not low <= value <= high:  # not a number is refused too
                raise ProtocolError("limits", f"{name} = {value}, outside {low} to {high}")

    def check_model_schema(self, digest: bytes) -> None:
        """Refuses a model whose names and shapes nobody has agreed on, where the members name any: "model-schema"."""
        if self.model_schemas and digest not in self.model_schemas:
            raise ProtocolError(
                "model-schema", f"the roster does not list this model's schema, {digest.hex()}"
            )

    def check_bundle(self, digest: bytes) -> None:
        """Refuses code that nobody has agreed on: "bundle"."""
        if digest not in self.bundles:
            raise ProtocolError("bundle", "the roster does not list this bundle")

    def index_of(self, key: bytes) -> int:
        """The member that holds an identity key.

        Raises:
            ProtocolError: "unknown-member".
        """
        try:
            return self._keys.index(key)
        except ValueError:
            raise ProtocolError("unknown-member", "the roster does not have this identity key") from None

    @cached_property
    def _keys(self) -> tuple[bytes, ...]:
        return tuple(member.key for member in self.members)

    def _rules_of_members(self) -> Iterable[tuple[bool, str]]:
        indices, size = range(len(self.enrolled)), len(self.enrolled)
        labels = [member.label for member in self.members]
        current = [label for index, label in enumerate(labels) if index not in self.revoked]
        keys = [*self._keys, self.server_key, *filter(None, [self.root_key])]
        usable = size - len(self.revoked | self.strikes)
        yield size <= MAX_MEMBERS, f"more than {MAX_MEMBERS} members"
        yield [member.index for member in self.members] == [*indices], "an index is not its position"
        yield all(label.isprintable() for label in labels), "a label has characters that cannot be seen"
        yield len(set(current)) == len(current), "two members have one label"
        yield len(set(keys)) == len(keys), "one key has two uses"
        yield (self.revoked | self.strikes) <= set(indices), "someone revoked or struck is no member"
        yield self.n_min <= usable, f"n_min = {self.n_min}, but {usable} members may take part"
        yield all(0 <= entry.num_rows < _MAX_NUMBER for entry in self.enrolled), "a number of rows"

    def _rules_of_numbers(self) -> Iterable[tuple[bool, str]]:
        n, c, dropouts = self.n_min, self.max_corrupt, self.max_dropouts
        yield (self.epoch == 1) == (self.previous == NO_ROSTER), "only the first epoch has none before it"
        yield 1 <= self.epoch < _MAX_NUMBER, "epochs are counted from 1"
        yield len(self.previous) == HASH_BYTES, "the digest of the epoch before has 32 bytes"
        yield c >= 1, "max_corrupt must be at least 1"
        yield 0 <= dropouts <= n - ((n + c) // 2 + 1), "max_dropouts leaves fewer than T of n_min clients"
        yield n - dropouts - c >= 2, "n_min - max_dropouts - max_corrupt leaves fewer than 2 honest vectors"
        yield n <= self.n_max <= MAX_MEMBERS, f"n_max must be n_min to {MAX_MEMBERS}"
        hashes = self.model_schemas | self.bundles
        yield all(len(digest) == HASH_BYTES for digest in hashes), "a hash has 32 bytes"
        yield 0 < self.clip[0] <= self.clip[1] < inf, "clip: 0 < smallest <= largest"
        yield 0 <= self.noise[0] <= self.noise[1] < inf, "noise: 0 <= smallest <= largest"
        yield 1 <= self.rounds[0] <= self.rounds[1] < _MAX_NUMBER, "rounds: 1 <= fewest <= most"
        for ceiling in (self.epsilon_record, self.epsilon_client):
            yield ceiling is None or (0 < ceiling < inf), "an epsilon must be above 0"

    def encode(self) -> bytes:
        """Canonical bytes."""
        return self._writer.finish()

    def digest(self) -> bytes:
        """Hash of this epoch and, through `previous`, of all before it. What members sign, and ctx0 names."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return self._writer.hash()

    @property
    def _writer(self) -> Writer:
        writer = Writer("roster").number(self.epoch).data(self.previous).number(len(self.enrolled))
        for entry in self.enrolled:
            writer.number(entry.member.index).text(entry.member.label).data(entry.member.key)
            writer.number(entry.expiry.toordinal()).number(entry.num_rows)
        for indices in (self.revoked, self.strikes):
            writer.number(len(indices))
            for index in sorted(indices):
                writer.number(index)
        writer.data(self.server_key).data(self.root_key)
        for number in (self.n_min, self.n_max, self.max_corrupt, self.max_dropouts, *self.rounds):
            writer.number(number)
        for hashes in (self.model_schemas, self.bundles):
            writer.number(len(hashes))
            for digest in sorted(hashes):
                writer.data(digest)
        for real in (*self.clip, *self.noise, self.epsilon_record or 0.0, self.epsilon_client or 0.0):
            writer.real(real)
        return writer

    @classmethod
    def decode(cls, data: bytes) -> Roster:
        """The reverse of `encode`.

        Raises:
            ProtocolError: these are not the canonical bytes of a roster that may be.
        """
        reader = Reader(data, "roster")
        epoch, previous = reader.number(), reader.data(HASH_BYTES)
        enrolled = tuple(_read_member(reader) for _ in range(reader.number()))
        revoked, strikes = (_read_set(reader, reader.number) for _ in range(2))
        server_key, root_key = reader.data(IDENTITY_BYTES), reader.data()
        n_min, n_max, corrupt, dropouts, fewest, most = (reader.number() for _ in range(6))
        schemas, bundles = (_read_set(reader, reader.data) for _ in range(2))
        clip_low, clip_high, noise_low, noise_high, record, client = (reader.real() for _ in range(6))
        reader.end()
        return cls(
            epoch=epoch,
            previous=previous,
            enrolled=enrolled,
            revoked=revoked,
            strikes=strikes,
            server_key=server_key,
            root_key=root_key,
            n_min=n_min,
            n_max=n_max,
            max_corrupt=corrupt,
            max_dropouts=dropouts,
            rounds=(fewest, most),
            model_schemas=schemas,
            bundles=bundles,
            clip=(clip_low, clip_high),
            noise=(noise_low, noise_high),
            epsilon_record=record or None,
            epsilon_client=client or None,
        )


def _read_member(reader: Reader) -> RosterMember:
    index, label, key = reader.number(), reader.text(), reader.data(IDENTITY_BYTES)
    try:
        expiry = date.fromordinal(reader.number())
    except (ValueError, OverflowError):
        raise ProtocolError("roster", "an expiry is no date") from None
    return RosterMember(Member(index, label, key), expiry, reader.number())


def _read_set(reader: Reader, read: Callable[[], _Item]) -> frozenset[_Item]:
    items = [read() for _ in range(reader.number())]
    if any(low >= high for low, high in pairwise(items)):
        raise ProtocolError("roster", "a set is not in its one order")
    return frozenset(items)
