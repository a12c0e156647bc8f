"""Who may ask the coordinator for a roster that is not complete yet: whoever holds the key of one of its members.

The request has a header `tacit-member: LABEL:EPOCH:SECONDS:SIGNATURE`; EPOCH 0 is the newest, and a site that was
away asks for those that it has missed. The signature is that of an identity over these and the federation's server
key. It proves who asks and hides nothing: the roster travels inside TLS.

Guarantees:
    Without the key of a member, a roster is not shown: strangers do not learn who takes part.
"""

from __future__ import annotations

import re
from typing import Final

from tacit.errors import ProtocolError
from tacit.secagg.encoding import Writer
from tacit.secagg.identity import SIGNATURE_BYTES, Identity, verify
from tacit.secagg.members import SERVER, Member
from tacit.secagg.roster import Roster

HEADER: Final = "tacit-member"
TOLERANCE_SECONDS: Final = 86_400  # clocks of sites may be off by a day

_LABEL: Final = "roster-fetch"
_MAX_HEADER: Final = 2048
_FORM: Final = re.compile(rf"(.+):([0-9]{{1,15}}):([0-9]{{1,12}}):([0-9a-f]{{{2 * SIGNATURE_BYTES}}})")


def member_header(identity: Identity, name: str, server_key: bytes, now: float, epoch: int = 0) -> str:
    """What a member sends as the header `HEADER`.

    Args:
        identity: the member's.
        name: its label, or its index in decimal digits.
        server_key: the coordinator's identity key.
        now: the time, in seconds since 1970, UTC.
        epoch: which epoch is asked for; 0 = the newest.
    """
    seconds = int(now)
    signature = identity.sign(_LABEL, server_key, SERVER, _body_hash(name, epoch, seconds))
    return f"{name}:{epoch}:{seconds}:{signature.hex()}"


def asked_epoch(text: str) -> int:
    """Which epoch a header that was checked asks for; 0 = the newest."""
    match = _FORM.fullmatch(text)
    return int(match[2]) if match else 0


def check_member_header(text: str, roster: Roster, now: float) -> Member:
    """The member that made a header; one that is revoked may look too.

    Args:
        text: the header's value.
        roster: the newest epoch.
        now: the time, in seconds since 1970, UTC.

    Raises:
        ProtocolError: "member-header", whatever is wrong with it.
    """
    match = _FORM.fullmatch(text) if len(text) <= _MAX_HEADER else None
    if match is None or abs(now - int(match[3])) > TOLERANCE_SECONDS:
        raise ProtocolError("member-header")
    name, body_hash = match[1], _body_hash(match[1], int(match[2]), int(match[3]))
    for member in roster.members:  # a label may have belonged to a revoked member before
        if name not in (member.label, str(member.index)):
            continue
        try:
            verify(member.key, bytes.fromhex(match[4]), _LABEL, roster.server_key, SERVER, body_hash)
        except ProtocolError:
            continue
        return member
    raise ProtocolError("member-header")


def _body_hash(name: str, epoch: int, seconds: int) -> bytes:
    return Writer(_LABEL).text(name).number(epoch).number(seconds).hash()
