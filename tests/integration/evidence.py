"""What all answers that ever left the sites prove, with their journals: nothing secret was used for two things."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from crash_world import World
from spool import exchanges

from tacit.errors import ProtocolError
from tacit.privacy import chain
from tacit.secagg.messages import (
    ConfirmAnswer,
    ConfirmRequest,
    DealAnswer,
    DealRequest,
    MaskAnswer,
    MaskRequest,
    SetupAnswer,
    SetupRequest,
    UnmaskAnswer,
)


class Uses:
    """That a thing was used for one other thing only, each time."""

    def __init__(self) -> None:
        self._seen: dict[Any, Any] = {}

    def note(self, what: str, thing: Any, used_for: Any) -> None:
        first = self._seen.setdefault((what, thing), used_for)
        assert first == used_for, f"{what} was used for two things"

    def count(self, what: str) -> int:
        return sum(kind == what for kind, _ in self._seen)


def check_evidence(world: World) -> Uses:
    """Of every site, from all its processes."""
    uses = Uses()
    journals = {i: check_journal(world.sites / str(i)) for i in range(len(world.names) - 1)}
    private, run = world.experiment.privacy.record is not None, world.run_id
    paid = [{e.round for e in world.entries(i) if e.run == run} for i in range(len(world.names) - 1)]
    rounds = {}  # context of an invitation -> round
    for exchange in exchanges(world.spool):
        if exchange.answer.has_error():
            continue
        kind, site = exchange.asked.metadata.message_type, exchange.node - 2
        asked, body = (m.content["tacit"].get("body", b"") for m in (exchange.asked, exchange.answer))
        if kind == "train.tacit0":
            invitation, entry = SetupRequest.decode(asked).invitation, SetupAnswer.decode(body).entry
            assert invitation.ctx0().hex() in journals[site]["answered"], "answered and not journalled"
            rounds[invitation.ctx0().hex()] = invitation.round
            uses.note("answer to an invitation", (site, invitation.ctx0()), body)
            for key in (entry.enc_pk, entry.mask_pk, entry.nonce):
                uses.note("key or nonce", key, (site, invitation.ctx0()))
        elif kind == "train.tacit1":
            uses.note("list of clients", (site, DealAnswer.decode(body).context), body)
            uses.note("shares", (site, DealRequest.decode(asked).context), body)
        elif kind == "train.tacit2" and (answer := _masked(body)) is not None:
            vector = exchange.answer.content["vector"]["words"].data
            before = MaskRequest.decode(asked).context
            uses.note("masks", (site, answer.context), (body, vector))
            uses.note("cohort", (site, before), answer.context)
            assert answer.context.hex() in journals[site]["masked"], "masked and not journalled"
            (ctx0,) = [a for a, b in journals[site]["pairs"] if b == answer.context.hex()]
            assert rounds[ctx0] in paid[site] or (not private and paid[site]), "a vector left unpaid"
        elif kind == "train.tacit3":
            confirmed = ConfirmAnswer.decode(body, ConfirmRequest.decode(asked).survivors)
            uses.note("survivors", (site, confirmed.context), confirmed.survivors)
            assert confirmed.context.hex() in journals[site]["signed"], "signed and not journalled"
        elif kind == "train.tacit4":
            opened = UnmaskAnswer.decode(body)
            uses.note("opened shares", (site, opened.context), opened.openings)
            assert opened.context.hex() in journals[site]["signed"], "opened and not journalled"
    return uses


def check_journal(site: Path) -> dict[str, list[Any]]:
    """Contexts in a site's journal by event, each there once."""
    path = site / "journal" / "journal.jsonl"
    found: dict[str, list[Any]] = defaultdict(list)
    if not path.exists():
        return found
    attempts = []
    for record in chain.decode(path.read_bytes(), path).records:
        match record:
            case {"answered": [run, number, attempt, _, _, ctx0]}:
                attempts.append((run, number, attempt))
                found["answered"].append(ctx0)
            case {"masked": [ctx0, ctx2]}:
                found["masked"].append(ctx2)
                found["pairs"].append((ctx0, ctx2))
            case {"signed": [ctx2, _]}:
                found["signed"].append(ctx2)
    for each in (attempts, *found.values()):
        assert len(each) == len(set(each)), f"{path}: something was done twice"
    assert attempts == sorted(attempts), f"{path}: a round went back"
    return found


def _masked(body: bytes) -> MaskAnswer | None:
    """None for a complaint, which lets nothing out."""
    try:
        return MaskAnswer.decode(body)
    except ProtocolError:
        return None
