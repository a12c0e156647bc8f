"""One round of pfl 0.6 on the MLP of `tests.bench.engines`: prints the median seconds. In a process of its own.

pfl is no dependency: `pip install --no-deps --target build/pfl pfl prv-accountant` puts it beside the project, with
our torch.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch
from torch import nn

from tests.bench.engines import BATCH, CLIENTS, RATE, ROUNDS, WARM_UP, data_of, mlp


class Model(nn.Module):
    """What pfl asks of a model: a loss and metrics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs."""
        return self.inner(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = False) -> torch.Tensor:
        """The mean loss of a batch."""
        return nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = True) -> dict:
        """None."""
        return {}


def main() -> None:
    """As many rounds as the other engines make."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    features, targets = data_of(CLIENTS)
    sets = [Dataset(raw_data=[x, y]) for x, y in zip(features, targets, strict=True)]
    users = FederatedDataset(lambda i: sets[i], get_user_sampler("minimize_reuse", range(CLIENTS)))
    module = Model()
    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    ends = [time.perf_counter()]

    class Clock(TrainingProcessCallback):
        """Notes when a round has ended."""

        def after_central_iteration(self, *rest: object, **named: object):  # type: ignore[no-untyped-def]
            ends.append(time.perf_counter())
            return False, __import__("pfl.metrics", fromlist=["Metrics"]).Metrics()

    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=ROUNDS,
            evaluation_frequency=10**6,
            train_cohort_size=CLIENTS,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Clock()],
    )
    print(median(np.diff(ends)[WARM_UP:]))


if __name__ == "__main__":
    main()
