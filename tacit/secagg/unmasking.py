"""How the server opens the masks that are left in a sum, and who is to blame where it cannot.

It joins t shares of a secret and checks the secret itself: the seed of an own mask against its commitment, a mask
key against its public half. Only where that fails it looks at each share: one that is not the committed one is
erased and its sender blamed; if t that are still give the wrong secret, the dealer has committed to shares of
nothing, and its own commitments prove it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf

from tacit.errors import ProtocolError
from tacit.secagg.contexts import Cohort
from tacit.secagg.keys import KeyPair
from tacit.secagg.messages import DealAnswer, UnmaskAnswer
from tacit.secagg.shamir import SHARE_BYTES, join
from tacit.secagg.sharing import (
    COMMITMENT_BYTES,
    Kind,
    Opening,
    check_opening,
    own_commitment,
    point_of,
)


@dataclass
class Blame:
    """What went wrong.

    Attributes:
        wrong_shares: who sent a share that is not the one dealt to it.
        guilty: dealers that are proven to have dealt shares of nothing.
        unopened: dealers of whom too few shares came.
    """

    wrong_shares: set[int] = field(default_factory=set)
    guilty: set[int] = field(default_factory=set)
    unopened: set[int] = field(default_factory=set)

    @property
    def anybody(self) -> bool:
        """Whether not all went well."""
        return bool(self.wrong_shares or self.guilty or self.unopened)


@dataclass(frozen=True)
class Commitments:
    """What one dealer has committed to.

    Attributes:
        own: to the seed of its own mask, 32 bytes.
        rows: to each row, 32 bytes each, in the order of the graph's recipients.
    """

    own: bytes
    rows: bytes

    @classmethod
    def of(cls, dealt: DealAnswer) -> Commitments:
        """Those in an answer to M1."""
        return cls(dealt.own_commitment, dealt.commitments)


class Openings:
    """The shares that came, by dealer.

    Args:
        cohort: U1.
        masking: U2.
        survivors: U3.
        dealt: what each member of U2 has committed to.
    """

    def __init__(
        self,
        cohort: Cohort,
        masking: Sequence[int],
        survivors: Sequence[int],
        dealt: Mapping[int, Commitments],
    ) -> None:
        self.cohort, self.masking, self.survivors, self.dealt = cohort, masking, frozenset(survivors), dealt
        self._within = frozenset(masking)
        parameters = cohort.parameters
        self._most: float = parameters.share_threshold if parameters.complete else inf
        self._answers: dict[int, UnmaskAnswer] = {}
        self._places: dict[int, dict[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Openings from {len(self._answers)} clients>"

    @property
    def enough(self) -> bool:
        """Whether no more answers are needed, if all shares in them are right; never on the ring."""
        return len(self._answers) >= self._most

    def take_all(self) -> None:
        """From now on no number of answers is enough."""
        self._most = inf

    def add(self, answer: UnmaskAnswer) -> None:
        """Takes one client's answer, whose signature is good.

        Raises:
            ProtocolError: it has not one opening for each dealer.
        """
        places = self._dealers_of(answer.sender)
        if answer.num_openings != len(places):
            raise ProtocolError("openings", "there is not one share of each neighbour")
        self._answers[answer.sender], self._places[answer.sender] = answer, places

    def of(self, dealer: int) -> Iterator[tuple[int, bytes]]:
        """Who has sent a share of this dealer, and the opening's bytes, by increasing sender."""
        for sender in self.cohort.graph.recipients(dealer):
            if (answer := self._answers.get(sender)) is not None:
                yield sender, answer.opening(self._places[sender][dealer])

    def needed(self) -> Iterator[tuple[int, Kind]]:
        """Each dealer and the secret that has to be opened: the seeds of U3, the mask keys of the rest of U2."""
        return ((v, "own" if v in self.survivors else "key") for v in self.masking)

    def _dealers_of(self, recipient: int) -> dict[int, int]:
        """Position of each dealer in a recipient's answer."""
        if self.cohort.parameters.complete:
            return self._everyone
        dealers = (v for v in self.cohort.graph.recipients(recipient) if v in self._within)
        return {v: i for i, v in enumerate(dealers)}

    @property
    def _everyone(self) -> dict[int, int]:
        return {v: i for i, v in enumerate(self.masking)}


def opened_masks(openings: Openings) -> tuple[list[tuple[bytearray, int]], Blame]:
    """The masks that have to be added to the sum, seed and sign; and who is to blame for those that are not there.

    Args:
        openings: the shares that came.
    """
    masks: list[tuple[bytearray, int]] = []
    blame = Blame()
    for dealer, kind in openings.needed():
        secret = _secret(openings, dealer, kind, blame)
        if secret is None:
            continue
        if kind == "own":
            masks.append((bytearray(secret), -1))
        else:
            masks += _pair_masks(openings, dealer, secret)
    return masks, blame


def _pair_masks(openings: Openings, dealer: int, secret: bytes) -> Iterator[tuple[bytearray, int]]:
    """The masks that survivors share with a client whose vector never came."""
    cohort, key = openings.cohort, KeyPair(secret)
    ctx2 = cohort.ctx2(openings.masking)
    for v in cohort.graph.neighbours(dealer):
        if v in openings.survivors:
            u, w = min(dealer, v), max(dealer, v)
            seed = key.mask_seed(cohort.entries[v].mask_pk, ctx2=ctx2, u=u, v=w)
            yield seed, -1 if v < dealer else 1  # v has added it where v < dealer
    key.erase()


def _secret(openings: Openings, dealer: int, kind: Kind, blame: Blame) -> bytes | None:
    """The dealer's secret, or None and an entry of `blame`."""
    threshold = openings.cohort.parameters.share_threshold
    first = dict(islice(openings.of(dealer), threshold))
    if len(first) == threshold and (secret := _joined(openings, dealer, kind, first)) is not None:
        return secret
    right: dict[int, bytes] = {}
    for sender, opening in openings.of(dealer):
        if _committed(openings, dealer, sender, kind, Opening.decode(opening)):
            right[sender] = opening
        else:
            blame.wrong_shares.add(sender)
    if len(right) < threshold:
        blame.unopened.add(dealer)
        return None
    secret = _joined(openings, dealer, kind, dict(islice(right.items(), threshold)))
    if secret is None:
        blame.guilty.add(dealer)
    return secret


def _joined(openings: Openings, dealer: int, kind: Kind, opened: Mapping[int, bytes]) -> bytes | None:
    """What t shares give, if it is what the dealer has committed to."""
    try:
        secret = join({point_of(v): opening[:SHARE_BYTES] for v, opening in opened.items()})
    except ProtocolError:
        return None
    cohort = openings.cohort
    if kind == "own":
        right = own_commitment(cohort.ctx1, dealer, secret) == openings.dealt[dealer].own
    else:
        right = KeyPair(secret).public == cohort.entries[dealer].mask_pk
    return secret if right else None


def _committed(openings: Openings, dealer: int, sender: int, kind: Kind, opening: Opening) -> bool:
    cohort = openings.cohort
    start = COMMITMENT_BYTES * cohort.graph.recipients(dealer).index(sender)
    committed = openings.dealt[dealer].rows[start : start + COMMITMENT_BYTES]
    return check_opening(committed, cohort.ctx1, dealer, sender, kind, opening)
