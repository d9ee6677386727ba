"""The step h of a central difference D(h) ≈ H·u of gradients, chosen from the data.

Two errors oppose: the third-order term of Taylor's series, h²/6·‖D³g[u, u, u]‖, and the rounding of
the gradients and of the displaced weights, about r/h. The sum is least where h³ = 3r/‖D³g‖, so h goes with
the cube root of the rounding (Nocedal & Wright, Numerical Optimization, 2006, section 8.1). Neither constant
is known beforehand: both are seen in D(2h) − D(h), D the quotient above, which is three times
D(h)'s truncation where that is what counts, and its rounding where that is. The step is where it is least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..batches import Batch, count_labels, rows_of
from ..errors import HessianLRError

# Steps tried are ‖θ‖·2^−k, k below this; first every third.
LONGEST, COARSE = 30, 3
# As LONGEST, where the base's weights are narrower than float32: gradients that are equal but for a few
# flips of their last bits give differences that agree with each other and mean nothing.
NARROW = 12
# A share of H·u beyond which differences are noise rather than products.
WORST = 0.25


def best_step(
    difference: Callable[[Tensor, float], Tensor], gradient: Tensor, size: float, longest: int
) -> float:
    """The h at which D(2h)·u − D(h)·u is least, u along g/‖g‖ + H·g/‖H·g‖.

    Args:
        difference: (v, h) ↦ D(h)·v, shape (n,).
        gradient: g, shape (n,), not zero.
        size: ‖θ‖, of which steps are shares.
        longest: ``LONGEST`` or ``NARROW``.

    Raises:
        HessianLRError: it is a large part of D(h)·u at every h.
    """
    # The image's direction only has to be roughly right.
    image = difference(unit(gradient), size * torch.finfo(torch.float32).eps ** (1 / 3))
    u = unit(unit(gradient) + unit(image)) if bool(image.any()) else unit(gradient)
    known: dict[int, Tensor] = {}

    def change(k: int, apart: int) -> float:
        """‖D(2^apart·h) − D(h)‖/‖D(h)‖, h = 2^k·‖θ‖."""
        for one in (k, k + apart):
            if one not in known:
                known[one] = difference(u, size * 2.0**one)
        value = relative(known[k + apart] - known[k], known[k])
        return value if math.isfinite(value) else math.inf

    best = valley(change, longest)
    if not (share := change(best, 1)) <= WORST:
        raise HessianLRError(
            f"central differences of gradients are off by {share:.0%} of the product at the best step: "
            "use float32, also for the base weights, and a model that gives the same twice"
        )
    return size * 2.0**best


def valley(change: Callable[[int, int], float], longest: int) -> int:
    """The k ≤ −1 where ``change(k, 1)`` is least: by factors of 8 downwards, then by 2 around the best."""
    coarse: dict[int, float] = {}
    for k in range(-COARSE, -longest, -COARSE):
        coarse[k] = change(k, COARSE)
        best = min(coarse, key=lambda one: coarse[one])
        # Where even D(8h) and D(h) agree, smaller steps that do worse are rounding's.
        if coarse[best] <= WORST and k <= best - 2 * COARSE:
            break
    fine: dict[int, float] = {}
    at = best
    while True:
        for k in (at - 1, at, at + 1):
            if k not in fine:
                fine[k] = change(k, 1) if k < 0 else math.inf
        lowest = min(fine, key=lambda one: fine[one])
        if lowest == at:
            return at
        at = lowest


def rows_by_length(batches: Sequence[Batch]) -> Iterator[tuple[Batch, int]]:
    """The rows that have a label, with their number of labels, the shortest microbatch's first."""
    for batch in sorted(batches, key=lambda one: one["input_ids"].shape[1]):
        count = len(batch["input_ids"])
        whole = any(len(value) != count for value in batch.values())
        rows = [batch] if whole else rows_of(batch)
        yield from ((row, labels) for row in rows if (labels := count_labels(row)))


@contextmanager
def weights_used(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """The types of the trainable weights while they are used: FSDP2 may keep them wider than it uses them."""
    types: set[torch.dtype] = set()

    def look(module: nn.Module, _arguments: object) -> None:
        types.update(p.dtype for p in module.parameters(recurse=False) if p.requires_grad)

    owners = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(look) for module in owners]
    try:
        yield types
    finally:
        for hook in hooks:
            hook.remove()


def norm(vector: Tensor) -> float:
    """‖v‖, summed in float64."""
    return float(torch.linalg.vector_norm(vector.detach(), dtype=torch.float64))


def unit(vector: Tensor) -> Tensor:
    """v/‖v‖."""
    return vector / norm(vector)


def relative(difference: Tensor, of: Tensor) -> float:
    """‖difference‖/‖of‖."""
    return norm(difference) / max(norm(of), 1e-300)
