"""What a private step writes down: in wide layers no record's gradient, and nothing as large as all of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from client.bookkeeping import BookKeeping
from tacit.privacy.noise import Stream
from tacit.tasks import Records
from tacit.tasks.classification import Classification
from tacit.tasks.models import Classifier
from tacit.tasks.models.embedding import mean_of

ROWS = 32


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation has given."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_bytes = max(self.num_bytes, leaf.untyped_storage().nbytes())
        return result


class Positions(nn.Module):
    """A wide Linear layer at each position of a record."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(size_in, size_out), nn.Linear(size_out, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Words(nn.Module):
    """A large vocabulary."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(mean_of(self.table(tokens), tokens != 0))


def largest(model: nn.Module, features: Tensor) -> int:
    step = BookKeeping(model, Classification(), 1.0, 0.0)
    records = Records(features, torch.arange(ROWS) % 2)
    with Largest() as seen:
        step.fill(records, 1.0, Stream(bytes(32)))
    return seen.num_bytes


def bytes_of(model: nn.Module) -> int:
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_wide_mlp_has_nothing_as_large_as_two_models() -> None:
    model = Classifier(nn.Linear(600, 1000), nn.ReLU(), nn.Linear(1000, 2), inputs=600)
    assert largest(model, torch.randn(ROWS, 600)) <= 2 * bytes_of(
        model
    )  # in float64, before the noise is added


@pytest.mark.parametrize("length", [20, 200])  # on either side of what is sorted
def test_a_large_vocabulary_has_nothing_as_large_as_two_tables(length: int) -> None:
    model = Words(50_000, 8)
    assert largest(model, torch.randint(0, 50_000, (ROWS, length))) <= 2 * bytes_of(model)


@pytest.mark.parametrize(
    ("size_in", "size_out", "positions"), [(400, 600, 8), (400, 600, 100), (8, 300, 60), (30, 40, 200)]
)
def test_a_layer_at_many_positions_has_nothing_much_larger_than_what_passes_it(
    size_in: int, size_out: int, positions: int
) -> None:
    """Where the gradients of the records are written out, they are at most twice the layer's inputs and outputs."""
    model = Positions(size_in, size_out)
    passing = 4 * ROWS * positions * (size_in + size_out)
    bound = 2 * max(bytes_of(model), passing)
    assert largest(model, torch.randn(ROWS, positions, size_in)) <= bound
