"""The type that numbers are computed in, beside that of a model's products."""

from __future__ import annotations

import torch
from torch import Tensor


def working_type(tensor: Tensor) -> torch.dtype:
    """The type to compute with a tensor in: float64 if it has that, float32 for any other."""
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def wide(values: Tensor) -> Tensor:
    """The values in the type of ``working_type``, themselves if they have it."""
    # Not to(): ``TwiceDifferentiable`` keeps what that makes of bfloat16 until the forward pass is over.
    return values if values.dtype is torch.float64 else values.float()
