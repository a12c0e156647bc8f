"""The `ClientApp`: one function per message type, the same in simulation and in deployment.

    query.tacit   who is this site?                           train.tacit0  M0: train, answer with keys
    train         one plain update (policy must allow it)     train.tacit1  M1: deal shares
    train.ideal   one encoded update (simulation only)        train.tacit2  M2: answer with the masked update
                                                              train.tacit3  M3: sign whose vectors are in the sum
                                                              train.tacit4  M4: open one share of each client

Anything else is refused by Flower, which knows no handler for it.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client import plain, submission
from client.refusals import refusals_of
from client.site import Site
from tacit.encoding import VARIATE
from tacit.errors import ProtocolError, Refused, TacitError
from tacit.npy import read_npy

if TYPE_CHECKING:
    from client.participant import Participant

REFUSED: Final = 1000  # Flower error code of a refusal; its reason is "refused:" and a code
LOCAL_REASONS: Final = frozenset({"not-finite", "weight", "metric-bound", "range"})  # they depend on records
LOG: Final = logging.getLogger(__name__)

app = ClientApp()

Handler = Callable[[Message, Context], RecordDict]


def answering(handler: Handler) -> Callable[[Message, Context], Message]:
    """Turns an error into an answer with a reason code; the process goes on.

    Guarantees:
        Of an error, nothing but a reason code leaves the site.
    """

    @wraps(handler)
    def answer(message: Message, context: Context) -> Message:
        try:
            return Message(handler(message, context), reply_to=message)
        except Exception as error:  # the edge: Flower would send the text of what is not caught to the server
            note_refusal(message, context, error)
            return Message(Error(REFUSED, f"refused:{reason_of(error)}"), reply_to=message)

    return answer


def reason_of(error: Exception) -> str:
    """The code that may leave for an error. What else it says is this site's own business, and goes to its log.

    An error that is none of ours may quote a cell of a record, so that of it the log has only type and place.
    """
    if isinstance(error, Refused | ProtocolError):
        LOG.info("refused: %s", error)
        return "unavailable" if error.reason in LOCAL_REASONS else error.reason
    if isinstance(error, TacitError):
        LOG.warning("%s", error)
        return reason_of_fault(error)
    places = " <- ".join(
        f"{f.filename}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__))
    )
    LOG.error("%s in %s", type(error).__name__, places)
    return reason_of_fault(error)


def note_refusal(message: Message, context: Context, error: Exception) -> None:
    """Enters a refusal in the site's audit log, with its true code. It stays refused where that fails."""
    if context.node_config.get("sessions") == "memory":
        return
    reason = error.reason if isinstance(error, Refused | ProtocolError) else reason_of_fault(error)
    try:
        refusals_of(site_folder(context)).note(message.metadata.message_type, reason)
    except (TacitError, OSError, KeyError) as failure:
        LOG.warning("a refusal is not in the audit log: %s", type(failure).__name__)


def reason_of_fault(error: Exception) -> str:
    """The code of an error that is no refusal."""
    return "unavailable" if isinstance(error, TacitError) else "failed"


def site_folder(context: Context) -> Path:
    """This site's folder: `site` of the node's configuration, or the simulated site with the node's number."""
    if "site" in context.node_config:
        return Path(str(context.node_config["site"]))
    return Path(os.environ["TACIT_SITES"]) / str(context.node_config["partition-id"])


def participant(context: Context) -> Participant:
    """The participant that this node is, in the run that the message belongs to."""
    from client.participant import participant_of  # brings torch, which an idle client does without

    in_memory = context.node_config.get("sessions") == "memory"
    found = participant_of(str(context.run_config["experiment"]), site_folder(context), in_memory)
    found.look_again()
    return found


def ready(message: Message, context: Context) -> Participant:
    """The participant, with the scaling and the clip norm in force that came with the message, if any.

    The later messages of a round bring neither: the round's vector is finished by then.
    """
    client = participant(context)
    InForce.of(message.content).applied_to(client)
    return client


class InForce(NamedTuple):
    """What a message says beside the model.

    Attributes:
        scaling: constants of a federated scaling, as text; None where it brings none.
        clip: the clip norm in force, as text, empty where it does not adapt; None where it brings no model.
        variate: the server's control variate, empty where there is none; None where it brings no model.
    """

    scaling: str | None
    clip: str | None
    variate: dict[str, NDArray[np.float32]] | None

    @classmethod
    def of(cls, content: RecordDict) -> InForce:
        """`ProtocolError` where a record is not of this form."""
        scaling = _text(content, "scaling", "constants") if "scaling" in content else None
        if "arrays" not in content:
            return cls(scaling, None, None)
        clip = _text(content, "clip", "norm") if "clip" in content else ""
        return cls(scaling, clip, _arrays(content, VARIATE) if VARIATE in content else {})

    def applied_to(self, client: Participant) -> None:
        """Takes it over; `Refused` where this site does not allow it."""
        if self.scaling is not None:
            client.scale(self.scaling)
        if self.clip is not None:
            client.clip_at(self.clip)
        if self.variate is not None:
            client.variate = self.variate


def _text(content: RecordDict, name: str, key: str) -> str:
    """A text in one of the records beside the model."""
    record = content[name]
    value = record.get(key) if isinstance(record, ConfigRecord) else None
    if not isinstance(value, str):
        raise ProtocolError("fields", f"the record {name} has no text {key}")
    return value


def received_arrays(message: Message) -> dict[str, NDArray[np.float32]]:
    """The global model of a training message."""
    return _arrays(message.content, "arrays")


def _arrays(content: RecordDict, name: str) -> dict[str, NDArray[np.float32]]:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("model", "the message carries no model")
    return {name: read_npy(array.data) for name, array in record.items()}


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


def received_receipts(message: Message) -> list[bytes]:
    """The server's newest receipts, beside an invitation."""
    shown = fields(message).get("receipts", [])
    if not isinstance(shown, list) or not all(isinstance(receipt, bytes) for receipt in shown):
        raise ProtocolError("fields", "the receipts are no list of bytes")
    return [receipt for receipt in shown if isinstance(receipt, bytes)]


def in_body(content: bytes) -> RecordDict:
    """An answer of the protocol: canonical bytes in one field."""
    return RecordDict({"tacit": ConfigRecord({"body": content})})


@app.query("tacit")
@answering
def who(message: Message, context: Context) -> RecordDict:
    """The label of this site, so that the server can address it; Flower's node ids are routing labels only."""
    return RecordDict({"tacit": ConfigRecord({"label": Site.open(site_folder(context)).label})})


@app.train()
@answering
def train(message: Message, context: Context) -> RecordDict:
    """A single update in the clear."""
    return plain.update(ready(message, context), fields(message), received_arrays(message))


@app.train("ideal")
@answering
def train_ideal(message: Message, context: Context) -> RecordDict:
    """A single encoded update in the clear: the ideal sum of a simulation."""
    return plain.encoded(ready(message, context), fields(message), received_arrays(message))


@app.train("tacit0")
@answering
def setup(message: Message, context: Context) -> RecordDict:
    """M0."""
    client = ready(message, context)
    return in_body(
        submission.setup(client, body(message), received_arrays(message), received_receipts(message))
    )


@app.train("tacit1")
@answering
def deal(message: Message, context: Context) -> RecordDict:
    """M1."""
    return in_body(submission.deal(ready(message, context), body(message)))


@app.train("tacit2")
@answering
def mask(message: Message, context: Context) -> RecordDict:
    """M2. The packed words travel beside the message."""
    answer, vector = submission.mask(ready(message, context), body(message))
    content = in_body(answer)
    if vector:
        content["vector"] = ArrayRecord({"words": Array(np.frombuffer(vector, dtype=np.uint8))})
    return content


@app.train("tacit3")
@answering
def confirm(message: Message, context: Context) -> RecordDict:
    """M3."""
    return in_body(submission.confirm(ready(message, context), body(message)))


@app.train("tacit4")
@answering
def unmask(message: Message, context: Context) -> RecordDict:
    """M4."""
    return in_body(submission.unmask(ready(message, context), body(message)))


def handlers() -> dict[str, Any]:
    """Message type -> function, as registered; what a test compares with the list at the top."""
    return dict(app._registered_funcs)
