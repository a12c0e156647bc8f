"""A round without a secure sum, with clients that lie; and how the server finds its members."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from server.state import read_rounds
from strategies import exchange
from strategies.grids import is_update
from tacit.errors import RunFailed
from tests.unit.small_federation import Federation, Misbehaving, refusal


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    folder = tmp_path_factory.mktemp("plain")
    return Federation(folder, "secure_aggregation.enabled=false", "training.rounds=1")


def last_row(folder: Path) -> dict[str, Any]:
    return read_rounds(folder / "rounds.jsonl")[-1]


def spoiled(answer: Message, **records: Any) -> Message:
    content = RecordDict({**answer.content, **records})
    return Message(content, reply_to=answer)


def arrays_of(answer: Message) -> dict[str, np.ndarray]:
    return {k: a.numpy().copy() for k, a in answer.content.array_records["arrays"].items()}


def with_arrays(answer: Message, **changes: Any) -> RecordDict:
    arrays = {k: Array(a) for k, a in arrays_of(answer).items()} | changes
    return RecordDict({**answer.content, "arrays": ArrayRecord(arrays)})


def with_metrics(answer: Message, **changes: Any) -> RecordDict:
    return RecordDict(
        {**answer.content, "metrics": MetricRecord({**answer.content.metric_records["metrics"], **changes})}
    )


def bomb() -> Array:
    """136 bytes whose header asks for 8 TB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000000,), }"
    data = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n" + bytes(8)
    return Array("float32", (2,), "numpy.ndarray", data)


def nan_like(answer: Message, name: str) -> Array:
    array = arrays_of(answer)[name]
    array.flat[0] = np.nan
    return Array(array)


BAD = {
    "wrong length": lambda a, k: with_arrays(a, **{k: Array(np.zeros(1, dtype=np.float32))}),
    "wrong dtype": lambda a, k: with_arrays(a, **{k: Array(arrays_of(a)[k].astype(np.float64))}),
    "an array more": lambda a, k: with_arrays(a, more=Array(np.zeros(1, dtype=np.float32))),
    "npy bomb": lambda a, k: with_arrays(a, **{k: bomb()}),
    "not finite": lambda a, k: with_arrays(a, **{k: nan_like(a, k)}),
    "no arrays": lambda a, k: RecordDict({"metrics": a.content["metrics"]}),
    "no metrics": lambda a, k: RecordDict({"arrays": a.content["arrays"]}),
    "nothing": lambda a, k: RecordDict(),
    "no weight": lambda a, k: RecordDict({**a.content, "metrics": MetricRecord({"accuracy": 1.0})}),
    "weight zero": lambda a, k: with_metrics(a, **{"num-examples": 0.0}),
    "weight negative": lambda a, k: with_metrics(a, **{"num-examples": -1.0}),
    "weight not a number": lambda a, k: with_metrics(a, **{"num-examples": float("nan")}),
    "weights": lambda a, k: with_metrics(a, **{"num-examples": [1.0, 2.0]}),
    "a metric more": lambda a, k: with_metrics(a, secret=3.0),
    "other stuff": lambda a, k: RecordDict({**a.content, "more": ConfigRecord({"a": 1})}),
}


@pytest.mark.parametrize("case", BAD)
def test_C13_one_malformed_update_is_dropped_and_the_round_goes_on(
    plain: Federation, tmp_path: Path, case: str
) -> None:
    first = next(iter(plain.initial()))

    def one_lies(message: Message, real: Any, site: int) -> Message | None:
        if site != 2 or message.metadata.message_type != "train":
            return None
        return Message(BAD[case](real(), first), reply_to=message)

    harmless = case == "other stuff"
    plain.run(tmp_path / "run", app=Misbehaving(one_lies))
    row = last_row(tmp_path / "run")
    assert row["refusals"] == ({} if harmless else {"malformed": 1})
    assert (plain.labels[2] in row["survivors"]) == harmless


def test_an_error_from_the_superlink_itself_does_not_end_the_round(plain: Federation, tmp_path: Path) -> None:
    """Such an answer names no node as its sender."""

    def lost(message: Message, real: Any, site: int) -> Message | None:
        if site != 1 or message.metadata.message_type != "train":
            return None
        answer = Message(Error(3, "Node Unavailable"), reply_to=message)
        answer.metadata.__dict__["_src_node_id"] = 1
        return answer

    plain.run(tmp_path / "run", app=Misbehaving(lost))
    assert last_row(tmp_path / "run")["refusals"] == {"Node Unavailable": 1}
    assert len(last_row(tmp_path / "run")["survivors"]) == 5


def test_a_round_without_any_update_ends_the_run_with_the_reasons(plain: Federation, tmp_path: Path) -> None:
    def nobody(message: Message, real: Any, site: int) -> Message | None:
        if message.metadata.message_type != "train":
            return None
        if site == 0:
            raise RuntimeError("disk on fire")
        return refusal(message, "budget-spent")

    with pytest.raises(RunFailed) as failure:
        plain.run(tmp_path / "run", app=Misbehaving(nobody))
    assert "round 1: no update arrived" in str(failure.value)
    assert "RuntimeError: disk on fire" in str(failure.value)
    assert "budget-spent (5)" in str(failure.value)


def test_an_honest_update_is_an_update(plain: Federation, tmp_path: Path) -> None:
    seen: list[bool] = []

    def look(message: Message, real: Any, site: int) -> Message | None:
        if message.metadata.message_type != "train":
            return None
        answer: Message = real()
        seen.append(is_update(answer.content, message.content))
        return answer

    plain.run(tmp_path / "run", app=Misbehaving(look))
    assert seen == [True] * 6


def test_a_node_that_is_still_starting_is_asked_again(plain: Federation, tmp_path: Path) -> None:
    asked = Counter[int]()

    def late(message: Message, real: Any, site: int) -> Message | None:
        asked[site] += message.metadata.message_type == "query.tacit"
        if site == 4 and asked[site] < 3 and message.metadata.message_type == "query.tacit":
            raise RuntimeError("not yet")
        return None

    with plain.rounds(tmp_path / "run", app=Misbehaving(late)) as rounds:
        assert list(rounds.nodes) == plain.labels
    assert asked == {0: 1, 1: 1, 2: 1, 3: 1, 4: 3, 5: 1}


def test_sites_that_never_come_are_named(plain: Federation, tmp_path: Path) -> None:
    def gone(message: Message, real: Any, site: int) -> Message | None:
        return refusal(message, "who") if site in (1, 3) else None

    real = exchange.find_members
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.small_federation.find_members", lambda g, labels, s: real(g, labels, 0.2))
        with (
            pytest.raises(RunFailed, match="sites that never came: site-2, site-4"),
            plain.rounds(tmp_path / "run", app=Misbehaving(gone)),
        ):
            pass
