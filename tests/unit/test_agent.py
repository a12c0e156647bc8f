"""The agent without a network: pace, inbox, what it refuses; and its connection to servers that mean no good.

Longer than 400 lines because all servers that mean no good are here.
"""

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

from client.agent import MAX_TRIES, Agent, agreed_config, known_types
from client.flower_wire import Delivery, Lost, Over, RunInfo, Wire, loopback_key
from client.follower import Follower
from client.inbox import Inbox, alone, known_node, note_node
from client.pace import PACES, Rhythm, spread
from client.running import check_bundle_of
from client.site import Site, set_data
from tacit.errors import ConfigError, ProtocolError, StorageError
from tests.architecture.test_flower_apps import BUNDLE_HASH
from tests.front_world import Authority

DAY = timedelta(days=1)

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 0


def message(kind: str = "query.tacit", content: RecordDict | None = None) -> Message:
    made = Message(content or RecordDict(), 7, kind)
    made.metadata.__dict__["_message_id"] = "a" * 64
    return made


def delivery(kind: str = "query.tacit") -> Delivery:
    return Delivery(message(kind), ObjectTree(object_id="a" * 64))


@pytest.mark.parametrize("profile", PACES)
def test_an_agent_asks_soon_after_a_message_and_rarely_when_nothing_comes(profile: str) -> None:
    pace = PACES[profile]
    pauses = [pace.pause(idle) for idle in (0, 0.1, 1, 3, 10, 1000)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pace.quickest and pauses[-1] == pace.slowest
    assert pace.pause(3) <= 0.3


def test_within_a_round_an_agent_asks_when_the_next_message_is_likely() -> None:
    """Each question costs the SuperLink as much as an answer does."""
    rhythm, pace = Rhythm(), PACES[""]
    for seconds in (0.5, 0.4):
        rhythm.note("train", seconds)
    assert rhythm.expected("train") == 0.0, "nothing is known yet"
    rhythm.note("train", 20.0)
    expected = rhythm.expected("train")
    assert expected == pytest.approx(0.28), "one long wait does not make the next ones longer"
    assert pace.pause(0.0, expected) == pytest.approx(0.28)
    assert pace.pause(0.27, expected) == pace.quickest and pace.pause(3.0, expected) == 0.3
    for seconds in (0.05, 0.05, 0.05):
        rhythm.note("train", seconds)
    assert pace.pause(0.0, rhythm.expected("train")) == pace.quickest, (
        "and it follows one that becomes quicker"
    )
    assert pace.pause(0.0, 1000.0) == pace.slowest, "whatever was seen, it asks"
    assert rhythm.expected("train.tacit0") == 0.0
    drawn = [spread(1.0) for _ in range(1000)]
    assert 0.75 <= min(drawn) < 0.8 and 1.2 < max(drawn) <= 1.25


def test_an_edge_agent_asks_rarer() -> None:
    assert PACES["edge"].slowest >= 5 * PACES[""].slowest


def test_a_message_that_was_taken_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "sessions" / "inbox"
    first = Inbox(path)
    first.save(delivery("train.tacit0"))
    assert Inbox(path).load() is not None
    first.tried()
    again = Inbox(path)
    found = again.load()
    assert found is not None and again.tries == 1
    assert found.message.metadata.message_type == "train.tacit0"
    assert found.message.metadata.message_id == "a" * 64
    assert found.tree.object_id == "a" * 64
    assert path.stat().st_mode & 0o077 == 0
    again.clear()
    assert Inbox(path).load() is None


@pytest.mark.parametrize("content", [b"", b"\0", b"\1garbage", b"\1\x0a\xff"])
def test_half_an_inbox_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "inbox").write_bytes(content)
    assert Inbox(tmp_path / "inbox").load() is None


def test_a_second_agent_for_one_site_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(StorageError, match="another agent"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def refuse_all(digest: bytes) -> None:
    raise ProtocolError("bundle", "not listed")


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (RunInfo("00" * 32, {"experiment": "x"}, 0), "bundle"),
        (RunInfo("no hash", {"experiment": "x"}, 0), "bundle"),
        (RunInfo("", {"experiment": "x"}, 0), "bundle"),
    ],
)
def test_B22_a_bundle_that_is_not_agreed_is_refused(info: RunInfo, reason: str) -> None:
    with pytest.raises(ProtocolError) as error:
        agreed_config(info, refuse_all)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "config",
    [{}, {"experiment": 1}, {"experiment": "x", "sessions": "memory"}, {"experiment": "x", "site": "/"}],
)
def test_B22_a_run_brings_an_experiment_and_nothing_else(config: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as error:
        agreed_config(RunInfo("00" * 32, config, 0), lambda digest: None)
    assert error.value.reason == "run-config"
    assert agreed_config(RunInfo("00" * 32, {"experiment": "x"}, 0), lambda digest: None) == {
        "experiment": "x"
    }


class OneMessage:
    """In place of a wire: one message, whose answer is kept."""

    node_id = 7

    def __init__(self, asked: Message, info: RunInfo) -> None:
        self.asked, self.info = asked, info
        self.answers: list[Message] = []
        self.runs = self.fetched = 0
        self.fails: list[Exception] = []

    def run(self, run_id: int) -> RunInfo:
        self.runs += 1
        return self.info

    def fetch(self, asked: Delivery) -> Message:
        self.fetched += 1
        return self.asked

    def answer(self, asked: Delivery, reply: Message) -> int:
        if self.fails:
            raise self.fails.pop()
        self.answers.append(reply)
        return 1

    def done(self, asked: Delivery) -> None:
        pass


class Shown:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def now(self, text: str) -> None:
        pass


def agent_with(tmp_path: Path, wire: OneMessage, check: Any = lambda digest: None) -> tuple[Agent, Shown]:
    (tmp_path / "site.toml").write_text('label = "here"\ndata_set = "d"\n')
    shown = Shown()
    return Agent(tmp_path, wire, check, PACES[""], Follower(shown)), shown  # type: ignore[arg-type]


GOOD = RunInfo("00" * 32, {"experiment": 'name = "x"\n'}, 0)


def test_E3_an_answer_is_said_once_however_often_its_acknowledgement_is_lost(tmp_path: Path) -> None:
    class Deaf(OneMessage):
        num_done = 0

        def done(self, asked: Delivery) -> None:
            self.num_done += 1
            if self.num_done < 3:
                raise Lost("on its way back")

    wire = Deaf(message("query.unheard_of"), GOOD)
    agent, shown = agent_with(tmp_path, wire)
    agent._inbox.save(delivery("query.unheard_of"))
    for _ in range(2):
        with pytest.raises(Lost):
            agent._answer(delivery("query.unheard_of"))
    agent._answer(delivery("query.unheard_of"))
    assert wire.num_done == 3
    assert len(shown.lines) == 1


def test_an_app_answers_in_this_process(tmp_path: Path) -> None:
    wire = OneMessage(message(), GOOD)
    agent, _ = agent_with(tmp_path, wire)
    agent._inbox.save(delivery())
    agent._answer(delivery())
    assert wire.answers[0].content["tacit"] == ConfigRecord({"label": "here"})


def test_a_run_whose_bundle_is_not_agreed_gets_a_refusal_and_its_content_is_not_fetched(
    tmp_path: Path,
) -> None:
    wire = OneMessage(message(), GOOD)
    agent, shown = agent_with(tmp_path, wire, refuse_all)
    agent._answer(delivery())
    assert wire.answers[0].error.reason == "refused:bundle"
    assert wire.fetched == 0
    assert "refused:bundle" in shown.lines[0]


@pytest.mark.parametrize("kind", ["train.x", "evaluate", "query", "query.get_parameters"])
def test_B21_another_type_is_refused(kind: str, tmp_path: Path) -> None:
    assert kind not in known_types()
    wire = OneMessage(message(kind), GOOD)
    agent, _ = agent_with(tmp_path, wire)
    agent._inbox.save(delivery(kind))
    agent._answer(delivery(kind))
    assert wire.answers[0].error.reason == "refused:message-type"


def test_a_message_that_kills_the_process_is_refused_after_some_tries(tmp_path: Path) -> None:
    wire = OneMessage(message(), GOOD)
    Inbox(tmp_path / "sessions" / "inbox").save(delivery())
    for _ in range(MAX_TRIES):
        Inbox(tmp_path / "sessions" / "inbox").tried()
    agent, _ = agent_with(tmp_path, wire)
    asked = agent._inbox.load()
    assert asked is not None
    agent._answer(asked)
    assert wire.answers[0].error.reason == "refused:failed"
    assert wire.fetched == 0


def test_an_answer_is_made_once_and_sent_until_it_is_there(tmp_path: Path) -> None:
    wire = OneMessage(message(), GOOD)
    agent, _ = agent_with(tmp_path, wire)
    agent._inbox.save(delivery())
    wire.fails = [Lost("away"), Lost("away")]
    for _ in range(2):
        with pytest.raises(Lost):
            agent._answer(delivery())
    agent._answer(delivery())
    assert wire.fetched == 1 and len(wire.answers) == 1


def test_in_a_federation_a_roster_without_bundles_allows_none() -> None:
    class Nothing:
        bundles: frozenset[bytes] = frozenset()

        def check_bundle(self, digest: bytes) -> None:
            raise ProtocolError("bundle", "not listed")

    class Here:
        def roster(self) -> Nothing:
            return Nothing()

    digest = bytes.fromhex(BUNDLE_HASH)
    check_bundle_of(Here(), needs_list=False)(digest)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="bundle"):
        check_bundle_of(Here(), needs_list=True)(digest)  # type: ignore[arg-type]


@contextmanager
def server(
    answer: Any, pushed: list[PushMessagesRequest] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A server that says what `answer` makes it say, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked.append(self.path)
            body = self.rfile.read(int(self.headers["content-length"]))
            if pushed is not None and self.path.endswith("/push-messages"):
                pushed.append(PushMessagesRequest.FromString(body))
            answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        if tls is not None:
            made.socket = tls.wrap_socket(made.socket, server_side=True, do_handshake_on_connect=False)
        made.handle_error = lambda *arguments: None  # type: ignore[method-assign]  # a handshake that failed
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{made.server_port}", asked
        made.shutdown()


def said(status: int, headers: dict[str, str], body: bytes = b"") -> Any:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (said(307, {"Location": "/elsewhere", "Content-Length": "0"}), Over),
        (said(403, {"Content-Length": "2"}, b"{}"), Over),
        (said(500, {"Content-Length": "2"}, b"no"), Over),
        (said(401, {"Content-Length": "2"}, b"{}"), Lost),
        (said(404, {"Content-Length": "0"}), Lost),
        (said(503, {"Content-Length": "0"}), Lost),
        (said(200, {"Content-Length": str(2**33)}), Lost),
        (said(200, {}, b"without an end"), Lost),
        (said(200, {"Content-Length": "4", "Content-Encoding": "gzip"}, b"bomb"), Lost),
        (said(200, {"Content-Length": "9"}, b"no protobuf"[:9]), Lost),
    ],
)
def test_J9_no_answer_of_a_server_is_more_than_lost_or_over_and_no_redirect_is_followed(
    answer: Any, kind: type[Exception], tmp_path: Path
) -> None:
    with (
        server(answer) as (address, asked),
        closing(Wire(address, loopback_key(tmp_path / "node.key"), None, registers=False)) as wire,
    ):
        began = time.monotonic()
        with pytest.raises(kind):
            wire.receive()
        assert time.monotonic() - began < 10
        assert asked == ["/v1/fleet/pull-messages"]


@pytest.mark.parametrize(
    "headers", [{"Content-Length": str(2**33)}, {}, {"Content-Length": "4", "Content-Encoding": "gzip"}]
)
def test_B28_an_answer_of_unknown_or_too_great_length_is_not_read(
    headers: dict[str, str], tmp_path: Path
) -> None:
    with (
        server(said(200, headers, b"bomb")) as (address, _),
        closing(Wire(address, loopback_key(tmp_path / "node.key"), None, registers=False)) as wire,
        pytest.raises(Lost, match="of no length, too long, or compressed"),
    ):
        wire.receive()


def test_an_answer_has_the_same_number_after_a_restart(tmp_path: Path) -> None:
    """So a half-sent answer is completed, and one that was sent is known."""
    pushed: list[PushMessagesRequest] = []

    def take(handler: http.server.BaseHTTPRequestHandler) -> None:
        said(200, {"Content-Length": "0"})(handler)

    with server(take, pushed) as (address, _):
        asked = delivery()
        for _ in range(2):
            with closing(Wire(address, loopback_key(tmp_path / "node.key"), None, registers=False)) as wire:
                answer = Message(RecordDict({"r": ConfigRecord({"x": 1})}), reply_to=asked.message)
                wire.answer(asked, answer)
            time.sleep(0.01)
    numbers = {push.messages_list[0].metadata.message_id for push in pushed}
    assert len(pushed) == 2 and len(numbers) == 1


@pytest.mark.parametrize(
    ("case", "names", "valid"),
    [
        ("good", ["localhost", "127.0.0.1"], (-DAY, DAY)),
        ("wrong name", ["elsewhere.example"], (-DAY, DAY)),
        ("expired", ["127.0.0.1"], (-2 * DAY, -DAY)),
        ("not yet valid", ["127.0.0.1"], (DAY, 2 * DAY)),
        ("another CA", ["127.0.0.1"], (-DAY, DAY)),
        ("TLS 1.2", ["127.0.0.1"], (-DAY, DAY)),
    ],
)
def test_J3_J4_J6_a_server_without_a_certificate_of_this_ca_for_this_name_is_told_nothing(
    case: str, names: list[str], valid: tuple[timedelta, timedelta], tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    pair = (other if case == "another CA" else authority).issue("server", tuple(names), valid)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if case == "TLS 1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    key = loopback_key(tmp_path / "node.key")
    with (
        server(said(200, {"Content-Length": "0"}), tls=context) as (address, asked),
        closing(Wire(address, key, authority.pem, registers=False)) as wire,
    ):
        if case == "good":
            assert wire.receive() is None and asked
        else:
            with pytest.raises(Lost):
                wire.receive()
            assert asked == []


def test_nobody_there_is_lost(tmp_path: Path) -> None:
    wire = Wire("127.0.0.1:9", loopback_key(tmp_path / "node.key"), None, registers=True)
    with closing(wire), pytest.raises(Lost):
        wire.join(0)


def test_K2_the_key_of_a_node_stays_the_same_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = loopback_key(path).private_numbers()
    assert path.stat().st_mode & 0o777 == 0o600
    assert loopback_key(path).private_numbers() == first
    path.chmod(0o640)
    with pytest.raises(StorageError, match="lets other users in"):
        loopback_key(path)


def test_the_file_with_the_records_is_named_and_nothing_else_changes(tmp_path: Path) -> None:
    table = tmp_path / "new table.csv"
    table.write_text("a\n1\n")
    (tmp_path / "site.toml").write_text(
        '# ours\nlabel = "here"\ndata = "old.csv"\ndata_set = "d"  # for ever\n'
    )
    set_data(tmp_path, table)
    text = (tmp_path / "site.toml").read_text()
    assert Site.open(tmp_path).data == table
    assert "# ours" in text and 'data_set = "d"  # for ever' in text
    set_data(tmp_path, table)
    assert (tmp_path / "site.toml").read_text() == text
    with pytest.raises(ConfigError, match="is neither a file nor a folder"):
        set_data(tmp_path, tmp_path / "none.csv")


def test_one_line_a_round() -> None:
    shown = Shown()
    follower = Follower(shown)
    for step in range(5):
        follower.asked(f"train.tacit{step}", "round 3" if step == 0 else "")
        follower.answered(f"train.tacit{step}", "", 0.5, 100_000)
    assert [line[10:] for line in shown.lines] == ["round 3: done, 2.5 s of work, 500 kB sent"]
    follower.asked("train.tacit0", "round 4")
    follower.answered("train.tacit0", "refused:budget-spent", 0.1, 100)
    assert shown.lines[1][10:] == "round 4: refused:budget-spent"
    follower.answered("train.\x1b[2J", "refused:message-type", 0.1, 100)
    assert shown.lines[2][10:] == r"train.\x1b[2J: refused:message-type"


def test_the_node_that_was_here_is_known_after_a_restart(tmp_path: Path) -> None:
    assert known_node(tmp_path) == 0
    note_node(tmp_path, 2**64 - 1)
    assert known_node(tmp_path) == 2**64 - 1
    (tmp_path / "flower" / "node.json").write_text("{")
    assert known_node(tmp_path) == 0
