"""λ as this package measures it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import hessian_lr as hlr
from hessian_lr.batches import Batch
from hessian_lr.errors import HessianLRError

from .naive import chosen_modules
from .running import TOLERANCE, LimitReached, Trace


def joint(
    model: nn.Module,
    batches: Sequence[Batch],
    trace: Trace,
    seed: int,
    dtype: torch.dtype,
    rtol: float = TOLERANCE,
) -> float | None:
    """λ over all modules together; the time of the final, verifying product is in the stop."""

    def progress(_products: int, _limit: int, theta: float, residual: float) -> None:
        trace.product(theta, residual)
        trace.check(products=False)

    found = hlr.sharpness(
        model,
        batches,
        rtol=rtol,
        max_products=trace.max_products,
        dtype=dtype,
        seed=seed,
        progress=progress,
    )
    trace.notes += found.notes
    if found.status == "failed":
        raise HessianLRError(found.notes[-1])
    trace.stopped(found.lambda_max, found.matvecs)
    if found.status == "budget":
        raise LimitReached(f"stopped after {found.matvecs} products")
    return found.lambda_max


def modules_together(
    model: nn.Module, batches: Sequence[Batch], trace: Trace, seed: int, modules: int, dtype: torch.dtype
) -> None:
    """λ of the modules that the naive recipe takes one after another."""
    from hessian_lr.measure import module_sharpness

    chosen_modules(model, modules)
    spectrum = module_sharpness(
        model, batches, rtol=TOLERANCE, max_products=trace.max_products, dtype=dtype, seed=seed
    )
    trace.notes += spectrum.notes
    for one in spectrum.modules:
        trace.modules.append(
            {
                "name": one.name,
                "value": one.lambda_max,
                "residual": one.residual,
                "products": one.products,
                "seconds": None,
            }
        )
    trace.stopped(None, sum(one.products for one in spectrum.modules))
