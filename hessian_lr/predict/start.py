"""λ at initialization for a prediction: by Lanczos, or by the closed form at B = 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..curvature.closed_form import FAST_PRODUCTS, closed_form
from ..curvature.loss import Batch, trainable
from ..curvature.weight_gradients import gradient_norms
from ..errors import HessianLRError
from ..measure import Curvature, peak_rss_bytes, sharpness
from ..spectrum.lanczos import Progress

# Gradients over the adapted weights instead of the adapter: half a backward pass more than θ's own.
NORMS_COST = 1.5


@dataclass(frozen=True)
class Start:
    """λ at initialization, and the largest spectral norm of the loss's gradient over an adapted weight."""

    curvature: Curvature
    gradient_norm: float

    @property
    def lambda_ratio(self) -> float | None:
        """λ over the norm: what is left of λ when the loss's scale is taken out; None unless λ > 0."""
        value = self.curvature.lambda_max
        return value / self.gradient_norm if value and value > 0 and self.gradient_norm > 0 else None


def by_lanczos(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    dtype: torch.dtype,
    memory_budget: int | None,
    seed: int,
    progress: Progress | None,
) -> Start:
    """λ by Lanczos on the Hessian's products.

    Raises:
        HessianLRError: the measurement failed; its reason is the message.
    """
    curvature = sharpness(
        model, batches, dtype=dtype, memory_budget=memory_budget, seed=seed, progress=progress
    )
    if curvature.lambda_max is None:
        raise HessianLRError("; ".join(curvature.notes))
    norm = max(gradient_norms(model, batches, dtype).values())
    cost = curvature.gradient_equivalents + NORMS_COST
    return Start(replace(curvature, gradient_equivalents=cost), norm)


def by_closed_form(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    dtype: torch.dtype,
    memory_budget: int | None,
    seed: int,
    progress: Progress | None,
) -> Start:
    """λ of plain LoRA and rsLoRA from a gradient and a few products (``closed_form``).

    Raises:
        RequestError: another method, or an adapter that has been trained.
    """
    found = closed_form(
        model,
        batches,
        dtype=dtype,
        max_products=FAST_PRODUCTS,
        memory_budget=memory_budget,
        seed=seed,
        progress=progress,
    )
    told = (
        f"λ by the closed form at B = 0, {found.products} products: between {found.lower:.4g} and "
        f"{found.upper:.4g} with {found.confidence:.0%} confidence; no sampling error was computed"
    )
    curvature = Curvature(
        lambda_max=found.estimate,
        lambda_lower=found.lower,
        lambda_upper=found.upper,
        confidence=found.confidence,
        lambda_min=None,
        residual=found.residual,
        sampling_error=None,
        status=found.status,
        matvecs=found.products,
        gradient_equivalents=found.gradient_equivalents,
        seconds=found.seconds,
        peak_rss_bytes=peak_rss_bytes(),
        loss=found.loss,
        tokens=found.tokens,
        parameters=sum(p.numel() for p in trainable(model)),
        notes=(told, *found.notes),
    )
    return Start(curvature, found.gradient_norm)
