"""A model's state, put back after what moves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..curvature.loss import trainable


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore trainable weights, their gradients and every random state, bit for bit, on leaving."""
    parameters = trainable(model)
    values = [p.detach().clone() for p in parameters]
    gradients = [p.grad for p in parameters]
    devices = list({p.device for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value, gradient in zip(parameters, values, gradients, strict=True):
                    parameter.copy_(value)
                    parameter.grad = gradient
