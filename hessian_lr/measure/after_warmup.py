"""What the Hessian's products tell after a warm-up: the curvature along the optimizer's step, and λ_P."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..batches import Batch
from ..curvature.adam import Geometry
from ..curvature.central import CentralOperator
from ..curvature.loss_operator import Cost, LossOperator
from ..spectrum import Eigenvalue
from ..spectrum.lanczos import dot
from .confirm import differences_checked, in_float32, sampling_error, spectrum_notes, verified
from .how import How, Symmetric


@dataclass(frozen=True)
class AfterWarmUp:
    """What was measured at the weights that a warm-up led to.

    Attributes:
        slope, bend: g·u and u·H·u along the optimizer's step u, over the whole sample.
        found: λ_P with its eigenvector in the optimizer's geometry.
        rounding: |θ of the search − θ|: what products in bfloat16 were off by along λ_P's eigenvector, from
            one in float32; None where the search was in float32, or was made again in it.
        sampling_error: Of λ_P.
        tokens: Of the sample, padding included.
        notes: What a reader should know of λ_P.
    """

    slope: float
    bend: float
    found: Eigenvalue
    rounding: float | None
    sampling_error: float | None
    tokens: int
    notes: tuple[str, ...]


def after_warm_up(
    make: Callable[..., LossOperator],
    *,
    model: nn.Module,
    batches: Sequence[Batch],
    metric: Geometry,
    how: How,
    rtol: float,
    max_products: int,
    costs: list[Cost],
) -> AfterWarmUp:
    """Measure at the model's weights as they are.

    Args:
        make: ``HessianOperator``, or what makes another ``LossOperator`` from the same arguments.
        model, batches: Where to measure, and on which sample.
        metric: The geometry of the optimizer that led here.
        how, rtol, max_products: As for ``adam_sharpness``.
        costs: Gets what the products cost, also of an attempt that fails.
    """
    used: list[LossOperator] = []

    def build(dtype: torch.dtype, budget: int | None) -> tuple[LossOperator, Symmetric]:
        used.append(make(model, batches, dtype=dtype, memory_budget=budget))
        costs.append(used[-1].cost)
        return used[-1], metric.precondition(used[-1])

    def search(products: LossOperator, matrix: Symmetric) -> Eigenvalue:
        # Adam's step tells P and the moments apart, as the weights tell the warm-up.
        return how.search(products, matrix, u, stage="adam", rtol=rtol, max_products=max_products)

    operator, preconditioned = build(how.dtype, how.memory_budget)
    if isinstance(operator, CentralOperator):
        operator.choose_step(metric.root)
    u = metric.direction
    slope, bend = dot(operator.gradient(), u), dot(u, operator.matvec(u))
    found = search(operator, preconditioned)
    rounding: float | None = None
    doubts: tuple[str, ...] = ()
    if operator.dtype is torch.bfloat16:
        operator.release()
        found, rounding, doubts = in_float32(found, build, search, how.memory_budget, rtol)
    else:
        found = verified(found, preconditioned, rtol)
    scatter = sampling_error(used[-1].batch_forms, used[-1].weights)
    checked, _ = differences_checked(found, operator, found.vector, rtol, metric.root)
    # Of the search itself; whether differences served is the operator's to tell.
    notes = [*doubts, *spectrum_notes(found, operator)]
    if (share := metric.decided_by_epsilon(found.vector)) > 0.5:
        notes.append(f"the warm-up may be too small: Adam's epsilon decides {share:.0%} of λ_P's eigenvector")
    if held := float((metric.root(torch.ones_like(u)) == 0).float().mean()):
        notes.append(
            f"λ_P leaves out {held:.1%} of the parameters, which the warm-up did not move: it gave them no "
            "gradient, or their learning rate is 0"
        )
    return AfterWarmUp(slope, bend, checked, rounding, scatter, operator.tokens, tuple(notes))
