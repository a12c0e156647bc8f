"""Mixed precision: the layers of a training step in bfloat16, all that a promise rests on in float32.

A layer's input, and the gradient at its output, are made wider before a record's gradient is measured, divided and
added up. Whatever bfloat16 has rounded, it is then that gradient which is clipped. A model is evaluated in float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from tacit.errors import ConfigError


def layers_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within it a forward pass takes this precision where torch holds it safe (`torch.autocast`)."""
    if precision == "float32":
        return nullcontext()
    # Without the cache, which would hide from book-keeping that a weight is used twice.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def widened(x: Any) -> Any:
    """In float32 what is in bfloat16; anything else as it is."""
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x


def check_precision(precision: str, device: torch.device) -> None:
    """Raises `ConfigError` where the device lacks it."""
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(
            'this GPU does not compute in bfloat16: set "float32", or device = "cpu"',
            key="training.precision",
        )
