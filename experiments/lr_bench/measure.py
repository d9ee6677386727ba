"""Everything a predictor might be made of, measured on one setting before its sweep.

Unit of cost: a gradient of the loss over one row of the data (the share of a forward pass: 1/2; of a
Hessian-vector product: what the operator counts), so that costs compare with a run's steps × batch size.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from hessian_lr.curvature.adam import (
    PreconditionedOperator,
    adam_direction,
    adam_preconditioner,
    stability_threshold,
)
from hessian_lr.curvature.loss import trainable
from hessian_lr.curvature.operator import HessianOperator
from hessian_lr.curvature.vectors import flatten
from hessian_lr.curvature.weight_gradients import adapted_layers, weight_gradients
from hessian_lr.errors import HessianLRError
from hessian_lr.measure import sharpness, unchanged
from hessian_lr.measure.line_search import critical_learning_rate
from hessian_lr.measure.preconditioned import ATTEMPTS, BEYOND, SMALLER, WARMUP_SHARE
from hessian_lr.measure.warmup import WARMUP_STEPS, warm_up
from hessian_lr.prepare import Prepared
from hessian_lr.setting import BETAS
from hessian_lr.spectrum import lanczos
from hessian_lr.spectrum.lanczos import dot, random_vectors

from .laws import AFTER, GENTLE

GENTLER = 4  # times: the second warm-up's learning rate
RTOL = 0.1  # no predictor is as sharp as that
PROBES = 3  # of the stochastic trace
Figures = dict[str, float | None]


def measure(prepared: Prepared) -> dict[str, Any]:
    """All figures by name; None where a quantity does not exist (no descent, no positive curvature)."""
    model, batches = prepared.model, prepared.batches
    began = time.perf_counter()
    at_start, gradient = _at_start(prepared)
    found: dict[str, Any] = dict(at_start)
    if found["lr_critical_start"]:
        found |= after_warm_ups(prepared, found["lr_critical_start"] * WARMUP_SHARE, gradient)
    found["rows"] = len(batches)
    found["parameters"] = sum(p.numel() for p in trainable(model))
    found["measure_seconds"] = round(time.perf_counter() - began, 2)
    return found


def after_warm_ups(prepared: Prepared, top_lr: float, gradient: Tensor, beyond: float = BEYOND) -> Figures:
    """Figures after the package's warm-up, made smaller as it does, and after one that is gentler still.

    Args:
        prepared: The setting, at its start.
        top_lr: The warm-up's largest learning rate, before it is made smaller.
        gradient: At the start.
        beyond: η·λ_P/38 after a warm-up to η from which it is made smaller.
    """
    warmup_cost = products = 0.0
    for attempt in range(1 + ATTEMPTS):
        with unchanged(prepared.model):
            near = _after(prepared, top_lr, gradient, near=True)
        warmup_cost += WARMUP_STEPS * len(prepared.warmup_batches[0]["input_ids"])
        products += near.get("products") or 0.0
        stable = near.get("lr_stability")
        if attempt == ATTEMPTS or (stable and top_lr <= beyond * stable):
            break
        top_lr /= SMALLER
    if near:
        # Every attempt has to be paid for.
        near |= {"warmup_cost": warmup_cost, "products": products}
    with unchanged(prepared.model):
        gentle = _after(prepared, top_lr / GENTLER, gradient, near=False)
    named = ((AFTER, near), (GENTLE, gentle))
    return {f"{name}{key}": value for name, values in named for key, value in values.items()}


def _at_start(prepared: Prepared) -> tuple[Figures, Tensor]:
    model, batches, rows = prepared.model, prepared.batches, len(prepared.batches)
    curvature = sharpness(model, batches, dtype=prepared.dtype, rtol=RTOL, max_products=15, seed=0)
    gauss_newton = sharpness(
        model, batches, dtype=prepared.dtype, rtol=RTOL, max_products=15, seed=0, operator="gauss-newton"
    )
    operator = HessianOperator(model, batches, dtype=prepared.dtype)
    gradient = operator.gradient()
    slope, bend = _along(operator, gradient.sign())
    of_b = _lambda_of_b(model, operator)
    # Of the whole sample: one batch of two rows would make it a matter of luck. After the products, whose
    # graphs would have to be built anew once the weights have moved.
    critical, forwards = _critical(model, batches, gradient.sign())
    figures: Figures = {
        "loss_start": curvature.loss,
        "lambda_start": curvature.lambda_max,
        "lambda_start_cost": curvature.gradient_equivalents * rows,
        "sampling_error_start": curvature.sampling_error,
        "lambda_b_start": of_b,
        "gauss_newton_start": gauss_newton.lambda_max,
        "gauss_newton_start_cost": gauss_newton.gradient_equivalents * rows,
        "gradient_l2": float(gradient.norm()),
        "gradient_l1": float(gradient.abs().sum()),
        "weight_gradient_norm": _weight_gradient_norm(prepared),
        "lr_critical_start": critical,
        "lr_critical_start_cost": (1 + 0.5 * forwards) * rows,
        "lr_directional_start": slope / bend if bend > 0 else None,
    }
    return figures, gradient


def _weight_gradient_norm(prepared: Prepared) -> float:
    """max σ₁(∂L/∂W) over the adapted weights W, which at the start is the same for every method."""
    weights = {name: layer.get_base_layer().weight for name, layer in adapted_layers(prepared.model).items()}
    gradients = weight_gradients(prepared.model, weights, prepared.batches, prepared.dtype)
    return max(_spectral_norm(matrix) for matrix in gradients.values())


def _spectral_norm(matrix: Tensor) -> float:
    dense = matrix.detach().double().cpu().numpy()
    if not dense.any():
        return 0.0
    if min(dense.shape) < 8:
        return float(np.linalg.norm(dense, 2))
    return float(svds(dense, k=1, random_state=0, tol=1e-8, return_singular_vectors=False)[0])


def _after(prepared: Prepared, top_lr: float, first: Tensor, *, near: bool) -> Figures:
    """Sharpness and steps in Adam's geometry after a warm-up; nothing where it diverged.

    What is worth its price only once is measured where it is the near one.
    """
    model, batches, rows = prepared.model, prepared.batches, len(prepared.batches)
    before = [p.detach().clone() for p in trainable(model)]
    try:
        optimizer = warm_up(
            model, prepared.warmup_batches, steps=WARMUP_STEPS, top_lr=top_lr, dtype=prepared.dtype
        )
    except HessianLRError:
        return {}
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(trainable(model), before, strict=True)])
    operator = HessianOperator(model, batches, dtype=prepared.dtype)
    diagonal = adam_preconditioner(optimizer, operator.parameters)
    direction = adam_direction(optimizer, operator.parameters)
    gradient = operator.gradient()
    slope, bend = _along(operator, direction)
    preconditioned = PreconditionedOperator(operator, diagonal)
    top = lanczos(preconditioned.matvec, operator.size, rtol=RTOL, max_products=12, seed=0)
    plain = lanczos(operator.matvec, operator.size, rtol=RTOL, max_products=12, seed=0) if near else None
    trace = _trace(preconditioned, operator.size) if near else None
    critical, forwards = _critical(model, batches, direction)
    batch = len(prepared.warmup_batches[0]["input_ids"])
    figures: Figures = {
        "warmup_lr": top_lr,
        "lambda_preconditioned": top.value,
        "lr_stability": stability_threshold(BETAS[0]) / top.value if top.value > 0 else None,
        "products": float(top.products),
        "epsilon_share": float((top.vector.double() ** 2)[diagonal <= 1e-8].sum()),
        "preconditioned_trace": trace,
        "lambda": plain.value if plain else None,
        "slope": slope,
        "bend": bend,
        "lr_directional": slope / bend if slope > 0 and bend > 0 else None,
        "lr_critical": critical,
        "direction_l2": float(direction.norm()),
        "direction_l1": float(direction.abs().sum()),
        "moved_l2": float(moved.norm()),
        "gradient_l2": float(gradient.norm()),
        # How much of the gradient is left, and how far the noise of a batch sets Adam's pace.
        "gradient_cosine": float(dot(gradient, first) / (gradient.norm() * first.norm())),
        "preconditioned_gradient": float((gradient.abs() / diagonal).mean()),
        "loss": operator.loss,
        "warmup_cost": float(WARMUP_STEPS * batch),
        "products_cost": operator.cost.gradient_equivalents / max(operator.cost.matvecs, 1) * rows,
        "lr_critical_cost": 0.5 * forwards * rows,
    }
    return figures


def _critical(model: nn.Module, batches: Any, direction: Tensor) -> tuple[float | None, int]:
    return critical_learning_rate(model, batches, direction, factor=1.2)


def _along(operator: HessianOperator, direction: Tensor) -> tuple[float, float]:
    return dot(operator.gradient(), direction), dot(direction, operator.matvec(direction))


def _lambda_of_b(model: nn.Module, operator: HessianOperator) -> float | None:
    """λ over the B factors alone, the rest held; None where the method has no factor of that name."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    mask = flatten(
        [
            torch.full_like(p, float("lora_B" in name))
            for name, p in zip(names, operator.parameters, strict=True)
        ]
    )
    if not bool(mask.any()):
        return None
    start = mask * random_vectors(1, operator.size, torch.Generator().manual_seed(2))[0].float()
    found = lanczos(
        lambda v: mask * operator.matvec(mask * v),
        operator.size,
        rtol=RTOL,
        max_products=8,
        seed=0,
        start=start,
    )
    return found.value


def _trace(operator: PreconditionedOperator, size: int) -> float:
    """Hutchinson's estimate, over unit vectors times n."""
    vectors = random_vectors(PROBES, size, torch.Generator().manual_seed(1))
    quotients = [dot(v, operator.matvec(v.float())) / dot(v, v) for v in vectors]
    return size * math.fsum(quotients) / PROBES
