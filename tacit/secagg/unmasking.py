"""How the server opens the masks that are left in a sum, and who is to blame where it cannot.

It joins t shares of a secret and checks the secret itself: the seed of an own mask against its commitment, a mask
key against its public half. Only where that fails it looks at each share: one that is not the committed one is
erased and its sender blamed; if t that are still give the wrong secret, the dealer has committed to shares of
nothing, and its own commitments prove it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tacit.errors import ProtocolError
from tacit.secagg.contexts import Cohort
from tacit.secagg.keys import KeyPair
from tacit.secagg.messages import DealAnswer, UnmaskAnswer
from tacit.secagg.shamir import join
from tacit.secagg.sharing import Kind, Opening, check_opening, own_commitment, point_of


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


class Openings:
    """The shares that came, by dealer.

    Args:
        cohort: U1.
        masking: U2.
        survivors: U3.
        dealt: what each member of U2 has dealt.
    """

    def __init__(
        self,
        cohort: Cohort,
        masking: Sequence[int],
        survivors: Sequence[int],
        dealt: Mapping[int, DealAnswer],
    ) -> None:
        self.cohort, self.masking, self.survivors, self.dealt = cohort, masking, frozenset(survivors), dealt
        self._within = frozenset(masking)
        self._answers: dict[int, UnmaskAnswer] = {}
        self._places: dict[int, dict[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Openings from {len(self._answers)} clients>"

    def add(self, answer: UnmaskAnswer) -> None:
        """Takes one client's answer, whose signature is good.

        Raises:
            ProtocolError: it has not one opening for each dealer.
        """
        places = self._dealers_of(answer.sender)
        if answer.num_openings != len(places):
            raise ProtocolError("openings", "there is not one share of each neighbour")
        self._answers[answer.sender], self._places[answer.sender] = answer, places

    def of(self, dealer: int) -> Iterator[tuple[int, Opening]]:
        """Who has sent a share of this dealer, and which, by increasing sender."""
        for sender in self.cohort.graph.recipients(dealer):
            if sender in self._answers:
                position = self._places[sender][dealer]
                yield sender, Opening.decode(self._answers[sender].opening(position))

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
    shares = dict(openings.of(dealer))
    if len(shares) >= threshold and (secret := _joined(openings, dealer, kind, shares)) is not None:
        return secret
    for sender, opening in list(shares.items()):
        if not _committed(openings, dealer, sender, kind, opening):
            del shares[sender]
            blame.wrong_shares.add(sender)
    if len(shares) < threshold:
        blame.unopened.add(dealer)
        return None
    secret = _joined(openings, dealer, kind, shares)
    if secret is None:
        blame.guilty.add(dealer)
    return secret


def _joined(openings: Openings, dealer: int, kind: Kind, shares: Mapping[int, Opening]) -> bytes | None:
    """What the first t shares give, if it is what the dealer has committed to."""
    first = sorted(shares)[: openings.cohort.parameters.share_threshold]
    try:
        secret = join({point_of(v): shares[v].share for v in first})
    except ProtocolError:
        return None
    cohort = openings.cohort
    if kind == "own":
        right = own_commitment(cohort.ctx1, dealer, secret) == openings.dealt[dealer].own_commitment
    else:
        right = KeyPair(secret).public == cohort.entries[dealer].mask_pk
    return secret if right else None


def _committed(openings: Openings, dealer: int, sender: int, kind: Kind, opening: Opening) -> bool:
    cohort = openings.cohort
    position = cohort.graph.recipients(dealer).index(sender)
    return check_opening(
        openings.dealt[dealer].commitment(position), cohort.ctx1, dealer, sender, kind, opening
    )
