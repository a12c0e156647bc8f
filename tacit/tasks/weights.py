"""Between a torch model and the named arrays that travel: equal on both sides of the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError
from tacit.tasks.groupnorm import replace_batchnorm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tacit.tasks.task import Task

Arrays = Mapping[str, NDArray[np.float32]]


def build_model(task: Task, *, private: bool) -> nn.Module:
    """The task's model; in a private run BatchNorm, which mixes records, is replaced by GroupNorm."""
    model = task.model()
    return replace_batchnorm(model) if private else model


def initial_arrays(task: Task, *, private: bool, seed: int) -> dict[str, NDArray[np.float32]]:
    """The weights that round 1 starts from. They follow from the seed; the caller's torch generator is untouched."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return read_arrays(build_model(task, private=private))


def read_arrays(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Every floating-point entry of the model's state, in order, as float32."""
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32, copy=True)
        for name, tensor in floats(model).items()
    }


def array_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that travels."""
    return {name: tuple(tensor.shape) for name, tensor in floats(model).items()}


def load_arrays(model: nn.Module, arrays: Arrays) -> None:
    """Puts arrays into the model in place.

    Raises:
        ConfigError: names or shapes differ from the model's.
    """
    import torch

    state = floats(model)
    if set(state) != set(arrays):
        raise ConfigError("the model received has other arrays than the task's model", key="task")
    for name, tensor in state.items():
        if tuple(tensor.shape) != tuple(arrays[name].shape):
            raise ConfigError(
                f"array {name!r} has shape {arrays[name].shape}, not {tuple(tensor.shape)}", key="task"
            )
        with torch.no_grad():
            tensor.copy_(torch.tensor(arrays[name]))


def floats(model: nn.Module) -> dict[str, Tensor]:
    """Every floating-point entry of the model's state, in order: what travels."""
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
