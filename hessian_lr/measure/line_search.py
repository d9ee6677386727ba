"""The critical learning rate: how far a direction leads downhill, from forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..batches import Batch, count_labels, count_tokens
from ..curvature.loss import mean_loss, trainable
from ..curvature.measurable import require_measurable
from ..curvature.vectors import displaced
from ..distributed import team

# A change below this share of the loss is taken for rounding: float32 sums over a few thousand tokens
# scatter by about 1e-6, bfloat16 ones by up to 3e-3. At η_c the loss rises steeply (by 4 to 10% of itself
# for 10% more, over three methods of two models), so that η_c is hardly moved by either.
NOISE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 5e-3}
SMALLEST, LARGEST = 1e-9, 1e3


def critical_learning_rate(
    model: nn.Module,
    batches: Sequence[Batch],
    direction: Tensor,
    *,
    start: float = 1e-3,
    factor: float = 1.2,
    dtype: torch.dtype = torch.float32,
) -> tuple[float | None, int]:
    """η_c: the smallest η found with L(θ − η·u) > L(θ), and the forward passes it took.

    The search starts at ``start``, goes up or down in factors of 4 until η_c is bracketed, and
    bisects in log η until the bracket is narrower than ``factor``. An increase must exceed
    rounding. On a quadratic η_c is twice the directional step g·u / (u·H·u); 2/η_c is the critical
    sharpness of arXiv 2601.16979. Weights are restored exactly.

    Args:
        model: The model; only trainable parameters move.
        batches: Where L is measured.
        direction: u, shape (n,).
        dtype: Precision of the forward passes. A way down too shallow for bfloat16 to see is looked for
            again in float32.

    Returns:
        (η_c, forward passes over ``batches``); η_c is None where the first step down already
        leads uphill at every scale, or nowhere within 1e-9 … 1e3.
    """
    require_measurable(model)
    found, forwards = _search(model, batches, direction, start, factor, dtype)
    if found is None and dtype is torch.bfloat16:
        found, again = _search(model, batches, direction, start, factor, torch.float32)
        forwards += again
    return found, forwards


def loss_along(
    model: nn.Module, batches: Sequence[Batch], direction: Tensor, rate: float, dtype: torch.dtype
) -> float:
    """L(θ − η·u) for η = ``rate``."""
    with displaced(trainable(model), direction, -rate):
        return _loss(model, batches, dtype)


def _search(
    model: nn.Module,
    batches: Sequence[Batch],
    direction: Tensor,
    start: float,
    factor: float,
    dtype: torch.dtype,
) -> tuple[float | None, int]:
    forwards = 1
    base = _loss(model, batches, dtype)
    noise = NOISE[dtype] * abs(base)

    def change(rate: float) -> int:
        """+1 uphill, −1 downhill, 0 where the difference is rounding."""
        nonlocal forwards
        forwards += 1
        loss = loss_along(model, batches, direction, rate, dtype)
        if not math.isfinite(loss) or loss - base > noise:
            return 1
        return -1 if base - loss > noise else 0

    rate, now = start, change(start)
    low, descended, flat = rate, False, now == 0
    while now != 1:
        descended |= now == -1
        if rate >= LARGEST:
            return None, forwards
        low, rate = rate, min(4 * rate, LARGEST)
        now = change(rate)
    high = rate
    if not descended:
        if flat and dtype is torch.bfloat16:
            # Float32 sees more of it, and is asked next.
            return None, forwards
        # A step that does not move the loss is too short to be one downhill, or leads back to where it began.
        rate = start
        while now != -1:
            if rate <= SMALLEST:
                return None, forwards
            rate = max(rate / 4, SMALLEST)
            now = change(rate)
            high = rate if now == 1 else high
        low = rate
    while high / low > factor:
        middle = math.sqrt(low * high)
        if change(middle) == 1:
            high = middle
        else:
            low = middle
    return high, forwards


def _loss(model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype) -> float:
    """``mean_loss``, each rank's batches by itself."""
    ranks = team()
    if ranks.size == 1:
        return mean_loss(model, batches, dtype)
    mine = [batches[i] for i in ranks.share([count_tokens([batch]) for batch in batches])]
    sums = torch.zeros(2, dtype=torch.float64, device=trainable(model)[0].device)
    with ranks.summing(sums):
        labels = sum(map(count_labels, mine))
        sums[0] = labels * mean_loss(model, mine, dtype) if labels else 0.0
        sums[1] = labels
    total, labels = sums.tolist()
    return total / labels
