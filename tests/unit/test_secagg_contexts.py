"""What a context is bound to: each field of an invitation, each part of a model."""

from dataclasses import replace

import numpy as np
import pytest

from tacit.secagg.contexts import Invitation, model_digest
from tacit.secagg.parameters import Rules

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, dtype=np.float64)}
RULES = Rules(max_corrupt=1, max_dropouts=1, c_int=65536)
INVITATION = Invitation(
    roster=b"r" * 32,
    run="run-1",
    round=3,
    attempt=2,
    model=model_digest(MODEL),
    config=b"c" * 32,
    length=5,
    num_invited=4,
    rules=RULES,
    server_pk=b"\x09" + bytes(31),
)
CHANGES = {
    "roster": bytes(32),
    "run": "run-2",
    "round": 4,
    "attempt": 1,
    "model": bytes(32),
    "config": bytes(32),
    "length": 6,
    "num_invited": 5,
    "server_pk": b"\x0a" + bytes(31),
    "receipt_head": b"h" * 32,
}
RULE_CHANGES = {
    "max_corrupt": 2,
    "max_dropouts": 0,
    "c_int": 65535,
    "noise_multiplier": 1.0,
    "min_cohort": 6,
    "max_cohort": 9,
}


def test_B13_every_field_of_an_invitation_changes_its_context():
    assert {*CHANGES, "rules"} == {*INVITATION.__dataclass_fields__}
    assert {*RULE_CHANGES, "allow_no_corrupt"} == {*RULES.__dataclass_fields__}
    changed = [replace(INVITATION, **{name: value}) for name, value in CHANGES.items()]
    changed += [replace(INVITATION, rules=replace(RULES, **{n: value})) for n, value in RULE_CHANGES.items()]
    contexts = [invitation.ctx0() for invitation in (INVITATION, *changed)]
    assert len(set(contexts)) == len(contexts)


W, B = MODEL["w"], MODEL["b"]
OTHERS = {
    "order": {"b": B, "w": W},
    "name": {"v": W, "b": B},
    "shape": {"w": W.reshape(3, 2), "b": B},
    "dtype": {"w": W.astype(np.float64), "b": B},
    "dtype alone": {"w": W.view(np.int32), "b": B},
    "axes": {"w": W, "b": B.reshape(1)},
    "bytes": {"w": W + 1, "b": B},
    "number": {"w": W},
}


@pytest.mark.parametrize("what", OTHERS)
def test_B13_names_shapes_dtypes_order_and_bytes_change_the_digest_of_a_model(what):
    assert model_digest(OTHERS[what]) != model_digest(MODEL)


def test_B13_a_model_has_one_digest_whatever_its_layout_in_memory():
    assert model_digest({"w": np.asfortranarray(W), "b": B.astype(">f8")}) == model_digest(MODEL)
