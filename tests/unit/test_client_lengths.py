"""A record is divided by no less than its gradient's length, however many numbers it is made of."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.bookkeeping import BookKeeping
from client.layer_rules import squared_lengths
from client.private_gradients import PrivateGradients
from tacit.privacy.noise import Stream
from tacit.tasks import Records

SIZE = 2048
# Of so many squares that are alike float32 loses up to 0.4 %, one that lies between two of its numbers most of all.
SQUARES = (1.0078, 1.0156, 1.029, 1.031)


class Sums:
    metric_names = ()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.flatten(1).sum(1)


@pytest.mark.parametrize(
    ("kind", "positions", "above"), [(PrivateGradients, 1, 1.1e-5), (BookKeeping, SIZE // 2, 3e-6)]
)
def test_in_either_precision_a_records_contribution_in_float32_is_no_longer_than_max_grad_norm_if_it_is_large(
    kind: type, positions: int, above: float
) -> None:
    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    gradients = kind(model, Sums(), 1.0, 0.0)
    for square in SQUARES:
        x = torch.full((1, *[positions] * (positions > 1), SIZE), square**0.5 / positions)
        gradients.fill(Records(x, torch.zeros(1)), 1.0, Stream(bytes(32)))
        assert torch.linalg.vector_norm(model[0].weight.grad, dtype=torch.float64) <= 1 + above


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 100_000])
def test_squared_lengths_are_those_of_float64(size: int) -> None:
    rng = np.random.default_rng(size)
    x = (rng.normal(size=(3, size)) * [[1e-4], [1.0], [1e4]]).astype(np.float32)
    got = squared_lengths(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, np.square(x, dtype=np.float64).sum(1), rtol=1e-6)
