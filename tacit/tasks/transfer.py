"""Weights that a model begins with: loaded from a file, kept as they are by name, with low-rank adapters beside them.

What stays as it is becomes a buffer that is no part of the model's state. So it does not travel, is not clipped, and no
noise is added to it; every site has it from the file, whose digest the experiment names.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError
from tacit.learning import Start
from tacit.tasks.weights import floats

if TYPE_CHECKING:
    from torch import nn


def started(model: nn.Module, start: Start) -> nn.Module:
    """The model with weights from the file, frozen and adapted as `start` says; returns it.

    Raises:
        ConfigError: the file is not there or another one, lacks an array, a pattern meets nothing, or nothing is left
            to train.

    Guarantees:
        A frozen weight does not travel and is not trained.
    """
    if not start.file:
        return model
    load(model, read_weights(Path(start.file), start.sha256), start.head)
    freeze(
        model,
        [name for name in met(model, start.freeze, "task.start.freeze") if not _matches(name, start.head)],
    )
    adapt(model, start.adapt, start.rank, start.head)
    if not any(True for _ in model.parameters()):
        raise ConfigError("leaves nothing to train: name a head, or adapters", key="task.start.freeze")
    return model


def read_weights(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays of a .safetensors or .npz file, in float32; nothing in it is run.

    Raises:
        ConfigError: it is not there, has another digest, or holds anything but arrays of numbers.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_tensors

    try:
        with open(path, "rb", opener=_waiting_for_nobody) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError("is no file that could hold weights", source=path, key="task.start.file")
            # Before any of it is kept: somebody else has named the file, and it may be larger than memory.
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ConfigError(
                    "is another file than the experiment names", source=path, key="task.start.sha256"
                )
            file.seek(0)
            content = file.read()
    except OSError as error:
        raise ConfigError(error.strerror or str(error), source=path, key="task.start.file") from None
    try:
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        else:
            arrays = dict(load_tensors(content))
        if all(array.dtype.kind in "iuf" for array in arrays.values()):
            with np.errstate(over="ignore"):
                arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
            if all(np.isfinite(array).all() for array in arrays.values()):
                return arrays
    except (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError):
        pass
    raise ConfigError(
        "is neither .safetensors nor .npz with finite numbers in float32",
        source=path,
        key="task.start.file",
    )


def _waiting_for_nobody(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would be waited for


def load(model: nn.Module, arrays: Mapping[str, NDArray[Any]], head: Iterable[str]) -> None:
    """Puts arrays into the model in place, all but those of the head.

    Raises:
        ConfigError: an array is not in the file, or has another shape there.
    """
    import torch

    met(model, head, "task.start.head")
    for name, place in floats(model).items():
        if _matches(name, head):
            continue
        found = arrays.get(name)
        if found is None or tuple(found.shape) != tuple(place.shape):
            has = "has no such array" if found is None else f"has it in shape {found.shape}"
            raise ConfigError(
                f"array {name!r} of shape {tuple(place.shape)} is needed, the file {has}",
                key="task.start.file",
            )
        with torch.no_grad():
            place.copy_(torch.from_numpy(found))


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Makes buffers, which do not travel, of these parameters.

    Raises:
        ConfigError: of a layer only a part is frozen: no rule for gradients per record knows such a layer.
    """
    for name in names:
        where, _, own = name.rpartition(".")
        layer = model.get_submodule(where)
        value = layer._parameters.pop(own)
        assert value is not None
        layer.register_buffer(own, value.detach(), persistent=False)
        rest = {name[: -len(own)] + other for other, p in layer._parameters.items() if p is not None}
        if rest - set(names):
            raise ConfigError(f"{name!r} is frozen and {min(rest)!r} is not", key="task.start.freeze")


def adapt(model: nn.Module, patterns: Iterable[str], rank: int, head: Iterable[str]) -> None:
    """Puts an `Adapted` in the place of each Linear layer that a pattern meets.

    Raises:
        ConfigError: a pattern meets no Linear layer, or one of the head, which was drawn and would stay so.
    """
    from torch import nn

    from tacit.tasks.models.adapter import Adapted

    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ConfigError(f"{pattern!r} meets no Linear layer", key="task.start.adapt")
    for name, layer in linear.items():
        if not _matches(name, patterns):
            continue
        if _matches(f"{name}.weight", head):
            raise ConfigError(
                f"layer {name!r} belongs to the head, which has no weights to keep", key="task.start.adapt"
            )
        freeze(layer, [own for own, _ in layer.named_parameters()])
        where, _, own = name.rpartition(".")
        setattr(model.get_submodule(where), own, Adapted(layer, rank))


def met(model: nn.Module, patterns: Iterable[str], key: str) -> list[str]:
    """Names of the parameters that any pattern meets.

    Raises:
        ConfigError: one meets none; says which names there are.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"{pattern!r} meets none of {', '.join(names)}", key=key)
    return [name for name in names if _matches(name, patterns)]


def rate_factors(model: nn.Module, factors: Mapping[str, float]) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied by, as `[training] rate_factors` says.

    Raises:
        ConfigError: a pattern meets none of them.
    """
    met(model, factors, "training.rate_factors")
    names = [name for name, _ in model.named_parameters()]
    return {
        name: next((f for pattern, f in factors.items() if fnmatchcase(name, pattern)), 1.0) for name in names
    }


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
