"""Layers in bfloat16: what is clipped, added up and noised is in float32 all the same, by both ways to a gradient."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from client.bookkeeping import BookKeeping, NoRule
from client.choice import private_gradients
from client.precision import check_precision
from client.private_gradients import PrivateGradients
from client.training import PlainGradients
from simulations.run import simulate
from tacit import config, learning
from tacit.errors import ConfigError
from tacit.privacy.noise import Stream
from tacit.tasks import Records
from tacit.tasks.classification import Classification
from tacit.tasks.models import build_for, build_for_text, build_to_rank
from tacit.tasks.ranking import Ranking

CLIP, KEY = 0.7, bytes(range(32))
SHAPES = {"mlp": (6,), "cnn": (1, 6, 6), "resnet": (1, 6, 6), "cnn1d": (2, 9), "rnn": (2, 9), "gru": (2, 9),
          "lstm": (2, 9), "transformer": (2, 9), "embedding": (7,), "lists": (5, 3)}  # fmt: skip
ENGINES = [PrivateGradients, BookKeeping]
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_family = pytest.mark.parametrize("name", SHAPES)


class Scaled(nn.Module):
    """A parameter without a layer of its own, which only Opacus knows what to do with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(6, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


def problem(name: str, rows: int = 6, device: str = "cpu") -> tuple[nn.Module, Any, Records]:
    """A model, its loss and records, alike at each call; gradients are long, so that they are clipped."""
    torch.manual_seed(4)
    sizes = {"hidden": (8,), "channels": (2, 4)}
    shape = SHAPES[name]
    family: Any = "mlp" if name == "lists" else name
    model = learning.Model(
        name=family, **{k: v for k, v in sizes.items() if k in learning.MODEL_KEYS[family]}
    )
    features, targets = 3 * torch.randn(rows, *shape), torch.arange(rows) % 3
    if name == "lists":
        lists = Records(features.to(device), torch.randint(-1, 4, (rows, shape[0])).to(device))
        return build_to_rank(model, shape[1]).to(device), Ranking(), lists
    if name == "embedding":
        features = torch.randint(0, 12, (rows, *shape))
    made = build_for_text(model, 12, 3) if name == "embedding" else build_for(model, shape, 3)
    return made.to(device), Classification(), Records(features.to(device), targets.to(device))


def filled(
    engine: Any, model: nn.Module, task: Any, records: Records, precision: str, clip: float = CLIP
) -> Tensor:
    model = copy.deepcopy(model)  # Opacus stays on it
    engine(model, task, clip, 0.0, 0, precision).fill(records, 1.0, Stream(KEY))
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def check_contributions(name: str, engine: Any, device: str = "cpu") -> None:
    model, task, records = problem(name, device=device)
    clip = 1e-3  # below each gradient
    for i in range(records.num_rows):
        one = Records(records.features[i : i + 1], records.targets[i : i + 1])
        length = float(filled(engine, model, task, one, "bfloat16", clip).double().norm())
        assert length <= clip * (1 + 1e-5)
        assert length >= clip * 0.98 or not float(task.loss(model(one.features), one.targets))


@each_engine
@each_family
def test_in_either_precision_a_records_contribution_is_no_longer_than_max_grad_norm(
    name: str, engine: Any
) -> None:
    check_contributions(name, engine)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@each_engine
@each_family
def test_a_contribution_on_the_gpu_is_no_longer_than_max_grad_norm_either(name: str, engine: Any) -> None:
    check_contributions(name, engine, "cuda")


@each_family
def test_both_ways_agree_in_bfloat16_and_are_near_float32(name: str) -> None:
    model, task, records = problem(name)
    wide = filled(BookKeeping, model, task, records, "float32")
    one, other = (filled(engine, model, task, records, "bfloat16") for engine in ENGINES)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
    assert not torch.allclose(one, wide, rtol=0, atol=1e-5)  # the layers were in bfloat16
    assert float((one - wide).norm() / wide.norm()) < 0.1


def test_without_privacy_the_sum_is_near_that_of_float32_too() -> None:
    seen = []
    for precision in ("float32", "bfloat16"):
        model, task, records = problem("mlp")
        PlainGradients(model, task, 0, precision).fill(records, 1.0, Stream(KEY))
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert 1e-6 < float((seen[0] - seen[1]).norm() / seen[0].norm()) < 0.1


def test_a_layer_without_a_rule_is_clipped_by_opacus_in_float32_too() -> None:
    torch.manual_seed(4)
    model, records = Scaled(), Records(3 * torch.randn(6, 6), torch.arange(6) % 3)
    step = private_gradients(model, Classification(), 1e-3, 0.0, 0, "bfloat16")
    assert "opacus" in step.engine
    for i in range(6):
        step.fill(Records(records.features[i : i + 1], records.targets[i : i + 1]), 1.0, Stream(KEY))
        whole = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
        assert 0.98e-3 < float(whole.norm()) <= 1e-3 * (1 + 1e-5)


def test_a_weight_that_is_used_past_its_layer_is_noticed_in_bfloat16_too() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + F.linear(x, self.layer.weight)

    records = Records(torch.randn(4, 6), torch.zeros(4, dtype=torch.long))
    for precision in ("float32", "bfloat16"):
        with pytest.raises(NoRule, match="used past the layer"):
            BookKeeping(Twice(), Classification(), 1.0, 0.0, 0, precision).fill(records, 1.0, Stream(KEY))


@pytest.mark.parametrize("name", ["float16", "fp16", "half"])
def test_float16_is_refused_in_words(name: str) -> None:
    with pytest.raises(ConfigError, match=r'training\.precision: .*GradScaler.* take "bfloat16"') as caught:
        config.loads(f'name = "x"\n[training]\nprecision = "{name}"')
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_without_bfloat16_is_one_line_of_error() -> None:
    with pytest.raises(ConfigError, match=r"training\.precision: this GPU does not compute in bfloat16"):
        check_precision("bfloat16", torch.device("cuda"))
    check_precision("bfloat16", torch.device("cpu"))


RUN = """
name = "bf16"
[partition]
num_clients = 3
[training]
precision = "bfloat16"
rounds = 4
sampling_rate = 0.3
learning_rate = 0.5
[privacy.record]
epsilon = 20.0
delta = 1e-4
[secure_aggregation]
engine = "ideal"
[simulation]
baselines = false
"""


def test_a_run_in_bfloat16_learns_and_says_how_it_was_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        record = simulate(config.loads(RUN), tmp_path)
    assert "layers in bfloat16, which save time in models that do not stack" in caplog.text
    assert record.executor.endswith("gradients per record by book-keeping, layers in bfloat16")
    assert record.final.metrics["auroc"] is not None and record.final.metrics["auroc"] > 0.9
    stacked = config.loads(RUN, overrides=["simulation.executor=stacked"])
    with pytest.raises(ConfigError, match=r"simulation\.executor: not possible here: layers in bfloat16"):
        simulate(stacked, tmp_path / "stacked")
