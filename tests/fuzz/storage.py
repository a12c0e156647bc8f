"""H6: what Tacit keeps on a disk is read, or refused as damaged; never half of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any, Final

from client.sessions import Session
from server.checkpoint import Checkpoint, name_of
from server.state import RunState, read_rounds
from server.sums import SumFile
from tacit.errors import ProtocolError, StorageError
from tacit.privacy import chain
from tacit.privacy.ledger import Ledger
from tacit.report.storage import read_json
from tacit.secagg.client import ClientMachine
from tacit.secagg.client_state import ClientState
from tacit.secagg.identity import Identity
from tacit.secagg.in_process import Federation
from tacit.secagg.journal import FileJournal
from tacit.secagg.parameters import Rules
from tacit.secagg.signed_roster import RosterFile
from tests.fuzz.draw import Draw
from tests.fuzz.files import folder, put
from tests.unit.run_folders import CONFIG

CHECKPOINT_FILES: Final = ("counters.json", "model.safetensors", "strategy.safetensors")


def stored(data: bytes) -> int:
    """H6."""
    draw = Draw(data)
    read, content = STORED[draw.below(len(STORED))], draw.rest()
    try:
        read(content)
    except StorageError as error:
        assert str(error)
    return len(content)


def _chain(content: bytes) -> None:
    found = chain.decode(content, folder())
    assert [record["sequence"] for record in found.records] == [*range(1, len(found.records) + 1)]
    assert content.endswith(found.torn)


def _damaged_ledger(content: bytes) -> None:
    """Bytes of a file, beside the head that they would have."""
    try:
        records = chain.decode(content, folder()).records
    except StorageError:
        records = ()
    path, head = put("chain/ledger.jsonl", content), records[-1]["hash"] if records else chain.GENESIS
    put("chain/ledger.jsonl.head", f"{len(records):020d} {head}\n".encode())
    Ledger.open(path, durable=False).close()


def one_record() -> tuple[bytes, dict[str, Any]]:
    """The bytes of a file with one record, and the record."""
    return chain.encode({"peers": {"0": 1}}, 1, chain.GENESIS, b"")


def _head(content: bytes) -> None:
    """Any head beside a good file."""
    path = put("chain/journal.jsonl", one_record()[0])
    put("chain/journal.jsonl.head", content)
    with FileJournal.open(path, durable=False) as journal:
        assert journal.head.counter == 1


def _chained(open_: Callable[..., Any]) -> Callable[[bytes], None]:
    """A reader of records of any content, one to a line of the input: the file is whole, and says anything."""

    def read(content: bytes) -> None:
        lines, previous = b"", chain.GENESIS
        number = 0
        for text in content.split(b"\n"):
            try:
                record = json.loads(text)
                assert isinstance(record, dict)
                line, linked = chain.encode(record, number + 1, previous, b"")
            except (ValueError, AssertionError, RecursionError):
                continue
            lines, previous, number = lines + line, linked["hash"], number + 1
        path = put("chain/any.jsonl", lines)
        put("chain/any.jsonl.head", f"{number:020d} {previous}\n".encode())
        with open_(path, durable=False) as opened:
            repr(vars(opened))

    return read


def _checkpoint(content: bytes) -> None:
    """Files of a checkpoint with a manifest that fits them, or with any."""
    draw = Draw(content)
    fits, sizes = draw.below(2), [draw.number(2) for _ in CHECKPOINT_FILES]
    files = dict(zip(CHECKPOINT_FILES, map(draw.take, sizes), strict=True))
    manifest = json.dumps({name: hashlib.sha256(part).hexdigest() for name, part in files.items()}).encode()
    for name, part in {**files, "manifest.json": manifest if fits else draw.rest()}.items():
        path = put(f"{name_of(3)}/{name}", part)
    found = Checkpoint.read(path.parent, "run")
    assert found is None or (found.run, found.progress.round) == ("run", 3)


def _state(content: bytes) -> None:
    assert ClientState.decode(content).encode() == content


FEDERATION: Final = Federation(3, Rules(1, 0, 2**16), random.Random("storage").randbytes)


def _machine() -> ClientMachine:
    return FEDERATION.client(1)


def _session(content: bytes) -> None:
    """Also behind a hash that fits."""
    draw = Draw(content)
    body = draw.rest() if draw.below(2) else b""
    whole = hashlib.sha256(body).digest() + body if body else content
    try:
        session = Session.decode(whole, _machine)
    except ProtocolError:  # what holds sessions makes a StorageError of it
        return
    assert session.encode() == whole


def _sums(content: bytes) -> None:
    memory = SumFile(put("sums.json", content))
    assert memory.strikes is not None
    SumFile(folder() / "none.json", put("counters.json", content))


def _run(content: bytes) -> None:
    put("run/run.json", content)
    state = RunState(folder() / "run", CONFIG, 0, read_only=True)
    assert isinstance(state.run_id, str)


def _result(content: bytes) -> None:
    good = {"run": "run", "starts": 1, "config": hashlib.sha256(CONFIG.encode()).hexdigest()}
    put("ended/run.json", json.dumps(good).encode())
    put("ended/result.json", content)
    assert isinstance(RunState(folder() / "ended", CONFIG, 0, read_only=True).result, dict)


def _rounds(content: bytes) -> None:
    for record in read_rounds(put("rounds.jsonl", content)):
        assert isinstance(record["round"], int)


def _report(content: bytes) -> None:
    read_json(put("report.json", content))


def _identity(content: bytes) -> None:
    assert len(Identity.load(put("identity.key", content)).public) == 32


STORED: Final[tuple[Callable[[bytes], None], ...]] = (
    _chain, _damaged_ledger, _head, _chained(Ledger.open), _chained(FileJournal.open), _chained(RosterFile.open),
    _checkpoint, _state, _session, _sums, _run, _result, _rounds, _report, _identity,
)  # fmt: skip
