"""H10: what is hashed, signed or compared has one spelling: decode(encode(m)) == m and encode(decode(b)) == b."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from struct import unpack
from typing import Any, Final

from tacit.config import loads
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.secagg.client_state import ClientState
from tacit.secagg.contexts import Invitation
from tacit.secagg.encoding import Reader, Writer
from tacit.secagg.members import Entry
from tacit.secagg.messages import (
    Complaint,
    ConfirmAnswer,
    ConfirmRequest,
    DealAnswer,
    DealRequest,
    MaskAnswer,
    MaskRequest,
    SetupAnswer,
    SetupRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import SignedRoster
from tests.fuzz.draw import Draw
from tests.fuzz.messages import KINDS, SURVIVORS, decoded
from tests.reference import canonical as reference

READ: Final[dict[str, Callable[[bytes], bytes]]] = {
    "roster": lambda data: Roster.decode(data).encode(),
    "signed roster": lambda data: SignedRoster.decode(data).encode(),
    "client state": lambda data: ClientState.decode(data).encode(),
    "experiment": lambda data: loads(data.decode()).to_toml().encode(),
}


def round_trip(data: bytes) -> int:
    """H10."""
    draw = Draw(data)
    way = draw.below(5)
    if way == 0:
        fields(draw)
    elif way == 4:
        read_by_both(draw)
    elif way == 1:
        built(draw)
    elif way == 2:
        kind, body = KINDS[draw.below(len(KINDS))], draw.rest()
        message = decoded(kind, body)
        assert message is None or message.encode() == body
    else:
        name, body = [*READ][draw.below(len(READ))], draw.rest()
        read_again(name, body)
    return len(data)


def read_again(name: str, body: bytes) -> None:
    """The one spelling of bytes that are accepted; people may write an experiment or a line end in other ways too."""
    try:
        written = READ[name](body)
    except (ProtocolError, StorageError, ConfigError, UnicodeDecodeError) as error:
        assert isinstance(error, ConfigError | UnicodeDecodeError) == (name == "experiment")
        return
    assert READ[name](written) == written
    if name == "signed roster":
        assert written == body.replace(b"\r\n", b"\n")
    elif name != "experiment":
        assert written == body


def fields(draw: Draw) -> None:
    """Fields of any kind, written by both implementations and read back; a changed byte says something else."""
    writer, expected = Writer("fuzz"), reference.label("fuzz")
    items: list[tuple[str, Any]] = []
    while draw.left > 2 and len(items) < 16:
        kind = ("number", "data", "text", "real", "numbers")[draw.below(5)]
        value = _value(kind, draw)
        items.append((kind, value))
        getattr(writer, kind)(value)
        expected += getattr(reference, kind)(value + 0.0 if kind == "real" else value)
    content = writer.finish()
    assert content == expected
    assert _read([kind for kind, _ in items], content) == [value for _, value in items]
    place, bits = draw.number(2) % len(content), draw.number() or 1
    changed = bytearray(content)
    changed[place] ^= bits
    try:
        assert _read([kind for kind, _ in items], bytes(changed)) != [value for _, value in items]
    except ProtocolError:
        return


def read_by_both(draw: Draw) -> None:
    """Any bytes as fields of any kinds: both implementations read the same, or refuse."""
    kinds = [("number", "data", "text", "real")[draw.below(4)] for _ in range(draw.below(6))]
    content = reference.label("fuzz") + draw.rest()
    try:
        found = _read(kinds, content)
    except ProtocolError:
        found = None
    try:
        reader = reference.Reader(content, "fuzz")
        expected = [getattr(reader, kind)() for kind in kinds]
        reader.end()
    except reference.Refused:
        expected = None
    assert found == expected


def _value(kind: str, draw: Draw) -> Any:
    if kind == "number":
        return draw.number(8)
    if kind == "real":
        value = unpack(">d", draw.randbytes(8))[0]
        return value if isfinite(value) else draw.choice((0.0, -0.0, 5e-324, 1.7e308))
    if kind == "numbers":
        return tuple(draw.number(8) for _ in range(draw.below(6)))
    content = draw.take(draw.below(64))
    return content if kind == "data" else content.decode("utf-8", "replace")


def _read(kinds: Sequence[str], content: bytes) -> list[Any]:
    reader = Reader(content, "fuzz")
    values = [getattr(reader, kind)() for kind in kinds]
    reader.end()
    return values


def built(draw: Draw) -> None:
    """A message of any values, decoded from its bytes."""
    message = BUILT[draw.below(len(BUILT))](draw)
    again = decoded(type(message), message.encode())
    if isinstance(message, ConfirmAnswer):
        message = replace(message, survivors=SURVIVORS)  # not sent
    assert again == message
    if hasattr(message, "statement"):
        assert again.statement == message.statement


def _hash(draw: Draw, size: int = 32) -> bytes:
    return draw.take(size).ljust(size, b"\0")


def _set(draw: Draw) -> tuple[int, ...]:
    return tuple(sorted({draw.number(4) for _ in range(draw.below(8))}))


def _index(draw: Draw) -> int:
    return min(draw.number(4), 2**32 - 2)


def _entry(draw: Draw) -> Entry:
    return Entry(_index(draw), _hash(draw), _hash(draw), _hash(draw), draw.number(8), _hash(draw))


def _entries(draw: Draw) -> tuple[Entry, ...]:
    return tuple(replace(_entry(draw), index=index) for index in _set(draw))


def _invitation(draw: Draw) -> Invitation:
    rules = Rules(1 + draw.number(), draw.number(), 1 + draw.number(2), draw.number(2) / 7)
    run = draw.take(draw.below(64)).decode("utf-8", "replace")
    numbers = [draw.number(8) for _ in range(4)]
    hashes = [_hash(draw) for _ in range(5)]
    return Invitation(hashes[0], run, *numbers[:2], *hashes[1:3], *numbers[2:], rules, *hashes[3:])


def _deal_request(draw: Draw) -> DealRequest:
    entries = _entries(draw)
    return DealRequest(_hash(draw), entries, tuple(_hash(draw, 64) for _ in entries))


def _proofs(draw: Draw, *sizes: int) -> Any:
    return tuple((index, *(_hash(draw, size) for size in sizes)) for index in _set(draw))


def _whole(draw: Draw, size: int) -> bytes:
    return _hash(draw, size * draw.below(4))


BUILT: Final[tuple[Callable[[Draw], Any], ...]] = (
    lambda d: SetupRequest(_invitation(d), _hash(d, 64)),
    lambda d: SetupAnswer(_hash(d), _entry(d), _hash(d, 64)),
    _deal_request,
    lambda d: DealAnswer(_hash(d), _index(d), _whole(d, 146), _hash(d), _hash(d, 64)),
    lambda d: MaskRequest(_hash(d), _set(d), _whole(d, 146)),
    lambda d: MaskAnswer(_hash(d), _index(d), _hash(d, 16), _hash(d, 64)),
    lambda d: Complaint(_hash(d), _index(d), d.number(8), _hash(d, 64)),
    lambda d: ConfirmRequest(_hash(d), _set(d), _proofs(d, 16, 64)),
    lambda d: ConfirmAnswer(_hash(d), _index(d), _set(d), _hash(d, 64)),
    lambda d: UnmaskRequest(_hash(d), _set(d), _proofs(d, 64)),
    lambda d: UnmaskAnswer(_hash(d), _index(d), _whole(d, 97), _hash(d, 64)),
)
