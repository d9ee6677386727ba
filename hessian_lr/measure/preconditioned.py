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
from functools import partial

import torch
from torch import Tensor, nn

from ..checkpoints import Checkpoints
from ..curvature.adam import geometry, require_adam, stability_threshold
from ..curvature.central import twice_or_central
from ..curvature.loss import Batch, count_labels, count_tokens, trainable
from ..curvature.operator import Cost, HessianOperator
from ..curvature.vectors import flatten, unflatten
from ..distributed import laid_out
from ..errors import HessianLRError, NonFiniteError, RequestError
from ..records import Record
from .after_warmup import Report, after_warm_up
from .joint import peak_rss_bytes, unchanged
from .line_search import LARGEST, NOISE, critical_learning_rate, loss_along
from .warmup import BETAS, EPSILON, MakeOptimizer, adamw, warm_up

WARMUP_STEPS = 10
# The warm-up's largest step as a share of the critical learning rate at initialization. One rule
# for every method: the size of the warm-up moves λ_P, so it must not be chosen by taste.
WARMUP_SHARE = 1 / 8
# η·λ_P/38 after a warm-up to η: beyond 1 its last steps were unstable, and so far beyond it has thrown the
# model out of where a run would go: λ_P is then anything. Such a warm-up is made smaller, at most so many
# times. Of the settings that the constants come from one in twelve was as far (experiments/lr_bench/edge).
BEYOND, SMALLER, ATTEMPTS = 4.0, 4.0, 4


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

    Where the model cannot be differentiated twice, products are central differences, as in ``sharpness``: a
    note says so, with their measured error, and λ_P is not ``converged`` where that exceeds ``rtol``.

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
        RequestError: nothing trainable or labelled, or trainable parameters in float16.
    """
    if trainable(model)[0].dtype is torch.float16:
        raise RequestError(
            "the trainable parameters are torch.float16, whose range is too small for Adam's squares: make "
            "the adapter float32 (PEFT does unless autocast_adapter_dtype=False)"
        )
    began = time.perf_counter()
    tell = report or (lambda *_: None)
    notes: list[str] = []
    work = 0.0
    costs: list[Cost] = []
    measure = partial(
        after_warm_up,
        model=model,
        batches=batches,
        dtype=dtype,
        memory_budget=memory_budget,
        costs=costs,
        rtol=rtol,
        max_products=max_products,
        seed=seed,
        tell=tell,
        checkpoints=checkpoints,
    )
    with unchanged(model):
        tell("critical learning rate", 0, 1, "at the start")
        begin = partial(_initial_critical, model=model, batches=batches, dtype=dtype, optimizer=optimizer)
        first, forwards = twice_or_central(begin)
        work += (1 + 0.5 * forwards) * count_tokens(batches)
        top_lr = first * WARMUP_SHARE
        for attempt in range(1 + ATTEMPTS):
            with unchanged(model):
                tell("warm-up", 0, WARMUP_STEPS, f"up to a learning rate of {top_lr:.1e}")
                work += sum(
                    count_tokens([warmup_batches[i % len(warmup_batches)]]) for i in range(WARMUP_STEPS)
                )
                try:
                    made = warm_up(
                        model,
                        warmup_batches,
                        steps=WARMUP_STEPS,
                        top_lr=top_lr,
                        dtype=dtype,
                        optimizer=optimizer,
                    )
                    metric = geometry(made, trainable(model))
                    seen = twice_or_central(partial(measure, metric=metric))
                    # Thrown far enough, a model is dead, and no direction bends upward.
                    dead = seen.found.value <= 0
                    beyond = math.inf if dead else top_lr * seen.found.value / stability_threshold(BETAS[0])
                except NonFiniteError:
                    if attempt == ATTEMPTS:
                        raise
                    beyond = math.inf
                far = "left no curvature" if math.isinf(beyond) else f"was {beyond:.2g} times the stable one"
                its = f"its learning rate of {top_lr:.1e} {far}"
                if beyond <= BEYOND or attempt == ATTEMPTS:
                    if beyond > BEYOND:
                        notes.append(f"the warm-up stayed too large, so λ_P may be anything: {its}")
                    directional = seen.slope / seen.bend if seen.slope > 0 and seen.bend > 0 else None
                    critical = None
                    if directional is not None:
                        tell("critical learning rate", 0, 1, "along Adam's step")
                        first_rows = [next(batch for batch in batches if count_labels(batch))]
                        critical, forwards = critical_learning_rate(
                            model, first_rows, metric.direction, start=2 * directional, dtype=dtype
                        )
                        work += 0.5 * forwards * count_tokens(first_rows)
                    break
            notes.append(f"warm-up made {SMALLER:g} times smaller: {its}")
            top_lr /= SMALLER
    found = seen.found
    return AdamSharpness(
        lambda_preconditioned=found.value,
        residual=found.residual,
        upper=found.upper,
        sampling_error=seen.sampling_error,
        status=found.status,
        lr_stability=stability_threshold(BETAS[0]) / found.value if found.value > 0 else math.inf,
        lr_directional=directional,
        lr_critical=critical,
        lr_critical_start=first,
        warmup_lr=top_lr,
        warmup_steps=WARMUP_STEPS,
        matvecs=sum(cost.matvecs for cost in costs),
        gradient_equivalents=round(work / seen.tokens + sum(cost.gradient_equivalents for cost in costs), 3),
        seconds=round(time.perf_counter() - began, 3),
        peak_rss_bytes=peak_rss_bytes(),
        notes=(*notes, *seen.notes),
        stability_slack=metric.stability_slack,
    )


def _initial_critical(
    make: Callable[..., HessianOperator],
    *,
    model: nn.Module,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    optimizer: MakeOptimizer,
) -> tuple[float, int]:
    """η_c along the optimizer's first step at initialization, with the forward passes it took."""
    operator = make(model, batches, dtype=dtype, memory_budget=0)
    gradient = operator.gradient()
    if not bool(gradient.any()):
        raise HessianLRError("the gradient is zero at the start: nothing to learn from these batches")
    # Adam's is the gradient's sign: there is no need to take it.
    if optimizer is adamw:
        direction, called = gradient.sign(), "the gradient's sign"
    else:
        direction, called = _first_step(operator, gradient, optimizer), "the optimizer's first step"
    critical, forwards = critical_learning_rate(model, batches, direction, dtype=dtype)
    if critical is None:
        raise HessianLRError(
            f"no learning rate between 1e-9 and 1e3 turns downhill into uphill along {called}: "
            + _why_never_uphill(model, operator.loss, batches, direction, dtype)
        )
    return critical, forwards


def _why_never_uphill(
    model: nn.Module, loss: float, batches: Sequence[Batch], direction: Tensor, dtype: torch.dtype
) -> str:
    guessing = math.log(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    if loss > guessing:
        # Steps that are far too long end near guessing, which is downhill from here.
        return (
            f"the loss at the start is {loss:.3g}, more than the {guessing:.3g} of guessing among all tokens "
            "alike, so that even a ruinous step lowers it; is the model trained, and do tokenizer and data "
            "belong to it?"
        )
    if (end := loss_along(model, batches, direction, LARGEST, dtype)) < loss * (1 - NOISE[dtype]):
        return (
            f"the loss is {loss:.3g} at the start and even a step of {LARGEST:g} ends below, at {end:.3g}: "
            "what is adapted saturates, as attention's queries and keys and what a norm follows do: no step "
            "is ruinous. Adapt more modules, or predict by 'eigenvalue'"
        )
    return "the loss does not respond to the adapter as a loss should (frozen output? constant labels?)"


def _check(made: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Refuse, before anything is spent on it, what ``optimizer`` made for a learning rate of 1."""
    if not hasattr(made, "geometry"):
        require_adam(made)
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if lacking := sum(id(p) not in held for p in parameters):
        raise RequestError(
            f"what optimizer(model, lr, …) made lacks {lacking} of the {len(parameters)} trainable "
            "parameters: give it all of them, or set requires_grad_(False) on those that are not trained"
        )
    if (rate := made.param_groups[0]["lr"]) != 1.0:
        raise RequestError(
            f"optimizer(model, lr, …) was asked for a learning rate of 1 and made {type(made).__name__} with "
            f"{rate:g}: the learning rate of its first group must be the one it is given"
        )
    for group in made.param_groups:
        # The threshold of 38 is β₁'s, and the constants come from runs with this one; β₂ has no part in it.
        if (beta1 := float(group.get("betas", BETAS)[0])) != BETAS[0]:
            raise RequestError(
                f"optimizer(model, lr, betas=…, …) was given a β₁ of {BETAS[0]:g} and made "
                f"{type(made).__name__} with {beta1:g}: the constants come from runs with {BETAS[0]:g} and "
                "say nothing of others; hand on the betas it is given, to predict for a run with those"
            )


def _first_step(operator: HessianOperator, gradient: Tensor, optimizer: MakeOptimizer) -> Tensor:
    """What the optimizer's first step subtracts at a learning rate of 1."""
    parameters = operator.parameters
    with unchanged(operator.model):
        made = optimizer(operator.model, 1.0, betas=BETAS, eps=EPSILON)
        _check(made, parameters)
        before = flatten(parameters)
        for parameter, piece in zip(parameters, unflatten(gradient, parameters), strict=True):
            parameter.grad = laid_out(piece, parameter)
        made.step()
        return before - flatten(parameters)
