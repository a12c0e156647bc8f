"""What reaches the server of a secure sum: masked vectors of honest clients, and garbage."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.participant import participant_of
from server.state import read_rounds
from strategies import secure_grid
from strategies.secure_grid import SecureAggregationGrid
from tacit.secagg.packed_sum import PackedSum
from tacit.secagg.ring import keep_low, to_words, unpack
from tacit.secagg.server import ServerMachine
from tests.unit.small_federation import Federation, Misbehaving, is_step, opened_sums


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """n = 6, D = 2, c = 1, so 4 must take part."""
    return Federation(tmp_path_factory.mktemp("sites"), "training.rounds=1")


def last_row(folder: Path) -> dict[str, Any]:
    return read_rounds(folder / "rounds.jsonl")[-1]


def body(answer: Message) -> bytes:
    value = answer.content.config_records["tacit"]["body"]
    assert isinstance(value, bytes)
    return value


def with_body(message: Message, content: Any) -> Message:
    return Message(RecordDict({"tacit": ConfigRecord({"body": content})}), reply_to=message)


GARBAGE: dict[str, tuple[Callable[[Message, bytes], Message], str]] = {
    "cut short": (lambda m, b: with_body(m, b[:-1]), "encoding"),
    "empty": (lambda m, b: with_body(m, b""), "encoding"),
    "one byte more": (lambda m, b: with_body(m, b + b"\x00"), "encoding"),
    "not bytes": (lambda m, b: with_body(m, "text"), "body"),
    "no body": (lambda m, b: Message(RecordDict(), reply_to=m), "body"),
    "no record": (lambda m, b: Message(RecordDict({"tacit": ConfigRecord({})}), reply_to=m), "body"),
    "another context": (lambda m, b: with_body(m, b.replace(context_of(b), bytes(32))), "context"),
}


def context_of(content: bytes) -> bytes:
    """The second field of every answer, behind its label."""
    start = 4 + int.from_bytes(content[:4], "big") + 4
    return content[start : start + 32]


@pytest.mark.parametrize("step", ["tacit0", "tacit1", "tacit2", "tacit3", "tacit4"])
@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_counts_as_no_answer_and_ends_nothing(
    federation: Federation, tmp_path: Path, case: str, step: str
) -> None:
    make_garbage, reason = GARBAGE[case]

    def what(message: Message, real: Any, site: int) -> Message | None:
        return make_garbage(message, body(real())) if is_step(message, step) and site == 2 else None

    with opened_sums() as opened:
        federation.run(tmp_path / "run", app=Misbehaving(what))
    after = step in ("tacit3", "tacit4")  # its vector is in the sum by then
    assert opened == [(0, 1, 2, 3, 4, 5) if after else (0, 1, 3, 4, 5)]
    assert last_row(tmp_path / "run")["refusals"] == {reason: 1}


def test_C5_an_answer_in_anothers_name_does_not_displace_it(federation: Federation, tmp_path: Path) -> None:
    """Site 2 repeats what site 1 has sent; the sum is over the others, each once."""
    sent: dict[str, bytes] = {}

    def what(message: Message, real: Any, site: int) -> Message | None:
        if site == 1 and message.metadata.message_type.startswith("train."):
            answer: Message = real()
            sent[message.metadata.message_type] = body(answer)
            return answer
        if site == 2 and message.metadata.message_type == "train.tacit0":
            return with_body(message, sent["train.tacit0"])
        return None

    with opened_sums() as opened:
        federation.run(tmp_path / "run", app=Misbehaving(what))
    assert opened == [(0, 1, 3, 4, 5)]


# -- what the server sees ----------------------------------------------------------------------------------------


def test_the_servers_code_receives_masked_updates_only_and_learns_their_sum_or_nothing(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every message to the server and every array that its machine ever holds, against the clients' true vectors."""
    answers: list[Message] = []
    held: list[np.ndarray] = []
    vectors: dict[int, np.ndarray] = {}

    def look(message: Message, real: Any, site: int) -> Message | None:
        if not message.metadata.message_type.startswith("train."):
            return None
        answer: Message = real()
        answers.append(answer)
        if is_step(message, "tacit1"):  # later it is erased
            text = federation.experiment.to_toml()
            session = participant_of(text, federation.sites / str(site), True).session()
            assert session is not None
            vectors[site] = session.encoded.values.copy()
        return answer

    class Looked(ServerMachine):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("collect"):
                for value in object.__getattribute__(self, "__dict__").values():
                    held.extend([value.copy()] if isinstance(value, np.ndarray) else [])
                    held.extend([value.words()] if isinstance(value, PackedSum) and value.length else [])
            return super().__getattribute__(name)

    monkeypatch.setattr(secure_grid, "ServerMachine", Looked)
    with federation.rounds(tmp_path / "run", app=Misbehaving(look)) as rounds:
        assert isinstance(rounds.grid, SecureAggregationGrid)
        rounds.run(federation.initial())
    assert len(answers) == 30 and len(vectors) == 6
    for i, answer in enumerate(answers):
        assert set(answer.content) == ({"tacit", "vector"} if i // 6 == 2 else {"tacit"})
        assert list(answer.content.config_records["tacit"]) == ["body"]
    packed = [answer.content.array_records["vector"]["words"].numpy().tobytes() for answer in answers[12:18]]
    bits = last_row(tmp_path / "run")["bits"]
    true_words = [keep_low(to_words(vector), bits) for vector in vectors.values()]
    wire = b"".join([*(body(answer) for answer in answers), *packed])
    for words, vector in zip(true_words, vectors.values(), strict=True):
        for form in (vector.tobytes(), words.tobytes(), vector.astype(np.int32).tobytes()):
            assert form[:64] not in wire
    for data in packed:
        # An unmasked vector has all its coordinates near zero; these are spread over the whole ring.
        words = unpack(data, bits, len(vectors[0])).astype(np.int64)
        centred = (words + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        assert np.abs(centred).mean() > 2**bits / 8
    assert held
    assert all(not np.array_equal(array, words) for array in held for words in true_words)


def test_the_server_machine_takes_bytes_and_nothing_else(federation: Federation, tmp_path: Path) -> None:
    taken: list[type] = []
    names = ("collect_setup", "collect_dealt", "collect_masked", "collect_confirmed", "collect_unmask")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            real = getattr(ServerMachine, name)

            def noting(self: ServerMachine, *answer: bytes, real: Any = real) -> None:
                taken.extend(map(type, answer))
                real(self, *answer)

            patch.setattr(ServerMachine, name, noting)
        federation.run(tmp_path / "run")
    assert Counter(taken) == {bytes: 30, memoryview: 6}
