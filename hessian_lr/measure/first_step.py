"""How far an optimizer's first step may go at initialization, and which optimizers have one to go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..batches import Batch
from ..curvature.adam import require_adam
from ..curvature.loss_operator import LossOperator
from ..curvature.vectors import flatten, unflatten
from ..distributed import laid_out
from ..errors import HessianLRError, RequestError
from ..setting import BETAS, EPSILON
from .line_search import LARGEST, NOISE, critical_learning_rate, loss_along
from .state import unchanged
from .warmup import MakeOptimizer, adamw


def initial_critical(
    make: Callable[..., LossOperator],
    *,
    model: nn.Module,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    optimizer: MakeOptimizer,
) -> tuple[float, int]:
    """η_c along the optimizer's first step at initialization, with the forward passes it took.

    Args:
        make: ``HessianOperator``, or what makes one of its kind from the same arguments.
        model, batches: Where to measure, and on which sample.
        dtype: Precision of the gradient and of the forward passes.
        optimizer: The run's.

    Raises:
        HessianLRError: the gradient is zero, or no learning rate turns downhill into uphill.
        RequestError: the optimizer is not of Adam's kind, or not what it was asked for.
    """
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


def _first_step(operator: LossOperator, gradient: Tensor, optimizer: MakeOptimizer) -> Tensor:
    """What the optimizer's first step subtracts at a learning rate of 1."""
    parameters = operator.parameters
    with unchanged(operator.model):
        made = optimizer(operator.model, 1.0, betas=BETAS, eps=EPSILON)
        _require_as_asked(made, parameters)
        before = flatten(parameters)
        for parameter, piece in zip(parameters, unflatten(gradient, parameters), strict=True):
            parameter.grad = laid_out(piece, parameter)
        made.step()
        return before - flatten(parameters)


def _require_as_asked(made: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
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
