"""Sharpness in Adam's own geometry, measured after a short warm-up.

At initialization Adam's second moments do not exist yet, and for B = 0 those of A are zero; a few
small steps later they say how far Adam will go in each direction. There the preconditioned
sharpness λ_P = λ_max(P^-½·H·P^-½) bounds the learning rate: η < 38/λ_P for β₁ = 0.9 (Cohen et al.
2022, arXiv 2207.14484).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import Checkpoints
from ..curvature.adam import Geometry, geometry, stability_threshold
from ..curvature.loss import Batch, count_tokens
from ..curvature.operator import HessianOperator, flatten, unflatten
from ..errors import HessianLRError
from ..measure import peak_rss_bytes, sampling_error, spectrum_notes, unchanged, verified
from ..records import Record
from ..spectrum import Eigenvalue, lanczos
from ..spectrum.lanczos import dot
from .line_search import critical_learning_rate
from .warmup import BETAS, EPSILON, MakeOptimizer, adamw, warm_up

Report = Callable[[str, int, int, str], None]

WARMUP_STEPS = 10
# The warm-up's largest step as a share of the critical learning rate at initialization. One rule
# for every method: the size of the warm-up moves λ_P, so it must not be chosen by taste.
WARMUP_SHARE = 1 / 8
# A warm-up that has not left the starting point is made this much larger, at most so many times:
# up to half the critical learning rate, beyond which the steps would no longer be small.
ENLARGE, ATTEMPTS = 2.0, 2


@dataclass(frozen=True)
class AdamSharpness(Record):
    """What was measured after the warm-up.

    Attributes:
        lambda_preconditioned: λ_P's Ritz value (≤ λ_P).
        residual, upper, sampling_error: Of λ_P, as in ``Curvature``.
        status: Of the eigenvalue, ``"converged"`` or ``"budget"``.
        lr_stability: 38/λ_P, the learning rate at which Adam becomes unstable on the quadratic.
        lr_directional: g·u / (u·H·u) along Adam's own step u; None unless both are positive: on a
            sample the warm-up has not seen, g·u may be noise.
        lr_critical: η_c along u; None if there is no directional step, or none was found.
        lr_critical_start: η_c along the first step, sign(g), at initialization; it sets the warm-up's size.
        warmup_lr: The warm-up's largest learning rate.
        warmup_steps: Its number of steps.
        matvecs, gradient_equivalents, seconds, peak_rss_bytes: What it cost, in all.
        notes: What a reader should know.
        stability_slack: The factor by which the optimizer's own threshold may lie off ``lr_stability``,
            either way: 1 for Adam.
    """

    lambda_preconditioned: float
    residual: float
    upper: float | None
    sampling_error: float | None
    status: str
    lr_stability: float
    lr_directional: float | None
    lr_critical: float | None
    lr_critical_start: float
    warmup_lr: float
    warmup_steps: int
    matvecs: int
    gradient_equivalents: float
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()
    stability_slack: float = 1.0


def adam_sharpness(
    model: nn.Module,
    batches: Sequence[Batch],
    warmup_batches: Sequence[Batch],
    *,
    dtype: torch.dtype = torch.float32,
    rtol: float = 0.1,
    max_products: int = 25,
    memory_budget: int | None = None,
    seed: int = 0,
    optimizer: MakeOptimizer = adamw,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
) -> AdamSharpness:
    """Warm up, measure λ_P, the directional step and the critical learning rate, and put all back.

    Args:
        model: A model with an adapter at its initialization.
        batches: The curvature sample, which the warm-up does not see.
        warmup_batches: Training batches of the run's own batch size.
        dtype: Precision of the products and of the warm-up (forward-only searches are float32).
        rtol, max_products, memory_budget, seed: As for ``sharpness``. A residual ρ of a tenth is
            enough here: the eigenvalue's error is ρ²/δ with δ the gap to the rest of the spectrum.
        optimizer: The run's optimizer, if it is not AdamW with one learning rate.
        report: Called with (stage, done, total, detail).
        checkpoints: Where Lanczos's state is kept. The warm-up, which is short, is made again.

    Raises:
        HessianLRError: no learning rate leads downhill from the start, or a value is not finite.
        RequestError: nothing trainable or labelled.
    """
    began = time.perf_counter()
    tell = report or (lambda *_: None)
    notes: list[str] = []
    work = 0.0
    with unchanged(model):
        tell("critical learning rate", 0, 1, "at the start")
        first, forwards = _initial_critical(model, batches, dtype, optimizer)
        work += (1 + 0.5 * forwards) * count_tokens(batches)
        top_lr = first * WARMUP_SHARE
        for attempt in range(ATTEMPTS + 1):
            with unchanged(model):
                tell("warm-up", 0, WARMUP_STEPS, f"up to a learning rate of {top_lr:.1e}")
                made = warm_up(
                    model,
                    warmup_batches,
                    steps=WARMUP_STEPS,
                    top_lr=top_lr,
                    dtype=dtype,
                    optimizer=optimizer,
                )
                work += sum(
                    count_tokens([warmup_batches[i % len(warmup_batches)]]) for i in range(WARMUP_STEPS)
                )
                operator = HessianOperator(model, batches, dtype=dtype, memory_budget=memory_budget)
                metric = geometry(made, operator.parameters)
                direction = metric.direction
                slope, bend = _along(operator, direction)
                trouble = None if bend > 0 else "the loss bends down along Adam's step, as at B = 0"
                last = attempt == ATTEMPTS
                if trouble is None or last:
                    found = _preconditioned(operator, metric, rtol, max_products, seed, tell, checkpoints)
                    scatter = sampling_error(operator.batch_forms, operator.weights)
                    trouble = trouble or _decided_by_epsilon(found, metric)
                work += operator.cost.gradient_equivalents * operator.tokens
                if trouble is None or last:
                    directional = slope / bend if slope > 0 and bend > 0 else None
                    critical = None
                    if directional is not None:
                        tell("critical learning rate", 0, 1, "along Adam's step")
                        critical, forwards = critical_learning_rate(
                            model, batches[:1], direction, start=2 * directional, dtype=dtype
                        )
                        work += 0.5 * forwards * count_tokens(batches[:1])
                    break
            notes.append(f"warm-up enlarged {ENLARGE:g}-fold from a learning rate of {top_lr:.1e}: {trouble}")
            top_lr *= ENLARGE
    if trouble is not None:
        notes.append(f"the warm-up may be too small: {trouble}")
    return AdamSharpness(
        lambda_preconditioned=found.value,
        residual=found.residual,
        upper=found.upper,
        sampling_error=scatter,
        status=found.status,
        lr_stability=stability_threshold(BETAS[0]) / found.value if found.value > 0 else math.inf,
        lr_directional=directional,
        lr_critical=critical,
        lr_critical_start=first,
        warmup_lr=top_lr,
        warmup_steps=WARMUP_STEPS,
        matvecs=operator.cost.matvecs,
        gradient_equivalents=round(work / operator.tokens, 3),
        seconds=round(time.perf_counter() - began, 3),
        peak_rss_bytes=peak_rss_bytes(),
        notes=(*notes, *spectrum_notes(found, operator)),
        stability_slack=metric.stability_slack,
    )


def _initial_critical(
    model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype, optimizer: MakeOptimizer
) -> tuple[float, int]:
    """η_c along the optimizer's first step at initialization, with the forward passes it took."""
    operator = HessianOperator(model, batches, dtype=dtype, memory_budget=0)
    gradient = operator.gradient()
    if not bool(gradient.any()):
        raise HessianLRError("the gradient is zero at the start: nothing to learn from these batches")
    # Adam's is the gradient's sign: there is no need to take it.
    direction = gradient.sign() if optimizer is adamw else _first_step(operator, gradient, optimizer)
    critical, forwards = critical_learning_rate(model, batches, direction, dtype=dtype)
    if critical is None:
        raise HessianLRError(
            "no learning rate between 1e-9 and 1e3 turns downhill into uphill along the gradient's sign: "
            + _why_never_uphill(model, operator.loss)
        )
    return critical, forwards


def _why_never_uphill(model: nn.Module, loss: float) -> str:
    guessing = math.log(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    if loss > guessing:
        # Steps that are far too long end near guessing, which is downhill from here.
        return (
            f"the loss at the start is {loss:.3g}, more than the {guessing:.3g} of guessing among all tokens "
            "alike, so that even a ruinous step lowers it; is the model trained, and do tokenizer and data "
            "belong to it?"
        )
    return "the loss does not respond to the adapter as a loss should (frozen output? constant labels?)"


def _first_step(operator: HessianOperator, gradient: Tensor, optimizer: MakeOptimizer) -> Tensor:
    """What the optimizer's first step subtracts at a learning rate of 1."""
    parameters = operator.parameters
    with unchanged(operator.model):
        made = optimizer(operator.model, 1.0, betas=BETAS, eps=EPSILON)
        before = flatten(parameters)
        for parameter, piece in zip(parameters, unflatten(gradient, parameters), strict=True):
            parameter.grad = piece
        made.step()
        return before - flatten(parameters)


def _along(operator: HessianOperator, direction: Tensor) -> tuple[float, float]:
    """g·u and u·H·u over the whole sample."""
    slope = dot(operator.gradient(), direction)
    return slope, dot(direction, operator.matvec(direction))


def _preconditioned(
    operator: HessianOperator,
    metric: Geometry,
    rtol: float,
    max_products: int,
    seed: int,
    tell: Report,
    checkpoints: Checkpoints | None,
) -> Eigenvalue:
    preconditioned = metric.precondition(operator)

    def show(done: int, total: int, theta: float, residual: float) -> None:
        tell(
            "preconditioned Lanczos", done, total, f"θ {theta:.3g}, ρ {residual / max(abs(theta), 1e-30):.0%}"
        )

    asked: dict[str, Any] = {"rtol": 0.8 * rtol, "max_products": max_products, "seed": seed}
    found = lanczos(
        preconditioned.matvec,
        operator.size,
        **asked,
        device=operator.device,
        dtype=operator.parameters[0].dtype,
        progress=show,
        # Adam's step tells P and the moments apart, as the weights tell the warm-up.
        checkpoint=None
        if checkpoints is None
        else checkpoints.of(operator, metric.direction, stage="adam", **asked),
    )
    return verified(found, preconditioned, rtol)


def _decided_by_epsilon(found: Eigenvalue, metric: Geometry) -> str | None:
    """The complaint if λ_P's eigenvector lives where the optimizer's ε, not the gradients, makes P."""
    share = metric.decided_by_epsilon(found.vector)
    return f"Adam's epsilon decides {share:.0%} of the eigenvector" if share > 0.5 else None
