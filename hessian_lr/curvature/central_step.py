"""The step h of a central difference D(h) ≈ H·u of gradients, chosen from the data.

Two errors oppose: the third-order term of Taylor's series, h²/6·‖D³g[u, u, u]‖, and the rounding of
the gradients and of the displaced weights, about r/h. The sum is least where h³ = 3r/‖D³g‖, so h goes with
the cube root of the rounding (Nocedal & Wright, Numerical Optimization, 2006, section 8.1). Neither constant
is known beforehand: both are seen in D(2h) − D(h), D the quotient above, which is three times
D(h)'s truncation where that is what counts, and its rounding where that is. The step is where it is least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Steps tried are ‖θ‖·2^−k, k below this; first every third.
LONGEST, COARSE = 30, 3
# As LONGEST, where the base's weights are narrower than float32: gradients that are equal but for a few
# flips of their last bits give differences that agree with each other and mean nothing.
NARROW = 12
# A share of H·u beyond which differences are noise rather than products.
WORST = 0.25


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
