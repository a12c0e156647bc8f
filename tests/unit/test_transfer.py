"""Weights to begin from: what is read, what stays as it is and where it does not go, adapters."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn

from client.bookkeeping import BookKeeping, supports, unknown
from client.private_gradients import PrivateGradients
from tacit import config, learning
from tacit.errors import ConfigError
from tacit.learning import Start
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks import Records, Task, load_task
from tacit.tasks.classification import Classification
from tacit.tasks.models import build_for
from tacit.tasks.models.adapter import Adapted
from tacit.tasks.transfer import read_weights, started
from tacit.tasks.weights import initial_arrays, read_arrays
from tests.matrix import FAMILIES, PROMISES
from tests.unit.small_federation import Federation

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


def network(outputs: int = 3) -> nn.Module:
    return build_for(learning.Model(hidden=(6, 5)), (4,), outputs)


def saved(folder: Path, arrays: dict[str, Any], name: str = "base.safetensors") -> tuple[Path, str]:
    path = folder / name
    if name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        path.write_bytes(save(arrays))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def base(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a model that was trained elsewhere, and what names their file."""
    torch.manual_seed(7)
    arrays = read_arrays(network())
    path, sha256 = saved(tmp_path, arrays)
    return arrays, {"file": str(path), "sha256": sha256}


def test_a_model_begins_with_the_arrays_of_the_file_but_for_its_head(base: Any, tmp_path: Path) -> None:
    arrays, named = base
    path, sha256 = saved(tmp_path, arrays, "base.npz")
    for start in (named, {"file": str(path), "sha256": sha256}):
        got = read_arrays(started(network(), Start(**start)))
        assert all(np.array_equal(got[name], arrays[name]) for name in NAMES)
    other = read_arrays(started(network(outputs=7), Start(**named, head=("4.*",))))
    assert np.array_equal(other["2.weight"], arrays["2.weight"]) and other["4.weight"].shape == (7, 5)


def test_a_frozen_weight_does_not_travel_and_is_not_trained(base: Any) -> None:
    arrays, named = base
    model = started(network(), Start(**named, freeze=("*",), head=("4.*",)))
    assert list(read_arrays(model)) == ["4.weight", "4.bias"]
    assert [name for name, _ in model.named_parameters()] == ["4.weight", "4.bias"]
    kept = dict(model.named_buffers())
    assert all(np.array_equal(kept[name].numpy(), arrays[name]) for name in NAMES[:4])
    assert not any(value.requires_grad for value in kept.values())


def test_an_adapter_stands_beside_a_layer_that_stays_as_it_is_and_changes_nothing_at_first(base: Any) -> None:
    _, named = base
    model = started(network(), Start(**named, freeze=("0.*",), adapt=("2", "[24]"), rank=2))
    x = torch.randn(3, 4)
    assert torch.equal(model(x), started(network(), Start(**named))(x))
    assert {name: value.shape for name, value in read_arrays(model).items()} == {
        "2.down.weight": (2, 6), "2.up.weight": (5, 2), "4.down.weight": (2, 5), "4.up.weight": (3, 2),
    }  # fmt: skip
    layer = model.get_submodule("2")
    assert isinstance(layer, Adapted)
    nn.init.ones_(layer.up.weight)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x) - layer.layer(x), (x @ layer.down.weight.T).sum(1, True).expand(3, 5))


@pytest.mark.parametrize("start", [{"freeze": ("0.*",)}, {"freeze": ("0.*",), "adapt": ("2", "4")}])
def test_clipped_sums_beside_frozen_weights_are_those_of_one_record_at_a_time(base: Any, start: Any) -> None:
    model = started(network(), Start(**base[1], **start))
    for name, p in model.named_parameters():
        if "up" in name:
            nn.init.normal_(p)
    assert unknown(model) == "" and not supports(model)
    records, clip = Records(torch.randn(8, 4), torch.arange(8) % 3), 0.3
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in zip(records.features, records.targets, strict=True):
        gradient = torch.autograd.grad(
            Classification().loss(model(x[None]), y[None]).sum(), list(model.parameters())
        )
        length = float(torch.cat([g.flatten() for g in gradient]).norm())
        sums = [s + g * min(1.0, clip / (length + 1e-6)) for s, g in zip(sums, gradient, strict=True)]
    for kind in (BookKeeping, PrivateGradients):
        kind(model, Classification(), clip, 0.0).fill(records, 1.0, Stream(SeededKeys(1).key("noise")))  # type: ignore[arg-type]
        for parameter, wanted in zip(model.parameters(), sums, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-5)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a name that is not there": (
        {"freeze": ("9.*",)},
        r"task\.start\.freeze: '9\.\*' meets none of 0\.weight",
    ),
    "half a layer": (
        {"freeze": ("0.bias",)},
        r"task\.start\.freeze: '0\.bias' is frozen and '0\.weight' is not",
    ),
    "a head that is not there": ({"head": ("head.*",)}, r"task\.start\.head: 'head\.\*' meets none"),
    "no Linear layer": ({"adapt": ("1",)}, r"task\.start\.adapt: '1' meets no Linear layer"),
    "an adapter of what was drawn": (
        {"head": ("4.*",), "adapt": ("*",)},
        r"task\.start\.adapt: layer '4' belongs to the head",
    ),
    "another file": ({"sha256": "0" * 64}, r"task\.start\.sha256: is another file"),
    "no file": ({"file": "absent.npz"}, r"absent\.npz: task\.start\.file: No such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_start_that_cannot_be_is_one_line(case: str, base: Any) -> None:
    changes, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        started(network(), Start(**{**base[1], **changes}))


def test_a_model_of_which_nothing_is_left_to_train_is_refused(base: Any) -> None:
    with pytest.raises(ConfigError, match=r"task\.start\.freeze: leaves nothing to train"):
        started(network(), Start(**base[1], freeze=("*",)))


def test_what_somebody_else_has_named_is_no_file_that_a_site_waits_for_or_keeps(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.npz")
    for path in (tmp_path / "base.npz", Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match=r"task\.start\.file: (is no file|Is a directory)"):
            read_weights(path, "0" * 64)


def test_numbers_that_are_not_finite_in_float32_are_refused(tmp_path: Path) -> None:
    path, sha256 = saved(tmp_path, {"0.weight": np.full((2, 2), 1e300)}, "base.npz")
    with pytest.raises(ConfigError, match="finite numbers in float32"):
        read_weights(path, sha256)


def test_a_file_of_another_model_or_of_none_is_one_line(base: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'4\.weight' of shape \(7, 5\) is needed, .* shape \(3, 5\)"):
        started(network(outputs=7), Start(**base[1]))
    path, sha256 = saved(tmp_path, {"x": np.zeros(3, np.float32)}, "other.npz")
    with pytest.raises(ConfigError, match=r"'0\.weight' .* has no such array"):
        started(network(), Start(file=str(path), sha256=sha256))
    for name, content in (("a.safetensors", b"12345678"), ("a.npz", b"PK no archive"), ("a.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"neither \.safetensors nor \.npz with finite numbers"):
            read_weights(tmp_path / name, hashlib.sha256(content).hexdigest())
    for bad in (np.array([np.nan]), np.array([None]), np.array(["a"])):
        path, sha256 = saved(tmp_path, {"x": bad}, "bad.npz")
        with pytest.raises(ConfigError, match="with finite numbers"):
            read_weights(path, sha256)


@pytest.mark.parametrize("promise", ["record", "client"])
def test_a_federation_trains_adapters_and_a_new_head_and_sends_nothing_else(
    promise: str, tmp_path: Path
) -> None:
    text = FAMILIES["mlp"].text("mlp", tmp_path)
    path, sha256 = saved(tmp_path, dict(Federation(tmp_path / "first", text=text).initial()))
    start = f'task.start={{file="{path}", sha256="{sha256}", head=["2.*"], adapt=["0"], rank=2}}'
    federation = Federation(tmp_path / "second", PROMISES[promise], start, text=text)
    trained = federation.run(tmp_path / "run")
    assert list(trained) == ["0.down.weight", "0.up.weight", "2.weight", "2.bias"]
    assert all((trained[name] != values).any() for name, values in federation.initial().items())


def test_the_first_weights_of_what_is_trained_follow_from_the_seed(base: Any) -> None:
    start = learning.Task(start=Start(**base[1], adapt=("2",)), model=learning.Model(hidden=(6, 5)))
    text = 'name = "x"\n[data.schema]\nlabel = "y"\nclasses = ["a", "b", "c"]\n'
    columns = "".join(f'columns.{c} = {{kind = "numeric", range = [0, 1]}}\n' for c in "pqrs")
    task: Task = load_task(config.loads(text + columns).with_tables(task=start))
    one, same, other = (initial_arrays(task, private=False, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one["2.down.weight"], same["2.down.weight"])
    assert not np.array_equal(one["2.down.weight"], other["2.down.weight"])
    assert np.array_equal(one["4.weight"], base[0]["4.weight"])
