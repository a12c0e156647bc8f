"""How an update leaves a site under the secure sum.

M0  guard, train, encode, answer with keys      M3  sign whose vectors are in the sum
M1  deal shares                                 M4  open one share of each client
M2  open the rows dealt; add noise, debit, mask
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from math import inf
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from client.sessions import Session
from tacit.audit import Attempted, Receipted, Requested
from tacit.encoding import config_digest
from tacit.errors import ProtocolError, Refused
from tacit.secagg.contexts import Invitation, model_digest, schema_digest
from tacit.secagg.messages import MaskAnswer, SetupRequest
from tacit.secagg.parameters import Rules
from tacit.secagg.receipt import Receipt, check_shown
from tacit.tasks.weights import Arrays

if TYPE_CHECKING:
    from client.participant import Participant
    from tacit.secagg.roster import Roster


P = ParamSpec("P")
T = TypeVar("T")


def _alone(
    step: Callable[Concatenate[Participant, P], T],
) -> Callable[Concatenate[Participant, P], T]:
    """The step with no other process between what it looks up and what it writes down."""

    @wraps(step)
    def taken(participant: Participant, /, *arguments: P.args, **named: P.kwargs) -> T:
        with participant.sessions.alone():
            return step(participant, *arguments, **named)

    return taken


@_alone
def setup(participant: Participant, request: bytes, arrays: Arrays, receipts: Sequence[bytes] = ()) -> bytes:
    """M0: checks the invitation against what this site computes itself, trains, and answers with fresh keys.

    Training happens here, so that a client that vanishes while it trains costs the round nothing.

    Args:
        participant: this site.
        request: the invitation.
        arrays: the global model beside it.
        receipts: the server's newest ones, beside it too.
    """
    own = as_computed_here(participant, SetupRequest.decode(request).invitation, arrays)
    session = participant.session()
    if session is not None and (stored := session.machine.answered("setup", request)) is not None:
        return stored[0]
    if participant.run.plan.unit == "none" and participant.has_masked(own.run, own.round):
        # Two sums over different cohorts differ by one client's update, which nothing else hides.
        raise Refused("attempt", "an update without privacy is sent once")
    if session is not None and not _same_update(session, participant, own):
        session = None
    if session is None:
        participant.guard(own.run, own.round, arrays)
    shown = check_shown(own.receipt_head, receipts, participant.site.roster().server_key)
    participant.see_receipts(shown)
    machine = participant.machine()
    answer = machine.setup(request, own)  # refuses before anything is counted or trained
    if session is None:
        participant.count_round()
        encoded = participant.encode(own.round, arrays, participant.update(own.run, own.round, arrays))
        session = Session(own.run, own.round, own.model, participant.run.digest, encoded, machine)
    session.machine, session.attempt = machine, own.attempt  # the same finished update under new masks
    news = _news(participant, shown)
    participant.audit.write(*news, _requested(own))
    if participant.known_receipts is not None:
        participant.known_receipts.update(event.receipt for event in news)
    participant.sessions.save(session)
    return answer


def deal(participant: Participant, request: bytes) -> bytes:
    """M1: shares of this attempt's secrets."""
    return _step(participant, "deal", request)


@_alone
def mask(participant: Participant, request: bytes) -> tuple[bytes, bytes]:
    """M2: debits this round's releases, then lets the masked vector out. From its first byte on it is spent.

    Returns:
        The answer and the packed words; a complaint about a dealer has none.
    """
    session = current(participant)
    if (stored := session.machine.answered("complain", request)) is not None:
        return stored
    if session.machine.answered("mask", request) is not None:
        return session.machine.mask(request, session.encoded)  # kept, and perhaps not journalled yet
    if (complaint := session.machine.receive(request)) is not None:  # refuses before anything is spent
        participant.sessions.save(session)
        return complaint, b""
    parameters = session.machine.cohort.parameters
    participant.guard_cohort(parameters.n - parameters.max_dropouts)
    encoded = participant.noised(session.encoded, session.round, session.attempt, parameters.noise_share)
    if participant.pays_each_attempt or not session.sent:
        participant.debit(session.run, session.round, attempt=session.attempt, again=session.sent)
    session.sent = True
    participant.sessions.save(session)

    def keep(sent: MaskAnswer) -> None:
        participant.audit.write(
            Attempted(session.run, session.round, session.attempt, sent.sender, sent.context.hex())
        )
        if participant.run.plan.unit == "none":
            session.erase()  # it is sent once, so that nobody needs it any more
        participant.sessions.save(session)

    return session.machine.mask(request, encoded, keep)


def confirm(participant: Participant, request: bytes) -> bytes:
    """M3: signs the survivors, once."""
    return _step(participant, "confirm", request)


@_alone
def unmask(participant: Participant, request: bytes) -> bytes:
    """M4: one share of each client; every secret is erased, and an update that is not private by itself.

    One that is stays until the next round: should the server fail now, it is sent again unchanged, at no further cost.

    Guarantees:
        Once a site has opened shares, nothing is left in its session of an update that is not private by itself.
    """
    session = current(participant)
    answer = session.machine.unmask(request)
    if participant.run.plan.unit != "record":
        session.erase()
    participant.sessions.save(session)
    return answer


def as_computed_here(participant: Participant, invitation: Invitation, arrays: Arrays) -> Invitation:
    """The invitation with all that this site knows itself put in its place; any difference is refused later."""
    run, roster = participant.run, participant.site.roster()
    check_agreed(participant, roster, arrays)
    return replace(
        invitation,
        roster=roster.digest(),
        model=model_digest(arrays),
        config=config_digest(
            run.experiment.to_toml(), participant.scaling, participant.clip, participant.variate_digest
        ),
        length=run.encoder(arrays).layout.size,
        rules=Rules.of(run.experiment.secure_aggregation, run.plan.sum_noise_multiplier),
    )


def check_agreed(participant: Participant, roster: Roster, arrays: Arrays) -> None:
    """Raises `ProtocolError` unless the experiment keeps to what the members have agreed on."""
    run, experiment = participant.run, participant.run.experiment
    secure, privacy = experiment.secure_aggregation, experiment.privacy
    # Noise from a seed that the server knows promises nothing against it.
    known_noise = experiment.insecure_seeded_noise
    if secure.max_corrupt < roster.max_corrupt:
        raise ProtocolError("rules", "the experiment reckons with fewer corrupt members than the roster")
    roster.check_run(
        clip=float(participant.clip or secure.update_clip),
        noise=run.plan.sum_noise_multiplier,
        rounds=experiment.training.rounds,
        epsilon_record=inf if privacy.record is None or known_noise else privacy.record.epsilon,
        epsilon_client=inf if privacy.client is None or known_noise else privacy.client.epsilon,
    )
    roster.check_model_schema(schema_digest(run.model_shapes(arrays)))


def current(participant: Participant) -> Session:
    """The session in progress; `ProtocolError` when there is none under the experiment that this run has."""
    session = participant.session()
    if session is None or session.experiment != participant.run.digest:
        raise ProtocolError("phase", "this client has not been invited")
    return session


@_alone
def _step(participant: Participant, step: str, request: bytes) -> bytes:
    session = current(participant)
    answer: bytes = getattr(session.machine, step)(request)
    participant.sessions.save(session)
    return answer


def _requested(own: Invitation) -> Requested:
    hashes = own.model.hex(), own.config.hex(), own.ctx0().hex()
    return Requested(own.run, own.round, own.attempt, *hashes)


def _news(participant: Participant, shown: Sequence[Receipt]) -> list[Receipted]:
    """The receipts that this site's log does not have yet."""
    if (known := participant.known_receipts) is None:
        known = {event.receipt for event in participant.audit.read() if isinstance(event, Receipted)}
        participant.known_receipts = known
    written = [receipt.encode().hex() for receipt in shown]
    return [Receipted(receipt, {}) for receipt in written if receipt not in known]


def _same_update(session: Session, participant: Participant, invitation: Invitation) -> bool:
    held = session.run, session.round, session.model, session.experiment
    return not session.is_erased and held == (
        invitation.run,
        invitation.round,
        invitation.model,
        participant.run.digest,
    )
