"""The local grid: Flower's `Grid`, in this process."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from client.app import app as client_app
from simulations.local_grid import RUN_ID, LocalGrid, failure, identify_process
from strategies.exchange import exchange
from strategies.grids import count_refusals, spelled


@pytest.fixture(autouse=True)
def identity() -> None:
    identify_process()


def counting(message: Message, context: Context) -> Message:
    """Counts in the node's own context."""
    seen = context.state.config_records.get("seen", ConfigRecord({"times": 0}))
    times = int(str(seen["times"])) + 1
    context.state["seen"] = ConfigRecord({"times": times})
    content = RecordDict({"tacit": ConfigRecord({"node": context.node_id, "times": times})})
    return Message(content, reply_to=message)


def breaking(message: Message, context: Context) -> Message:
    if context.node_id == 3:
        raise ValueError("line one\nline two")
    return counting(message, context)


def to(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), message_type="train", dst_node_id=node) for node in nodes]


def grid(app: Any, nodes: int = 4, executor: Any = None) -> LocalGrid:
    return LocalGrid(app, {"experiment": "text"}, nodes, executor)


def facts(answers: Any) -> list[tuple[int, int]]:
    records = [answer.content.config_records["tacit"] for answer in answers]
    return [(int(str(r["node"])), int(str(r["times"]))) for r in records]


def test_it_is_a_grid_whose_nodes_are_numbered_after_the_server() -> None:
    local = grid(counting)
    assert isinstance(local, Grid)
    assert list(local.get_node_ids()) == [2, 3, 4, 5]
    assert local.run.run_id == RUN_ID
    config = [dict(local.context(node).node_config) for node in local.get_node_ids()]
    assert [c["partition-id"] for c in config] == [0, 1, 2, 3]
    assert all(c["num-partitions"] == 4 and c["sessions"] == "memory" for c in config)
    assert local.context(2).run_config == {"experiment": "text"}


def test_each_message_is_answered_once() -> None:
    local = grid(counting)
    ids = list(local.push_messages(to(2, 3, 2)))
    assert len(set(ids)) == 3
    assert facts(local.pull_messages(ids)) == [(2, 1), (3, 1), (2, 2)]
    assert list(local.pull_messages(ids)) == []
    assert list(local.pull_messages(["m99"])) == []


def test_an_answer_belongs_to_its_message() -> None:
    local = grid(counting)
    ids = list(local.push_messages(to(4, 2)))
    answers = list(local.pull_messages(reversed(ids)))
    assert [a.metadata.reply_to_message_id for a in answers] == list(reversed(ids))
    assert [a.metadata.src_node_id for a in answers] == [2, 4]


def test_a_nodes_context_lives_as_long_as_the_grid_and_is_its_own() -> None:
    local = grid(counting)
    for times in (1, 2, 3):
        assert facts(local.send_and_receive(to(2, 5))) == [(2, times), (5, times)]
    assert local.context(2) is local.context(2)
    assert "seen" not in local.context(3).state
    assert facts(grid(counting).send_and_receive(to(2))) == [(2, 1)]


def test_a_node_that_raises_does_not_end_the_others() -> None:
    answers = list(exchange(grid(breaking), to(2, 3, 4), 5.0))
    assert [answer.has_error() for answer in answers] == [False, True, False]
    [(reason, count)] = count_refusals(answers).items()
    assert reason == f"ValueError: line one (test_local_grid.py:{breaking.__code__.co_firstlineno + 2})"
    assert count == 1


def test_ctrl_c_is_no_failure_of_a_node() -> None:
    def interrupted(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grid(interrupted).push_messages(to(2))


def test_a_failure_says_what_and_where_in_one_line() -> None:
    def own_task() -> None:
        import torch

        torch.zeros(2) + torch.zeros(3)

    with pytest.raises(RuntimeError) as error:
        own_task()
    text = failure(error.value)
    assert text.startswith("RuntimeError: The size of tensor a (2) must match")
    assert f"({Path(__file__).name}:{own_task.__code__.co_firstlineno + 3})" in text
    assert "\n" not in text
    assert failure(ValueError()) == "ValueError: "
    assert len(failure(ValueError("x" * 10_000))) < 250


def test_messages_that_no_handler_knows_are_answered_with_an_error() -> None:
    local = LocalGrid(client_app, {"experiment": ""}, 1)
    kinds = ("evaluate", "train.tacit1", "train.tacit9", "query.other", "query")
    messages = [Message(RecordDict(), message_type=kind, dst_node_id=2) for kind in kinds]
    answers = list(local.send_and_receive(messages))
    assert len(answers) == 5
    assert all(answer.has_error() for answer in answers)


def test_there_is_a_hook_only_with_an_executor() -> None:
    assert not hasattr(grid(counting), "train_cohort")
    given: list[Any] = []
    local = grid(counting, executor=given.append)
    messages = to(2, 4)
    local.train_cohort(messages)
    assert [(m, c.node_id) for m, c in given[0]] == [(messages[0], 2), (messages[1], 4)]
    assert given[0][0][1] is local.context(2)


def test_a_reason_that_a_site_gives_is_nothing_that_a_terminal_obeys() -> None:
    asked = Message(RecordDict(), message_type="train", dst_node_id=2)
    answer = Message(Error(1000, "refused:\x1b]0;all is well\x07\rbudget"), reply_to=asked)
    assert count_refusals([answer]) == {r"\x1b]0;all is well\x07\rbudget": 1}


def test_refusals_are_counted_by_reason_and_spelled() -> None:
    local = grid(breaking)
    answers = [*local.send_and_receive(to(3, 3, 2))]
    counts = count_refusals(answers)
    assert list(counts.values()) == [2]
    assert spelled({"b": 1, "a": 2}) == "a (2), b (1)"
    assert spelled({}) == "none"
