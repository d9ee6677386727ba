"""The Hessian in Adam's own geometry, and the step that Adam takes in it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import RequestError
from .loss_operator import LossOperator
from .vectors import flatten


class PreconditionedOperator:
    """P^-½ · H · P^-½ for a positive diagonal P.

    Its largest eigenvalue is the preconditioned sharpness λ_P; Adam is stable on a quadratic as
    long as λ_P < (2 + 2β₁) / ((1 − β₁)·η) (Cohen et al. 2022, arXiv 2207.14484).

    Args:
        hessian: H.
        diagonal: P, shape (n,), every entry positive; infinite for what is held.
    """

    def __init__(self, hessian: LossOperator, diagonal: Tensor) -> None:
        self.hessian = hessian
        self.size = hessian.size
        self.root = diagonal.to(hessian.device).rsqrt()

    def matvec(self, vector: Tensor) -> Tensor:
        """P^-½·H·P^-½·v, shape (n,)."""
        return self.root * self.hessian.matvec(self.root * vector)


class Preconditioned(Protocol):
    """P^-½ · H · P^-½ or a matrix with its eigenvalues."""

    def matvec(self, vector: Tensor) -> Tensor:
        """Its product with v, shape (n,)."""


class Geometry(Protocol):
    """How an optimizer of Adam's kind turns gradients into steps: −η·P⁻¹·m, with m their running mean.

    Attributes:
        direction: u = P⁻¹·m, shape (n,): the step over −η.
        stability_slack: The factor by which the learning rate where the optimizer becomes unstable on a
            quadratic may lie off ``stability_threshold`` / λ_P, either way.
    """

    direction: Tensor
    stability_slack: float

    def root(self, vector: Tensor) -> Tensor:
        """P^-½·v, shape (n,), for the symmetric root."""

    def precondition(self, hessian: LossOperator) -> Preconditioned:
        """The Hessian in this geometry, whose largest eigenvalue is λ_P."""

    def decided_by_epsilon(self, vector: Tensor) -> float:
        """The share of a unit eigenvector that lies where the optimizer's ε, not the gradients, makes P."""


class AdamGeometry:
    """The geometry of Adam and AdamW, whose P is diagonal, and which are stable up to the threshold.

    Args:
        optimizer: Adam or AdamW after some steps.
        parameters: θ in order.

    Raises:
        RequestError: another optimizer, or one whose groups all have a learning rate of 0.
    """

    stability_slack = 1.0

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        self._diagonal = adam_preconditioner(optimizer, parameters)
        self._small = 10 * _diagonal(optimizer, parameters, times=0.0)
        self.direction = adam_direction(optimizer, parameters)

    def root(self, vector: Tensor) -> Tensor:
        """P^-½·v, shape (n,)."""
        return self._diagonal.rsqrt() * vector

    def precondition(self, hessian: LossOperator) -> PreconditionedOperator:
        """P^-½ · H · P^-½."""
        return PreconditionedOperator(hessian, self._diagonal)

    def decided_by_epsilon(self, vector: Tensor) -> float:
        """The share of a vector's square where √v is below some ε."""
        return float((vector.double() ** 2)[self._diagonal <= self._small].sum())


def geometry(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Geometry:
    """An optimizer's own geometry if it has one (``geometry(parameters)``), else Adam's."""
    own = getattr(optimizer, "geometry", None)
    found: Geometry = own(parameters) if own is not None else AdamGeometry(optimizer, parameters)
    return found


def adam_preconditioner(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """P = (1 − β₁^t)·(√(v_t / (1 − β₂^t)) + ε) / q, shape (n,), from the state of Adam or AdamW.

    With P so defined, Adam's step is −η·P⁻¹·m_t (Cohen et al. 2022, arXiv 2207.14484, section 2). q is
    what a parameter's own learning rate is over η: 1 everywhere but for optimizers such as LoRA+. Where no
    gradient has ever been, as in the embedding of a token that was not seen, Adam has not moved, and ε alone
    would say how far it would: there P is infinite, so that λ_P is that of the other parameters.
    """
    p = _diagonal(optimizer, parameters)
    second = flatten([optimizer.state[one]["exp_avg_sq"] for one in parameters])
    return p.masked_fill_(second == 0, torch.inf)


def adam_direction(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """u = P⁻¹·m_t, shape (n,): Adam's last step was −η·u."""
    first = flatten([optimizer.state[p]["exp_avg"] for p in parameters])
    return first / adam_preconditioner(optimizer, parameters)


def rate_factors(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """q, shape (n,): each parameter's learning rate over η, which is that of the optimizer's first group.

    Of groups at 0 the first that is not counts; what is at 0 beside others is held, with q = 0. Where all are
    at 0, as before a warm-up's first step, the rates count that they had before a scheduler scaled them.

    Raises:
        RequestError: several groups, all at 0, and nothing tells how their rates compare.
    """
    groups = [group for group in optimizer.param_groups if group["params"]]
    rates = [group["lr"] for group in groups]
    if not any(rate > 0 for rate in rates):
        rates = [group.get("initial_lr", group["lr"]) for group in groups]
    eta = next((rate for rate in rates if rate > 0), None)
    if eta is None and len(groups) > 1:
        raise RequestError(
            f"the optimizer's {len(groups)} groups all have a learning rate of 0, so that nothing tells how "
            "their rates compare: measure while they are above it, or give each its 'initial_lr' as torch's "
            "schedulers do"
        )
    shares = [1.0 if eta is None else rate / eta for rate in rates]
    factors = {p: share for group, share in zip(groups, shares, strict=True) for p in group["params"]}
    return flatten([torch.full_like(p, factors[p]) for p in parameters])


def require_adam(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that does not step as torch's Adam and AdamW do.

    Raises:
        RequestError: it does not.
    """
    # accelerate's wrapper hands everything on but its type.
    own = getattr(optimizer, "optimizer", optimizer)
    # A subclass with a step of its own, as PEFT's Riemannian one, has another P behind the same state.
    steps = {inspect.unwrap(kind.step) for kind in (torch.optim.Adam, torch.optim.AdamW)}
    if inspect.unwrap(type(own).step) not in steps:
        raise RequestError(
            f"λ_P is measured in Adam's geometry, which {type(own).__name__} does not have; "
            "measure λ itself (sharpness), or train with torch's AdamW"
        )


def decay_in_gradient(optimizer: torch.optim.Optimizer) -> float:
    """The largest weight decay c that torch's Adam adds to the gradient, as c·θ; AdamW's stays out of it."""
    own = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(own, torch.optim.Adam) or isinstance(own, torch.optim.AdamW):
        return 0.0
    coupled = [group for group in own.param_groups if not group.get("decoupled_weight_decay", False)]
    return max((float(group["weight_decay"]) for group in coupled), default=0.0)


def stability_threshold(beta1: float) -> float:
    """(2 + 2β₁) / (1 − β₁), the product η·λ_P at which Adam becomes unstable; 38 for β₁ = 0.9."""
    return (2 + 2 * beta1) / (1 - beta1)


def _diagonal(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], times: float = 1.0) -> Tensor:
    """P as if v were so many times what it is."""
    require_adam(optimizer)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    pieces = []
    for parameter in parameters:
        group, state = groups[parameter], optimizer.state[parameter]
        (beta1, beta2), t = group["betas"], int(state["step"])
        moments = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        second = times * moments / (1 - beta2**t)
        pieces.append((1 - beta1**t) * (second.sqrt() + group["eps"]))
    return flatten(pieces) / rate_factors(optimizer, parameters)
