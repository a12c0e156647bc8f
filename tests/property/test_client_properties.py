"""What holds for every batch, every row and every byte at a site."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from client.bookkeeping import BookKeeping
from client.private_gradients import PrivateGradients
from client.sessions import Session
from tacit.errors import ProtocolError, StorageError
from tacit.privacy.noise import Stream
from tacit.secagg.in_process import Federation
from tacit.secagg.parameters import Rules
from tacit.tasks import Records
from tacit.update import EncodedUpdate

CLIP = 1.5
NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e-20, 1e19, 1e38, 3e38]),
)


class Classify:
    """A task that consists of its loss."""

    def loss(self, outputs, targets):
        return cross_entropy(outputs, targets, reduction="none")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 1)), min_size=1, max_size=6), st.data())
def test_taking_a_record_away_moves_the_sum_by_at_most_the_clip_norm_whatever_the_numbers(engine, rows, data):
    model = net()
    gradients = engine(model, Classify(), CLIP, 0.0)
    gone = data.draw(st.integers(0, len(rows) - 1))

    def total(kept):
        x = torch.tensor([row[:3] for row in kept], dtype=torch.float32).reshape(-1, 3)
        y = torch.tensor([row[3] for row in kept], dtype=torch.int64)
        gradients.fill(Records(x, y), 1.0, Stream(bytes(32)))
        return torch.cat([p.grad.double().reshape(-1) for p in model.parameters()])

    whole, without = total(rows), total([row for i, row in enumerate(rows) if i != gone])
    assert torch.isfinite(whole).all()
    assert float((whole - without).norm()) <= CLIP + 1e-5
    assert float(whole.norm()) <= CLIP * len(rows) + 1e-5


FEDERATION = Federation(3, Rules(1, 0, 2**16))


def machine():
    return FEDERATION.client(1)


def sessions():
    return st.builds(
        lambda run, number, digest, values, flags: Session(
            run,
            number,
            digest,
            digest[::-1],
            EncodedUpdate(np.array(values, dtype=np.int64), flags[0]),
            machine(),
            attempt=number,
            sent=flags[1],
        ),
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.integers(0, 2**64 - 1),
        st.binary(min_size=32, max_size=32),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
        st.tuples(st.booleans(), st.booleans()),
    )


@given(sessions())
def test_H10_a_session_reads_back_from_its_bytes(session):
    data = session.encode()
    again = Session.decode(data, machine)
    assert again.encode() == data
    assert np.array_equal(again.encoded.values, session.encoded.values)
    assert (again.run, again.round, again.attempt, again.sent) == (
        session.run, session.round, session.attempt, session.sent
    )  # fmt: skip


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_session_or_an_error(data, hashed):
    """Also those that carry their own hash."""
    if hashed:
        data = hashlib.sha256(data).digest() + data
    with pytest.raises((ProtocolError, StorageError)):
        Session.decode(data, machine)
