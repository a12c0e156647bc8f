"""What has come of a message over a bad line is not asked for again: E2 without processes."""

import http.server
import threading
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from client.flower_wire import Delivery, Lost, Wire, loopback_key
from tests.unit.test_lost_messages import served

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0


class Downloads:
    """A SuperLink's side of a message: every third request for an object is lost, whoever asks it and when."""

    def __init__(self, message: Message) -> None:
        self.objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        self.asked, self.told, self._one_at_a_time = 0, Counter[str](), threading.Lock()

    def __call__(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        object_id = PullObjectRequest.FromString(body).object_id
        with self._one_at_a_time:
            self.asked += 1
            is_lost = self.asked % 3 == 0
            self.told[object_id] += not is_lost
        handler.close_connection = True
        if is_lost:
            return
        content = self.objects[object_id]
        found = PullObjectResponse(object_found=True, object_available=True, object_content=content)
        answer = bytes(found.SerializeToString())
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(answer)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(answer)


def test_E2_what_has_come_of_a_message_is_not_asked_for_again(tmp_path: Path) -> None:
    """Of twelve parts, all would come at once in one try out of a hundred."""
    sent = Message(RecordDict({str(i): ConfigRecord({"x": i}) for i in range(11)}), 7, "train.tacit2")
    sent.metadata.__dict__["_message_id"] = sent.object_id
    downloads, asked = Downloads(sent), Delivery(sent, get_object_tree(sent))
    key, tries = loopback_key(tmp_path / "node.key"), 0
    with served(downloads) as address, closing(Wire(address, key, None, registers=False)) as wire:
        while True:
            tries += 1
            assert tries <= 12, "each try but the last loses one request at least, and few more"
            with suppress(Lost):
                got = wire.fetch(asked)
                break
    assert [got.content[str(i)]["x"] for i in range(11)] == list(range(11))
    assert downloads.told.keys() == downloads.objects.keys()
    assert downloads.told.total() < 2 * len(downloads.objects), "but for those that were under way"
    assert not wire._taken.contents, "nothing of it is kept longer"
