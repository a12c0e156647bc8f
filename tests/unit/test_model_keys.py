"""Which keys each model has: those that it depends on, and any other one is refused."""

import json

import pytest
import torch

from tacit import config, learning
from tacit.data.rows import Names, Number
from tacit.errors import ConfigError
from tacit.tasks.models import (
    AXES,
    GIVES_BACK,
    MAKES_UP,
    build_for,
    build_to_give_back,
    build_to_make_up,
)
from tacit.tasks.models.families import build_for_text

OTHERWISE = {
    "hidden": (8, 8),
    "channels": (2, 4),
    "activation": "tanh",
    "layers": 2,
    "heads": 4,
    "dropout": 0.5,
    "latent": 5,
}


def _outputs(model: learning.Model) -> torch.Tensor:
    torch.manual_seed(1)
    axes = {0: (5,), 2: (2, 5), 3: (2, 5, 5)}[AXES.get(model.name, 0)]
    if model.name == "embedding":
        return build_for_text(model, 7, 3)(torch.tensor([[1, 4, 2]]))  # type: ignore[no-any-return]
    if model.name in MAKES_UP:
        layout = (Number(-1.0, 1.0, 0.0, indicator=False, may_be_empty=False), Names(2, may_be_empty=True))
        gan = build_to_make_up(model, layout, 2)
        return gan.train()(torch.cat([torch.randn(4, 3), torch.eye(2)[[0, 1, 0, 1]]], 1))  # type: ignore[no-any-return]
    made = build_to_give_back(model, 5) if model.name in GIVES_BACK else build_for(model, axes, 3)
    return made.train()(torch.randn(4, *axes))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", learning.MODEL_KEYS)
def test_a_model_has_the_keys_that_it_depends_on_and_no_others(name: str) -> None:
    assert {"name", *OTHERWISE} == set(learning.Model.model_fields)
    two = (
        {"hidden": (16, 16)} if "hidden" in learning.MODEL_KEYS[name] else {}
    )  # so that something is between them
    plain = learning.Model.model_validate({"name": name, **two})
    for key, value in OTHERWISE.items():
        other = plain.model_copy(update={key: value})  # which validates nothing
        is_same = torch.equal(_outputs(plain), _outputs(other))
        assert is_same != (key in learning.MODEL_KEYS[name]), key
        if is_same:
            with pytest.raises(
                ConfigError, match=f'task.model.{key}: is no key of name = "{name}", which has'
            ):
                config.loads(
                    'name = "x"',
                    overrides=[f"task.model.name={name}", f"task.model.{key}={json.dumps(value)}"],
                )
