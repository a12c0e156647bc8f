"""What one node uploads in place of an answer costs the others nothing: J without processes."""

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity

from server import flower_wire
from server.flower_wire import SteadyGrid

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0
ASKED, NODE = "a" * 64, 1


class Link:
    """A SuperLink's side: an answer that it has checked from outside, and the objects that a node has uploaded."""

    def __init__(self, root: str, tree: ObjectTree, objects: dict[str, bytes]) -> None:
        self.node, self.run, self._runtime_client = None, SimpleNamespace(run_id=1), self
        self.tree, self.objects, self.pulled = tree, objects, 0
        told = answer()
        told.metadata.__dict__["_message_id"] = root
        self.told: list[Any] = [message_to_proto(told)]

    def PullMessages(self, request: Any) -> Any:
        told, self.told = self.told, []
        return SimpleNamespace(messages_list=told, message_object_trees=[self.tree] * len(told))

    def PullObject(self, request: Any) -> PullObjectResponse:
        self.pulled += 1
        content = self.objects.get(request.object_id, b"")
        return PullObjectResponse(object_found=True, object_available=bool(content), object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        pass

    def push_messages(self, messages: Any) -> list[str]:
        return []


def answer(**lies: Any) -> Message:
    asked = Message(RecordDict(), NODE, "train")
    asked.metadata.__dict__["_message_id"] = ASKED
    made = Message(RecordDict({"tacit": ConfigRecord({"body": b"x"})}), reply_to=asked)
    made.metadata.__dict__.update({f"_{name}": value for name, value in lies.items()})
    return made


def uploaded(root: InflatableObject) -> Link:
    objects = {number: each.deflate() for number, each in get_all_nested_objects(root).items()}
    return Link(root.object_id, get_object_tree(root), objects)


def bare(kind: bytes, children: str, body: bytes) -> Link:
    """An object put together by hand; the SuperLink looks at its head alone."""
    content = b"%s %s %d\0%s" % (kind, children.encode(), len(body), body)
    number = hashlib.sha256(content).hexdigest()
    return Link(number, ObjectTree(object_id=number), {number: content})


def without_record() -> Link:
    """A message whose content is arrays, where records are expected."""
    arrays = ArrayRecord({"a": Array("uint8", (1,), "numpy.ndarray", b"x")})
    inside, body = uploaded(arrays), message_to_proto(answer()).SerializeToString()
    link = bare(b"Message", arrays.object_id, body)
    link.tree.children.append(inside.tree)
    link.objects |= inside.objects
    return link


@pytest.mark.parametrize(
    "link",
    [
        lambda: uploaded(RecordDict({"tacit": ConfigRecord({"body": b"x"})})),
        lambda: bare(b"Message", "", message_to_proto(answer()).SerializeToString()),
        lambda: bare(b"Message", "b" * 64, b""),
        lambda: bare(b"Array", "", b"{"),
        lambda: bare(b"Nothing", "", b""),
        without_record,
    ],
    ids=["records", "no content", "content not there", "half an array", "unknown", "arrays"],
)
def test_J_what_is_no_answer_comes_as_a_refusal(link: Any) -> None:
    (got,) = SteadyGrid(link()).pull_messages([ASKED])
    assert got.has_error() and got.error.reason == "refused:malformed"
    assert (got.metadata.src_node_id, got.metadata.reply_to_message_id) == (NODE, ASKED)


def test_J_who_has_answered_what_is_not_for_the_answer_to_say() -> None:
    lie = answer(src_node_id=7, reply_to_message_id="b" * 64, run_id=9)
    (got,) = SteadyGrid(uploaded(lie)).pull_messages([ASKED])  # type: ignore[arg-type]
    assert got.content["tacit"]["body"] == b"x"
    told = got.metadata
    assert (told.src_node_id, told.reply_to_message_id, told.run_id) == (NODE, ASKED, 1)
    assert told.message_id == lie.object_id


@pytest.mark.parametrize(("most", "value"), [("MAX_ANSWER", 20), ("MAX_OBJECTS", 1)])
def test_J_an_answer_that_is_too_large_is_not_fetched(
    most: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_wire, most, value)
    link = uploaded(answer())
    (got,) = SteadyGrid(link).pull_messages([ASKED])  # type: ignore[arg-type]
    assert got.has_error() and got.error.reason == "refused:malformed"
    assert link.pulled <= 1


def test_half_an_answer_that_nobody_waits_for_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    link = uploaded(answer())
    for number in list(link.objects)[1:]:
        del link.objects[number]
    grid = SteadyGrid(link)  # type: ignore[arg-type]
    assert list(grid.pull_messages([ASKED])) == []
    grid.push_messages([])
    assert list(grid.progress) == [ASKED], "it may still come"
    monkeypatch.setattr(flower_wire, "FORGET_SECONDS", 0.0)
    grid.push_messages([])
    assert not grid.progress
