"""The one line at the client: a `ClientApp` whose answers leave under the secure sum, or not at all.

    from client.bridge import SecureClientApp

    app = SecureClientApp()  # was ClientApp()

Flower's own `mods` cannot do this: a mod is put around a function that the app has registered, and an app that has
none for `train.tacit1` fails before any mod is asked.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from client import submission
from client.app import answering, body, in_body, received_arrays, received_receipts, site_folder
from client.site import Site
from tacit.errors import ConfigError, ProtocolError, Refused

if TYPE_CHECKING:
    from client.bridged import BridgedParticipant
    from tacit.bridge import Asks

WITH_MODEL: Final = frozenset({"tacit", "arrays", "config", "bridge"})  # records of a first message
REASONS: Final = {
    "train": ("single-update", "a plain update; the server needs secure(grid, strategy)"),
    "evaluate": ("evaluation", "plain metrics of one site"),
    "query": ("query", "an answer of one site in the clear"),
}


class SecureClientApp(ClientApp):
    """A `ClientApp` that answers the secure sum by itself and asks its own functions for training and evaluation.

    The functions registered with `@app.train()` and `@app.evaluate()`, their mods and the lifespan work unchanged;
    functions for named actions and for queries are never called.

    Guarantees:
        No answer of the app leaves in the clear: each other message is refused with a reason code.
    """

    def __init__(self, client_fn: None = None, mods: list[Mod] | None = None) -> None:
        """`mods` as for `ClientApp`.

        Raises:
            ConfigError: for a `client_fn`, whose answers are of Flower's older form.
        """
        if client_fn is not None:
            raise ConfigError("a client_fn cannot be bridged; register functions with @app.train()")
        super().__init__(mods=mods)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers one message of the server."""
        return answering(self._answer)(message, context)

    def _answer(self, message: Message, context: Context) -> RecordDict:
        kind = message.metadata.message_type
        if kind == "query.tacit":
            return RecordDict({"tacit": ConfigRecord({"label": Site.open(site_folder(context)).label})})
        if kind not in {f"train.tacit{step}" for step in range(5)}:
            raise Refused(*REASONS.get(kind.partition(".")[0], ("message-type", kind)))
        from client.bridged import bridged  # brings torch, which an idle client does without

        in_memory = context.node_config.get("sessions") == "memory"
        site = bridged(site_folder(context), in_memory)
        site.look_again()
        return self._step(int(kind[-1]), site, message, context)

    def _step(self, step: int, site: BridgedParticipant, message: Message, context: Context) -> RecordDict:
        """M0 to M4, as in `client/app.py`."""
        request = body(message)
        if step == 0:
            self._turn(site, message, context)
            arrays, receipts = received_arrays(message), received_receipts(message)
            return in_body(submission.setup(site, request, arrays, receipts))
        if step == 2:
            answer, vector = submission.mask(site, request)
            words = ArrayRecord({"words": Array(np.frombuffer(vector, dtype=np.uint8))})
            return RecordDict({**in_body(answer), **({"vector": words} if vector else {})})
        return in_body({1: submission.deal, 3: submission.confirm, 4: submission.unmask}[step](site, request))

    def _turn(self, site: BridgedParticipant, message: Message, context: Context) -> None:
        """Tells the participant what the app is asked for, and how."""
        from client.bridged import app_config

        content = message.content
        if unknown := set(content) - WITH_MODEL:
            raise ProtocolError(
                "fields", f"the message has records that nobody has agreed on: {sorted(unknown)}"
            )
        config = content.get("config", ConfigRecord())
        asks = content.config_records.get("bridge", ConfigRecord()).get("asks")
        if asks not in ("train", "evaluate") or not isinstance(config, ConfigRecord):
            raise ProtocolError("fields", "the message does not say what it asks the app for")
        records = RecordDict({name: content[name] for name in ("arrays", "config") if name in content})
        asked = addressed(message, str(asks), records)
        which: Asks = "train" if asks == "train" else "evaluate"
        site.ask(which, app_config(dict(config)), lambda: self._of_app(asked, context))

    def _of_app(self, message: Message, context: Context) -> RecordDict:
        answer = super().__call__(message, context)
        if answer.has_error():
            raise Refused("app-answer", "the app answers with an error")
        return answer.content


def addressed(message: Message, kind: str, content: RecordDict) -> Message:
    """The message as the app would have got it without the bridge."""
    asked: Any = copy.copy(message)
    asked.__dict__["_metadata"] = copy.copy(message.metadata)  # else the type of both would change
    asked.metadata.message_type = kind
    asked.content = content
    return asked  # type: ignore[no-any-return]
