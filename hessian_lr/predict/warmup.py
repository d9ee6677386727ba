"""A few small training steps that take an adapter away from its initialization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..curvature.loss import (
    Batch,
    compute_in,
    count_labels,
    quiet_model,
    require_finite,
    summed_loss,
    to_device,
    trainable,
)

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def warm_up(
    model: nn.Module, batches: Sequence[Batch], *, steps: int, top_lr: float, dtype: torch.dtype
) -> torch.optim.AdamW:
    """Train for ``steps`` AdamW steps while the learning rate rises linearly to ``top_lr``.

    The model is changed; dropout is off, weight decay 0. Batches are used in order, one a step,
    and again from the first if there are fewer than ``steps``.

    Returns:
        The optimizer with its moments.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        RequestError: nothing is trainable.
    """
    parameters = trainable(model)
    # foreach=False: the moments are then the same on every device, and small models gain nothing.
    optimizer = torch.optim.AdamW(
        parameters, lr=top_lr, betas=BETAS, eps=EPSILON, weight_decay=0.0, foreach=False
    )
    device = parameters[0].device
    usable = [batch for batch in batches if count_labels(batch)]
    with quiet_model(model), torch.enable_grad():
        for step in range(steps):
            batch = to_device(usable[step % len(usable)], device)
            with compute_in(device, dtype):
                loss = summed_loss(model, batch) / count_labels(batch)
            require_finite(loss.detach(), f"the loss at warm-up step {step + 1}")
            optimizer.param_groups[0]["lr"] = top_lr * (step + 1) / steps
            optimizer.zero_grad(set_to_none=True)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return optimizer
