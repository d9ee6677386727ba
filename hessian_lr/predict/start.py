"""λ at initialization for a prediction: by Lanczos, or by the closed form at B = 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ..batches import Batch
from ..curvature.closed_form import FAST_PRODUCTS, closed_form
from ..curvature.loss import trainable
from ..errors import HessianLRError, OutOfMemory
from ..measure import Curvature, peak_rss_bytes, sharpness
from ..measure.how import How

# λ's error to stop at: laws take a power of λ between −½ and 0, and the constants were fitted to
# measurements as rough as this.
RTOL = 0.1


def lr_eigenvalue(curvature: Curvature) -> float | None:
    """√(L / (λ·√n)), a learning rate that λ at initialization speaks for; None unless λ > 0.

    In the sharpest direction the quadratic λ·x²/2 has the size of the loss L where x = √(2·L/λ). A step of
    Adam's first kind, η in every one of n parameters, goes far less than its length η·√n that way: over the
    bench's small models the best learning rates ask for η·n^a with a = 0.23 ± 0.03, whose nearest simple
    fraction is taken (experiments/lr_bench). The 2 is left to the constant. Multiplying the loss leaves it as
    it is; parameters × k make it × k. Parameters that the sample gives no gradient are none of the n: Adam
    leaves them where they are.
    """
    value, loss = curvature.lambda_max, curvature.loss
    if value is None or value <= 0 or not loss:
        return None
    return math.sqrt(loss / value) / _moved(curvature) ** 0.25


def lr_sharpness(curvature: Curvature) -> float | None:
    """√(L / (λ·n)), which the constants up to 2026.11-e are made for; None unless λ > 0.

    As ``lr_eigenvalue``, but with a step that goes all of its length in the sharpest direction.
    """
    shorter = lr_eigenvalue(curvature)
    return shorter and shorter / _moved(curvature) ** 0.25


def _moved(curvature: Curvature) -> int:
    return curvature.parameters - curvature.unreached


def by_lanczos(model: nn.Module, batches: Sequence[Batch], how: How) -> Curvature:
    """λ by Lanczos on the Hessian's products.

    Raises:
        HessianLRError: the measurement failed (``OutOfMemory``: for that); its reason is the message.
    """
    curvature = sharpness(
        model,
        batches,
        rtol=RTOL,
        dtype=how.dtype,
        memory_budget=how.memory_budget,
        seed=how.seed,
        progress=how.progress,
        checkpoints=how.checkpoints,
    )
    if curvature.lambda_max is None:
        failure = OutOfMemory if curvature.out_of_memory else HessianLRError
        raise failure("; ".join(curvature.notes))
    if not curvature.unreached:
        return curvature
    share, lower = curvature.unreached / curvature.parameters, curvature.parameters / _moved(curvature)
    note = (
        f"lr_eigenvalue leaves out {share:.1%} of the parameters, to which the sample gives no gradient (an "
        "embedding's, of tokens that are not in it): for a run whose rows have all of those tokens it is "
        f"{lower**0.25:.2g} times too high"
    )
    return replace(curvature, notes=(*curvature.notes, note))


def by_closed_form(model: nn.Module, batches: Sequence[Batch], how: How) -> Curvature:
    """λ of plain LoRA and rsLoRA from a gradient and a few products (``closed_form``).

    Raises:
        RequestError: another method, or an adapter that has been trained.
    """
    found = closed_form(
        model,
        batches,
        dtype=how.dtype,
        max_products=FAST_PRODUCTS,
        memory_budget=how.memory_budget,
        seed=how.seed,
        progress=how.progress,
    )
    told = (
        f"λ by the closed form at B = 0, {found.products} products: between {found.lower:.4g} and "
        f"{found.upper:.4g} with {found.confidence:.0%} confidence; no sampling error was computed"
    )
    return Curvature(
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
        samples=sum(len(batch["input_ids"]) for batch in batches),
        parameters=sum(p.numel() for p in trainable(model)),
        notes=(told, *found.notes),
    )
