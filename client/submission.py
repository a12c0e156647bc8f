"""How an update leaves a site under the secure sum: guard, train, encode, keys (M0); debit, mask (M2); unmask (M4)."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from client.sessions import Session
from tacit.encoding import config_digest
from tacit.errors import ProtocolError
from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import Invitation, model_digest, roster_digest
from tacit.secagg.parameters import Rules
from tacit.tasks.weights import Arrays

if TYPE_CHECKING:
    from client.participant import Participant


def setup(participant: Participant, request: bytes, arrays: Arrays) -> bytes:
    """M0: checks the invitation against what this site computes itself, trains, and answers with fresh keys.

    Training happens here, so that a client that vanishes while it trains costs the round nothing.
    """
    invitation = checked(participant, Invitation.decode(request), arrays)
    session = participant.sessions.load()
    if session is None or not _same_update(session, participant, invitation):
        participant.guard(invitation.run, invitation.round, arrays)
        update = participant.update(invitation.round, arrays)
        encoded = participant.encode(invitation.round, arrays, update)
        machine = ClientMachine(participant.member, secrets.token_bytes)
        session = Session(
            invitation.run, invitation.round, invitation.model, participant.run.digest, encoded, machine
        )
    elif session.machine.answered("setup", invitation.encode()) is None:
        # A later attempt on the same model: the finished update is sent again unchanged, under new masks.
        session.machine = ClientMachine(participant.member, secrets.token_bytes)
    answer = session.machine.setup(invitation)
    participant.sessions.save(session)
    return answer


def mask(participant: Participant, request: bytes) -> bytes:
    """M2: debits this round's releases, then lets the masked vector out. From its first byte on it is spent."""
    session = current(participant)
    stored = session.machine.answered("mask", request)
    if stored is not None:
        return stored
    cohort = session.machine.cohort(request)  # refuses before anything is spent
    participant.guard_cohort(len(cohort.masking))
    if not session.debited:
        participant.debit(session.run, session.round, attempt=1)
        session.debited = True
    answer = session.machine.mask(request, session.encoded)
    participant.sessions.save(session)
    return answer


def unmask(participant: Participant, request: bytes) -> bytes:
    """M4: the seed of this client's own mask."""
    session = current(participant)
    answer = session.machine.unmask(request)
    participant.sessions.save(session)
    return answer


def checked(participant: Participant, invitation: Invitation, arrays: Arrays) -> Invitation:
    """The invitation as this site computes it; its masks cancel only with peers that computed the same.

    Raises:
        ProtocolError: the server's own figures differ.
    """
    run = participant.run
    encoder = run.encoder(arrays)
    own = replace(
        invitation,
        roster=roster_digest(run.members),
        model=model_digest(arrays),
        config=config_digest(run.experiment.to_toml(), participant.scaling),
        length=encoder.layout.size,
        rules=Rules.of(run.experiment.secure_aggregation),
    )
    if own.encode() != invitation.encode():
        raise ProtocolError("context", "the invitation is for another model, experiment or roster")
    return own


def current(participant: Participant) -> Session:
    """The session in progress; `ProtocolError` when there is none under the experiment that this run has."""
    session = participant.sessions.load()
    if session is None or session.experiment != participant.run.digest:
        raise ProtocolError("phase", "this client has not been invited")
    return session


def _same_update(session: Session, participant: Participant, invitation: Invitation) -> bool:
    held = session.run, session.round, session.model, session.experiment
    return held == (invitation.run, invitation.round, invitation.model, participant.run.digest)
