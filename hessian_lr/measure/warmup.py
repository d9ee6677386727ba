"""A few small training steps that take an adapter away from its initialization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import nn

from ..batches import Batch, count_labels, count_tokens, require_labels, to_device
from ..curvature.loss import summed_loss, trainable
from ..curvature.measurable import require_measurable
from ..curvature.modes import compute_in, quiet_model, without_steps
from ..curvature.nonfinite import nonfinite_loss
from ..curvature.plan import Plan
from ..distributed import Team, team
from ..setting import BETAS, EPSILON

# Tokens whose graph is there at once, as in a microbatch of a GPU's.
PART_TOKENS = 8192
# Of a warm-up; a batch each, where there are as many.
WARMUP_STEPS = 10
#: ``make(model, lr, betas=…, eps=…)``: the optimizer of a run whose learning rate is ``lr``.
MakeOptimizer: TypeAlias = Callable[..., torch.optim.Optimizer]


def split_batches(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Training batches to warm up on (the first half, but no more than there are steps) and to measure on."""
    cut = min(len(batches) // 2, WARMUP_STEPS)
    return batches[:cut], batches[cut:]


def adamw(model: nn.Module, lr: float, *, betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """AdamW without weight decay, of one learning rate for all that is trained."""
    # foreach=False: the moments are then the same on every device, and small models gain nothing.
    return torch.optim.AdamW(trainable(model), lr=lr, betas=betas, eps=eps, weight_decay=0.0, foreach=False)


def warm_up(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    steps: int,
    top_lr: float,
    dtype: torch.dtype,
    optimizer: MakeOptimizer = adamw,
) -> torch.optim.Optimizer:
    """Train for ``steps`` steps while the learning rate rises linearly to ``top_lr``.

    The model is changed; dropout is off, weight decay 0. Batches are used in order, one a step,
    and again from the first if there are fewer than ``steps``. Within ``distributed.across_ranks``
    each rank takes its share of a batch's rows and makes the same step, from the sum of all gradients: this
    is much of a prediction's work, and ranks that stepped by gradients of their own would drift apart.

    Returns:
        The optimizer with its moments.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
        RequestError: nothing is trainable, no token is labelled, or another rank has other batches.
    """
    parameters = require_measurable(model)
    made = optimizer(model, top_lr, betas=BETAS, eps=EPSILON)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    device = parameters[0].device
    require_labels(batches)
    usable = [batch for batch in batches if count_labels(batch)]
    ranks = team()
    with quiet_model(model), without_steps(parameters), torch.enable_grad():
        for step in range(steps):
            batch = to_device(usable[step % len(usable)], device)
            for group in made.param_groups:
                group["lr"] = group["initial_lr"] * (step + 1) / steps
            sums = [torch.zeros_like(parameter) for parameter in parameters]
            for parameter, total in zip(parameters, sums, strict=True):
                parameter.grad = total
            plan = Plan([parameter.device for parameter in parameters], {0: count_tokens([batch])}, 0)
            alike = [batch[name] for name in sorted(batch)]
            with ranks.summing(*sums, alike=alike, of="warm-up"), plan.explained(dtype):
                for part in _parts(batch, ranks):
                    with compute_in(device, dtype):
                        loss = summed_loss(model, part) / count_labels(batch)
                    if not bool(torch.isfinite(loss)):
                        raise nonfinite_loss(model, part, dtype, f"the loss at warm-up step {step + 1}")
                    # Adds to the sums in place; autograd.grad sees nothing inside reentrant checkpoints.
                    loss.backward()
            made.step()
    return made


def _parts(batch: Batch, ranks: Team) -> Iterator[Batch]:
    """A rank's rows in parts: who accumulates gradients does so because a batch does not fit at once."""
    count, width = batch["input_ids"].shape
    if any(len(value) != count for value in batch.values()):
        if ranks.share([1]):
            yield batch
        return
    if ranks.size > 1:
        mine = ranks.share([1] * count)
        batch, count = {name: value[mine] for name, value in batch.items()}, len(mine)
    rows = max(1, PART_TOKENS // width)
    for start in range(0, count, rows):
        part = {name: value[start : start + rows] for name, value in batch.items()}
        if count_labels(part):
            yield part
