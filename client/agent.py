"""The client as one process: takes messages from the SuperLink, has the installed `ClientApp` answer them.

    join -> receive -> fetch -> (is the bundle agreed?) -> app -> answer -> done

Of the bundle that a run brings, only the hash is looked at. torch is imported with the first training message and
stays. A message lies in a file from when it is taken until it is answered, so that an agent that was killed answers
after its restart; what it answers then is what `client.submission` has kept.

Guarantees:
    Nothing that the server sends is installed, imported or executed.
    A run whose bundle is not agreed gets a refusal with a code, and the agent goes on.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flwr.app import Context, Error, Message, RecordDict

from client.flower_wire import HEARTBEAT_SECONDS, Delivery, Lost, Over, RunInfo, Wire, in_run, jitter
from client.follower import Follower
from client.inbox import Inbox, known_node, note_node
from client.pace import Pace, Rhythm, spread
from tacit.errors import ProtocolError, Refused

if TYPE_CHECKING:
    from flwr.app.user_config import UserConfig

REFUSED: Final = 1000  # as in client.app
MAX_TRIES: Final = 2  # a message during which the process has died this often is refused
MAX_RUNS: Final = 4  # whose contexts are kept
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds, before jitter, when the SuperLink cannot be reached
LOG: Final = logging.getLogger(__name__)


class Agent:
    """One site's part in a federation, for as long as `run` runs.

    Args:
        site: this site's folder.
        wire: to the SuperLink.
        check_bundle: raises `ProtocolError` for the hash of a bundle that the members have not agreed on.
        pace: how often it asks.
        follower: shows it to a person.
        on_joined: called when the SuperLink has taken this node, and with False when it is lost.
        look: called now and then, in a thread of its own; a line for the person, or "". For what is not a message.
    """

    def __init__(
        self,
        site: Path,
        wire: Wire,
        check_bundle: Callable[[bytes], None],
        pace: Pace,
        follower: Follower,
        on_joined: Callable[[bool], None] = lambda joined: None,
        look: Callable[[], str] = lambda: "",
    ) -> None:
        self._site, self._wire, self._check_bundle = site, wire, check_bundle
        self._pace, self._follower, self._on_joined, self._look = pace, follower, on_joined, look
        self._inbox, self._rhythm = Inbox(site / "sessions" / "inbox"), Rhythm()
        self._runs: dict[int, tuple[RunInfo, Context]] = {}
        self._reply: tuple[Message, float] | None = None  # of the message in the inbox, once it is known
        self._told = False  # whether the person was told of it
        self._lost, self._end = threading.Event(), threading.Event()

    def run(self) -> None:
        """Takes part until it is interrupted; then it leaves."""
        heart = threading.Thread(target=self._beat, daemon=True)
        wait, heard = FIRST_WAIT, True
        try:
            while True:
                try:
                    self._join()
                    if not heart.is_alive():
                        heart.start()
                    wait, heard = FIRST_WAIT, True
                    self._serve()
                except (Lost, Over) as error:
                    self._on_joined(False)
                    if heard:  # said once, not with each attempt
                        self._follower.say(f"not connected: {error}; trying again")
                    heard = False
                    self._follower.waiting("waiting for the coordinator")
                    time.sleep(jitter(wait))
                    wait = min(2 * wait, LONGEST_WAIT)
        finally:
            self._end.set()
            self._on_joined(False)
            self._wire.leave()

    def _join(self) -> None:
        note_node(self._site, self._wire.join(known_node(self._site)))
        self._lost.clear()
        self._on_joined(True)
        self._follower.say("connected")
        self._follower.waiting("waiting for the first message")

    def _serve(self) -> None:
        """Answers one message after the other; ends with `Lost`."""
        since, answered = time.monotonic(), ""
        while True:
            delivery = self._inbox.load()
            if delivery is None and (delivery := self._wire.receive()) is not None:
                self._inbox.save(delivery)
                self._rhythm.note(answered, time.monotonic() - since)
            if delivery is None:
                idle = time.monotonic() - since
                if self._lost.wait(spread(self._pace.pause(idle, self._rhythm.expected(answered)))):
                    raise Lost("the SuperLink has forgotten this node")
                continue
            try:
                self._answer(delivery)
            except Over as reason:
                LOG.info("not answered: %s", reason)
            self._inbox.clear()
            self._reply, self._told = None, False
            since, answered = time.monotonic(), delivery.message.metadata.message_type

    def _answer(self, delivery: Delivery) -> None:
        kind = delivery.message.metadata.message_type
        if self._reply is None:
            began = time.monotonic()
            with in_run(delivery.message.metadata.run_id):
                reply = self._reply_to(delivery)
            self._reply = reply, time.monotonic() - began
        reply, seconds = self._reply
        size = self._wire.answer(delivery, reply)
        refusal = str(reply.error.reason) if reply.has_error() else ""
        if not self._told:  # the acknowledgement of what follows may be lost, and then all this comes again
            self._follower.answered(kind, refusal, seconds, size)
            self._told = True
        self._wire.done(delivery)

    def _reply_to(self, delivery: Delivery) -> Message:
        """What the app says, or a refusal with its code."""
        try:
            if self._inbox.tries >= MAX_TRIES:
                raise Refused("failed", "this message has ended the process before")
            context = self._context(delivery.message.metadata.run_id)
            message = self._wire.fetch(delivery)
            self._follower.asked(message.metadata.message_type, round_name(message))
            self._inbox.tried()
            return self._handle(message, context)
        except (ProtocolError, Refused) as error:
            LOG.info("refused: %s", error)
            return Message(Error(REFUSED, f"refused:{error.reason}"), reply_to=delivery.message)

    def _handle(self, message: Message, context: Context) -> Message:
        from client.app import app, reason_of

        try:
            return app(message, context)
        except Exception as error:  # the edge of the process: no message ends it
            if message.metadata.message_type not in known_types():
                return Message(Error(REFUSED, "refused:message-type"), reply_to=message)
            return Message(Error(REFUSED, f"refused:{reason_of(error)}"), reply_to=message)

    def _context(self, run_id: int) -> Context:
        """What the app keeps over the messages of a run; its bundle has been checked.

        Raises:
            ProtocolError: "bundle", or "run-config".
        """
        if run_id not in self._runs:
            info = self._wire.run(run_id)
            config = agreed_config(info, self._check_bundle)
            states = (kept.state for known, kept in self._runs.values() if known.series == info.series)
            state = next(states, RecordDict()) if info.series else RecordDict()
            while len(self._runs) >= MAX_RUNS:
                self._runs.pop(next(iter(self._runs)))
                forget_participants()
            node: UserConfig = {"site": str(self._site)}
            context = Context(run_id, self._wire.node_id, node, state, config, info.series)
            self._runs[run_id] = info, context
        return self._runs[run_id][1]

    def _beat(self) -> None:
        said = ""
        while not self._end.wait(HEARTBEAT_SECONDS):
            try:
                self._wire.heartbeat()
            except (Lost, Over):
                self._lost.set()
                continue
            if (line := self._look()) and line != said:
                self._follower.say(line)
            said = line


def agreed_config(info: RunInfo, check_bundle: Callable[[bytes], None]) -> UserConfig:
    """The configuration of a run whose bundle is agreed on: the experiment, and nothing else.

    Raises:
        ProtocolError: "bundle", or "run-config".
    """
    try:
        digest = bytes.fromhex(info.bundle)
    except ValueError:
        raise ProtocolError("bundle", "its hash is none") from None
    check_bundle(digest)
    experiment = info.config.get("experiment")
    if set(info.config) != {"experiment"} or not isinstance(experiment, str):
        raise ProtocolError("run-config", "a run has an experiment as text, and nothing else")
    return {"experiment": experiment}


def forget_participants() -> None:
    """Lets go of records and models that are kept for runs; a run that goes on reads them again."""
    if (module := sys.modules.get("client.participant")) is not None:
        module.participant_of.cache_clear()
        module.run_of.cache_clear()


def round_name(message: Message) -> str:
    """The round that a training message begins, for a person; empty where it goes on with one, or cannot be read."""
    from client.app import body, fields
    from tacit.secagg.messages import SetupRequest

    try:
        kind = message.metadata.message_type
        if kind in ("train", "train.ideal"):
            return f"round {fields(message)['round']!r}"
        if kind == "train.tacit0":
            asked = SetupRequest.decode(body(message)).invitation
            return f"round {asked.round}" + (f", attempt {asked.attempt}" if asked.attempt > 1 else "")
    except (ProtocolError, KeyError):
        pass  # the app will refuse it
    return ""


def known_types() -> set[str]:
    """Types of messages that the app answers."""
    from client.app import handlers

    return {name.removesuffix(".default") for name in handlers()}
