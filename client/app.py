"""The `ClientApp`: one function per message type, the same in simulation and in deployment.

    query.tacit   who is this site?                           train.tacit0  M0: train, answer with keys
    train         one plain update (policy must allow it)     train.tacit2  M2: answer with the masked update
    train.ideal   one encoded update (simulation only)        train.tacit4  M4: answer with the own mask's seed

Anything else is refused by Flower, which knows no handler for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client import plain, submission
from client.site import Site
from tacit.errors import ProtocolError, Refused, TacitError

if TYPE_CHECKING:
    from client.participant import Participant

REFUSED = 1000  # Flower error code of a refusal; its reason is "refused:" and a code

app = ClientApp()

Handler = Callable[[Message, "Participant"], RecordDict]


def answering(handler: Handler) -> Callable[[Message, Context], Message]:
    """Finds the participant and turns a refusal into an answer with a reason code; the process goes on."""

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return Message(handler(message, ready(message, context)), reply_to=message)
        except (Refused, ProtocolError) as error:
            return Message(Error(REFUSED, f"refused:{error.reason}"), reply_to=message)
        except TacitError:
            # What is wrong with this site's data or configuration is its own business.
            return Message(Error(REFUSED, "refused:unavailable"), reply_to=message)

    return answer


def site_folder(context: Context) -> Path:
    """This site's folder: `site` of the node's configuration, or the simulated site with the node's number."""
    if "site" in context.node_config:
        return Path(str(context.node_config["site"]))
    return Path(os.environ["TACIT_SITES"]) / str(context.node_config["partition-id"])


def participant(context: Context) -> Participant:
    """The participant that this node is, in the run that the message belongs to."""
    from client.participant import participant_of  # brings torch, which an idle client does without

    in_memory = context.node_config.get("sessions") == "memory"
    return participant_of(str(context.run_config["experiment"]), site_folder(context), in_memory)


def ready(message: Message, context: Context) -> Participant:
    """The participant, reading its records with the scaling that came with the message, if any."""
    client = participant(context)
    if "scaling" in message.content:
        client.scale(str(message.content.config_records["scaling"]["constants"]))
    return client


def received_arrays(message: Message) -> dict[str, NDArray[np.float32]]:
    """The global model of a training message."""
    record = message.content["arrays"]
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("model", "the message carries no model")
    return {name: array.numpy() for name, array in record.items()}


def fields(message: Message) -> ConfigRecord:
    """Tacit's own fields of a message."""
    record = message.content.get("tacit")
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("fields", "the message has no record named tacit")
    return record


def body(message: Message) -> bytes:
    """The canonical bytes of a protocol message."""
    value = fields(message).get("body")
    if not isinstance(value, bytes):
        raise ProtocolError("body", "the message has no body")
    return value


def in_body(content: bytes) -> RecordDict:
    """An answer of the protocol: canonical bytes in one field."""
    return RecordDict({"tacit": ConfigRecord({"body": content})})


@app.query("tacit")
def who(message: Message, context: Context) -> Message:
    """The label of this site, so that the server can address it; Flower's node ids are routing labels only."""
    label = Site.open(site_folder(context)).label
    return Message(RecordDict({"tacit": ConfigRecord({"label": label})}), reply_to=message)


@app.train()
@answering
def train(message: Message, participant: Participant) -> RecordDict:
    """A single update in the clear."""
    return plain.update(participant, fields(message), received_arrays(message))


@app.train("ideal")
@answering
def train_ideal(message: Message, participant: Participant) -> RecordDict:
    """A single encoded update in the clear: the ideal sum of a simulation."""
    return plain.encoded(participant, fields(message), received_arrays(message))


@app.train("tacit0")
@answering
def setup(message: Message, participant: Participant) -> RecordDict:
    """M0."""
    return in_body(submission.setup(participant, body(message), received_arrays(message)))


@app.train("tacit2")
@answering
def mask(message: Message, participant: Participant) -> RecordDict:
    """M2."""
    return in_body(submission.mask(participant, body(message)))


@app.train("tacit4")
@answering
def unmask(message: Message, participant: Participant) -> RecordDict:
    """M4."""
    return in_body(submission.unmask(participant, body(message)))


def handlers() -> dict[str, Any]:
    """Message type -> function, as registered; what a test compares with the list at the top."""
    return dict(app._registered_funcs)
