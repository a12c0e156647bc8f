"""H9: both ends of a Flower message under whatever the other side sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from client.app import body, fields, handlers, received_arrays
from client.bridge import SecureClientApp
from client.bridged import bridged
from client.participant import participant_of
from client.submission import as_computed_here
from strategies.grids import alike, is_update, size_of
from strategies.secure_grid import _body, _vector
from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.secagg.messages import SetupRequest
from tacit.secagg.ring import packed_size
from tests.fuzz.draw import Draw
from tests.fuzz.files import folder
from tests.unit import client_sites as sites
from tests.unit.bridged_app import federation, terms, toy
from tests.vectors.product import identity_of

EXPERIMENT: Final = sites.experiment()
ARRAYS: Final = sites.model(EXPERIMENT)
STRANGER: Final = identity_of("07" * 32)
HANDLERS: Final = ("train.default", "train.ideal", *(f"train.tacit{step}" for step in range(5)))
SIZE: Final = packed_size(9, 17)


def record_dict(data: bytes) -> int:
    """H9: a message of any records, at each handler of a site and at the server.

    Nothing in it is signed by the coordinator, so whatever it says it is refused, and nothing at the site changes.
    """
    draw = Draw(data)
    kind, content = draw.choice(HANDLERS), records(draw, _invited)
    message = sites.message(kind)
    message.content = content
    at_the_server(message)
    at_a_site(kind, message)
    return max(len(data), size_of(content))


def at_the_server(message: Message) -> None:
    """An answer: read or refused. A plain one counts as an update or does not."""
    for read in (lambda: _body(message), lambda: _vector(message, SIZE)):
        try:
            read()
        except ProtocolError:
            continue
    request = RecordDict({"arrays": ArrayRecord({name: Array(a) for name, a in ARRAYS.items()})})
    good = [message] if is_update(message.content, request) else []
    assert len(alike(good)) == len(good)


def at_a_site(kind: str, message: Message) -> None:
    """The handler without its catch-all."""
    for read in (body, fields, received_arrays):
        try:
            read(message)
        except ProtocolError:
            continue
    site = _site()
    participant_of.cache_clear()
    try:
        handlers()[kind].__wrapped__(message, sites.context(site, EXPERIMENT))
    except (ProtocolError, Refused, ConfigError):
        pass
    else:
        raise AssertionError("a message that nobody has signed is answered")
    assert {path.name for path in site.iterdir()} <= _FILES
    ledger = site / "ledger" / "ledger.jsonl"
    assert not ledger.exists() or not ledger.stat().st_size, "a message that nobody has signed is paid for"


_FILES: Final = {"site.toml", "data.csv", "policy.toml", "identity.key", "roster.json", "ledger"}


@cache
def _site() -> Path:
    return sites.write_site(folder() / "north")


@cache
def _invited() -> bytes:
    run = participant_of(EXPERIMENT.to_toml(), _site(), True).run
    return SetupRequest(sites.invitation(run, ARRAYS)).signed(STRANGER).encode()


# --- the bridge --------------------------------------------------------------------------------------------------

ASKED: Final = (*(f"train.tacit{step}" for step in range(5)), "train", "evaluate", "query.tacit", "query")


def bridged_record_dict(data: bytes) -> int:
    """H9: the same at a site whose app is not ours. The app is never asked."""
    draw = Draw(data)
    kind, content = draw.choice(ASKED), records(draw, _invited_to_bridge)
    message = sites.message(kind)
    message.content = content
    bridged.cache_clear()
    try:
        answer = toy(SecureClientApp(), _never)._answer(message, _at_bridge())
    except (ProtocolError, Refused, ConfigError):
        answer = None
    assert (answer is not None) == (kind == "query.tacit")
    return max(len(data), size_of(content))


def _never(*arguments: Any) -> RecordDict:
    raise AssertionError("the app is asked by somebody who is not the coordinator")


@cache
def _at_bridge() -> Context:
    federation(folder() / "bridge", terms(train_metrics={"train_loss": 1.0}))
    node = {"site": str(folder() / "bridge" / "0"), "sessions": "memory", "partition-id": 0}
    return Context(1, 2, node, RecordDict(), {})


@cache
def _invited_to_bridge() -> bytes:
    own = bridged(Path(str(_at_bridge().node_config["site"])), True)
    run = participant_of(EXPERIMENT.to_toml(), _site(), True).run
    shown = as_computed_here(own, sites.invitation(run, ARRAYS, num_invited=4), ARRAYS)
    return SetupRequest(shown).signed(STRANGER).encode()


# --- records -----------------------------------------------------------------------------------------------------

Setup = Callable[[], bytes]


def records(draw: Draw, invited: Setup) -> RecordDict:
    """Up to four records of any kind and name."""
    names = ("tacit", "arrays", "vector", "scaling", "clip", "metrics", "other", "bridge", "config")
    kinds = (lambda d: config_record(d, invited), array_record, metric_record)
    return RecordDict({draw.choice(names): draw.choice(kinds)(draw) for _ in range(draw.below(5))})


def config_record(draw: Draw, invited: Setup) -> ConfigRecord:
    """Up to three fields."""
    names = ("body", "run", "round", "constants", "norm", "x", "asks")
    return ConfigRecord({draw.choice(names): _value(draw, invited) for _ in range(draw.below(4))})


def _value(draw: Draw, invited: Setup) -> Any:
    kind = draw.below(9)
    if kind < 2:
        return setup(draw, invited)
    if kind == 2:
        return draw.number(8) - 2**63
    if kind == 3:
        return float(np.frombuffer(draw.randbytes(8), ">f8")[0])
    if kind == 4:
        return bool(draw.number())
    text = draw.take(draw.number(2) % 2048)
    return (text, text.decode("utf-8", "replace"), [len(text), 1], [text.decode("utf-8", "replace")])[
        kind - 5
    ]


def setup(draw: Draw, invited: Setup) -> bytes:
    """The invitation that is expected, signed by a stranger, with some bytes changed."""
    request = bytearray(invited())
    for _ in range(draw.below(4)):
        request[draw.number(2) % len(request)] ^= draw.number()
    return bytes(request)


def array_record(draw: Draw) -> ArrayRecord:
    """The model, or words, with some bytes changed; or any arrays."""
    if draw.below(2):
        return ArrayRecord({name: _array(draw, array) for name, array in ARRAYS.items()})
    return ArrayRecord({"words": _array(draw, np.zeros(SIZE, np.uint8))} if draw.below(2) else {})


def _array(draw: Draw, array: Any) -> Array:
    file = BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version=(1, 0))
    content = bytearray(file.getvalue())
    way = draw.below(4)
    if way == 1:
        content = bytearray(draw.take(draw.below(256)))
    elif way == 2:
        content[8:] = draw.take(draw.below(256))
    elif way == 3:
        content[draw.number(2) % len(content)] ^= draw.number()
    dtype, shape = (str(array.dtype), array.shape) if draw.below(2) == 0 else ("object", (draw.number(4),))
    return Array(dtype, shape, "numpy.ndarray", bytes(content))


def metric_record(draw: Draw) -> MetricRecord:
    """Up to two metrics."""
    names = ("num-examples", "accuracy")
    values = (1.0, float("nan"), 2**63 - 1, [1, 2], [0.5, float("inf")])
    return MetricRecord({draw.choice(names): draw.choice(values) for _ in range(draw.below(3))})
